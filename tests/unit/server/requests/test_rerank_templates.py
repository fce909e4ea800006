"""The prompts of families of rerankers: what is filled in, and by which names they are known."""

import pytest

from orcinus.config.settings import Settings
from orcinus.engine.errors import InvalidRequestError
from orcinus.server.requests.rerank_templates import RERANK_TEMPLATES, template_of


@pytest.mark.parametrize("name", RERANK_TEMPLATES)
def test_the_texts_stand_in_the_prompt_as_they_are(name: str) -> None:
    template = RERANK_TEMPLATES[name]
    prompt = template.render("{document}\\1", "{query} {x} %s", None)
    assert prompt.count("{document}\\1") == prompt.count("{query} {x} %s") == 1
    assert prompt.index("{document}\\1") < prompt.index("{query} {x} %s")
    assert "{instruction}" not in prompt


def test_an_instruction_takes_the_place_of_the_default() -> None:
    qwen3, mxbai, gemma = (RERANK_TEMPLATES[name] for name in ("qwen3", "mxbai-v2", "bge-gemma"))
    default = qwen3.default_instruction
    assert f"<Instruct>: {default}\n<Query>: q\n" in qwen3.render("q", "d", None)
    assert qwen3.render("q", "d", "i") == qwen3.render("q", "d", None).replace(default, "i")
    assert mxbai.render("q", "d", "i") == mxbai.render("q", "d", None).replace("query:", "instruction: i\nquery:", 1)
    with pytest.raises(InvalidRequestError, match="no place for an instruction"):
        gemma.render("q", "d", "i")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3"),
        ("/root/.cache/hub/models--Qwen--Qwen3-Reranker-8B/snapshots/0123", "qwen3"),
        ("mixedbread-ai/mxbai-rerank-base-v2", "mxbai-v2"),
        ("mixedbread-ai/mxbai-rerank-large-v2", "mxbai-v2"),
        ("mixedbread-ai/mxbai-rerank-large-v1", None),
        ("BAAI/bge-reranker-v2-gemma", "bge-gemma"),
        ("BAAI/bge-reranker-v2-m3", None),
        ("Qwen/Qwen3-0.6B", None),
    ],
)
def test_a_family_is_known_by_the_names_of_its_checkpoints(model: str, name: str | None) -> None:
    assert template_of(model) is (RERANK_TEMPLATES[name] if name else None)


def test_the_setting_has_every_family() -> None:
    allowed = Settings.model_json_schema()["properties"]["rerank_template"]["enum"]
    assert allowed == ["auto", "chat", *RERANK_TEMPLATES]
