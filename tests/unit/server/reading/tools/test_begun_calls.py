"""Calls of strict tools where the model is free to call or not: every format, walked at random from its openings on."""

import json
import random

import pytest

from orcinus.engine.grammar.gate import Trial
from orcinus.engine.grammar.masks import has_token
from orcinus.engine.grammar.trial_process import find_fault
from orcinus.server.apis.call_forms import held_to_strict
from tests.effort import scaled
from tests.unit.engine.grammar.grammars import DEMO_ENDS
from tests.unit.server.reading.tools import family_templates, templates
from tests.unit.server.reading.tools.calling import call, content, function, read_all, reasoning, tool_use
from tests.unit.server.reading.tools.walking import (
    TOOLS,
    Model,
    Walk,
    check,
    prefixes,
    strict_use,
    write_tokenizer,
    written,
)
from tests.unit.server.reading.tools.writing import PUBLISHERS

TEMPLATES: dict[str, str] = {
    "hermes": templates.QWEN_2_5,
    "llama3_json": templates.LLAMA_3_1,
    "mistral_v3": templates.MISTRAL_V3,
    "mistral_v11": templates.MISTRAL_V11,
    "mistral_v13": templates.MISTRAL_V13,
    "pythonic": templates.LLAMA_4_PYTHONIC,
    "openai": family_templates.GPT_OSS,
    "xlam": family_templates.XLAM_2,
    "functionary_v32": family_templates.FUNCTIONARY_3_2,
    "phi4_mini_functools": family_templates.PHI_4_MINI_FUNCTOOLS,
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


@pytest.mark.scaled
@every_format
@pytest.mark.parametrize("has_tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("is_limited", [False, True], ids=["free", "limited"])
def test_every_call_that_begins_is_valid(
    models: dict[tuple[str, bool], Model], name: str, has_tokens: bool, is_limited: bool
) -> None:
    model, use, tail = models[name, has_tokens], strict_use(), TAILS.get(name, "")
    compiled, openings = model.compile(use, tail), model.openings(use, tail)
    for seed in range(scaled(10)):
        rng = random.Random(f"{name} {seed}")
        opening = rng.choice(openings)
        limit = 120 if is_limited else 500
        walk = Walk(model, compiled.matcher(max_tokens=limit), rng, tail, limit=limit)
        if not opening.is_first:
            walk.ramble(rng.randrange(3))
        if walk.is_over:
            continue
        walk.write(written(opening, rng))
        if walk.token_ids[-1] in DEMO_ENDS:  # too late for a call
            assert is_limited
            assert walk.matcher.is_steered
            assert not walk.calls(use, is_cut=True)
            continue
        walk.finish_call()
        calls = walk.calls(use, is_cut=True)
        assert calls, walk.text
        check(calls, walk.text)


@every_format
def test_text_without_an_opening_is_not_held_to_anything(models: dict[tuple[str, bool], Model], name: str) -> None:
    model, rng = models[name, True], random.Random(name)
    matcher = model.compile(strict_use(), TAILS.get(name, "")).matcher(max_tokens=2000)
    harmless = [i for i, text in prefixes(model.tokenizer) if not set(text) & set(b"<[{=(")] + [*DEMO_ENDS]
    for _ in range(300):
        matcher.fill_mask()
        token_id = rng.choice(harmless)
        assert matcher.mask is None or has_token(matcher.mask, token_id)
        assert matcher.replacement_for(token_id) == token_id
        matcher.accept(token_id)
    assert matcher.error is None
    assert not matcher.is_finished


@every_format
def test_the_trial_finds_no_fault(models: dict[tuple[str, bool], Model], name: str) -> None:
    model = models[name, True]
    grammar = model.form.grammar(TAILS.get(name, ""), held_to_strict(strict_use()))
    assert grammar is not None
    assert find_fault(model.compiler, Trial(grammar.kind, grammar.source, grammar.openings)) is None


@pytest.mark.parametrize("name", ["hermes", "mistral_v13", "qwen3_coder", "kimi_k2"])
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_follow_calls_only_where_several_are_wanted(
    models: dict[tuple[str, bool], Model], name: str, parallel: bool
) -> None:
    model, use = models[name, True], strict_use(parallel=parallel)
    compiled, opening = model.compile(use), model.openings(use)[0]
    rng = random.Random(name)
    walk = Walk(model, compiled.matcher(max_tokens=400), rng)
    walk.write(written(opening, rng))
    walk.finish_call()
    first = len(walk.calls(use))
    tag = model.tokenizer.added_token_id(opening.parts[0])
    assert (tag in walk.may_come()) == parallel
    if parallel:
        walk.write(" and ")
        walk.write(written(opening, rng))
        walk.finish_call()
        calls = walk.calls(use)
        check(calls, walk.text)
        assert len(calls) > first


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"name": "unknown", "parameters": {}}', []),
        ('{"title": "note", "name": "note"}', []),
        ('{"parameters": {"unit": 1}, "name": "set_unit"}', []),
        ('{"type": "function", "type": "function", "name": "set_unit", "parameters": {}}', []),
        ('{"n\\u0061me": "set_unit", "parameters": {}}', []),
        ('{"name": "set\\u005funit", "parameters": {}}', []),
        ('[{"title": 1}, {"name": "set_unit", "parameters": {}}]', []),
        ('{"name": "set_unit", "parameters": {"unit": "C"}}', ["set_unit"]),
        ('{"type": "function", "name": "set_unit", "parameters": {"unit": "C"}}', ["set_unit"]),
    ],
)
def test_without_a_tag_what_is_free_text_is_no_call(
    models: dict[tuple[str, bool], Model], text: str, names: list[str]
) -> None:
    model = models["llama3_json", False]
    walk = Walk(model, model.compile(strict_use()).matcher(), random.Random(0))
    for token_id in model.tokenizer.encode(text, add_special_tokens=False):
        if walk.is_over:
            break
        assert token_id in walk.may_come(), (walk.text, token_id)
        walk.take(token_id)
    assert [called for called, _ in walk.calls(strict_use())] == names
    assert walk.matcher.is_finished is False
    assert not walk.matcher.is_steered


def test_a_call_inside_a_thought_that_never_ends_is_none_where_calls_are_held(
    models: dict[tuple[str, bool], Model],
) -> None:
    form, use = Model.load(models["hermes", False].directory, templates.QWQ).form, strict_use()
    text = 'Hm. <tool_call>\n{"name": "set_unit", "arguments": {"unit": 3}}\n</tool_call>'
    tail = "<|im_start|>assistant\n<think>\n"
    assert read_all(form, [text], tail=tail, use=use) == reasoning(text)
    free = tool_use([function("set_unit")])
    assert read_all(form, [text], tail=tail, use=free) != reasoning(text)
    after = read_all(form, ["Hm.</think>Hello"], tail=tail, use=use)
    assert after == [*reasoning("Hm."), *content("Hello")]


def test_where_no_tool_is_strict_or_none_may_be_called_there_is_no_grammar(
    models: dict[tuple[str, bool], Model],
) -> None:
    form = models["hermes", False].form
    assert form.grammar("", tool_use([function("f")])) is None
    assert form.grammar("", tool_use([function("f", strict=True)], "none")) is None
    required = form.grammar("", tool_use([function("f", strict=True)], "required"))
    assert required is not None
    assert required.openings is None


def test_a_thought_that_no_token_ends_does_not_keep_calls_from_being_held(
    models: dict[tuple[str, bool], Model],
) -> None:
    form = Model.load(models["hermes", False].directory, templates.QWQ).form
    grammar = form.grammar("<|im_start|>assistant\n<think>\n", strict_use())
    assert grammar is not None
    assert grammar.thinking is None


@pytest.mark.parametrize("name", ["qwen3_coder", "seed_oss", "minimax_m2", "glm45"])
def test_between_tags_what_is_held_to_a_schema_is_json_with_any_tag_in_it(
    models: dict[tuple[str, bool], Model], name: str
) -> None:
    value = {"type": ["array", "string"], "items": {"type": "string"}}
    write, form = PUBLISHERS[name][1], models[name, False].form
    for given in (["</parameter></arg_value></tool_call>"], "</parameter>", [], 'a "b"'):
        arguments = json.dumps({"value": given})
        text = write([("f", json.dumps({"value": json.dumps(given)}))])
        use = tool_use([function("f", {"properties": {"value": value}}, strict=True)])
        assert read_all(form, [text], use=use) == call(0, "f", arguments)


@pytest.mark.parametrize("name", ["qwen3_coder", "seed_oss", "minimax_m2", "glm45"])
@pytest.mark.parametrize("has_tokens", [False, True], ids=["text", "tokens"])
def test_required_calls_between_tags_are_valid_and_end_within_the_limit(
    models: dict[tuple[str, bool], Model], name: str, has_tokens: bool
) -> None:
    model, use = models[name, has_tokens], tool_use(TOOLS, "required", parallel=False)
    grammar = model.form.grammar("", use)
    assert grammar is not None
    compiled = model.compiler.compile(grammar.kind, grammar.source)
    for seed in range(4):
        walk = Walk(model, compiled.matcher(max_tokens=200), random.Random(seed))
        walk.finish_call()
        assert len(walk.token_ids) <= 200
        check(walk.calls(use, is_cut=True), walk.text)
