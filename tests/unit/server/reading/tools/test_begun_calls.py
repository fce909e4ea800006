"""Calls of strict tools where the model is free to call or not: every format, walked at random from its openings on."""

import random

import pytest

from tests.unit.server.reading.tools import family_templates, templates
from tests.unit.server.reading.tools.walking import Model, Walk, check, strict_use, write_tokenizer, written
from tests.unit.server.reading.tools.writing import PUBLISHERS

TEMPLATES: dict[str, str] = {
    "hermes": templates.QWEN_2_5,
    "llama3_json": templates.LLAMA_3_1,
    "mistral_v3": templates.MISTRAL_V3,
    "mistral_v11": templates.MISTRAL_V11,
    "mistral_v13": templates.MISTRAL_V13,
    "pythonic": templates.LLAMA_4_PYTHONIC,
    "openai": family_templates.GPT_OSS,
    **{name: template for name, (template, _) in PUBLISHERS.items()},
}
TAILS = {"openai": "<|start|>assistant"}
every_format = pytest.mark.parametrize("name", TEMPLATES)
# Tokens that have the end of a text of many formats and the beginning of what follows it.
CROSSING = [
    ">\n",
    ">\n{",
    '>\n{"name": "',
    ">[{",
    "]{",
    '"na',
    "=functions",
    "=functions.note",
    "(ti",
    "(unit",
    "note(",
    '": "note"',
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Model]:
    """Each format twice: its markers as text, and as special tokens."""
    directory = tmp_path_factory.mktemp("models")
    plain = write_tokenizer(directory / "plain", (), CROSSING)
    made: dict[tuple[str, bool], Model] = {}
    for name, template in TEMPLATES.items():
        made[name, False] = Model.load(plain, template)
        form = made[name, False].form.tool_format
        assert form is not None
        markers = write_tokenizer(directory / name, form.markers, CROSSING)
        made[name, True] = Model.load(markers, template)
    return made


@every_format
@pytest.mark.parametrize("has_tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("is_limited", [False, True], ids=["free", "limited"])
def test_every_call_that_begins_is_valid(
    models: dict[tuple[str, bool], Model], name: str, has_tokens: bool, is_limited: bool
) -> None:
    model, use, tail = models[name, has_tokens], strict_use(), TAILS.get(name, "")
    compiled, openings = model.compile(use, tail), model.openings(use, tail)
    for seed in range(12):
        rng = random.Random(f"{name} {seed}")
        opening = rng.choice(openings)
        limit = 120 if is_limited else 500
        walk = Walk(model, compiled.matcher(max_tokens=limit), rng, tail)
        if not opening.is_first:
            walk.ramble(rng.randrange(3))
        if walk.is_over:
            continue
        walk.write(written(opening, rng))
        walk.finish_call()
        calls = walk.calls(use, is_cut=True)
        assert calls, walk.text
        check(calls, walk.text)
        assert len(walk.token_ids) <= limit
