"""A sample of the types that the table has, tried, and what the page says of them."""

import pytest

from tests.models_table.__main__ import all_types
from tests.models_table.report import HEADING, PAGE, section
from tests.models_table.trial import Trial, try_type


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "verdict", "reason"),
    [
        ("olmo2", "served", ""),
        ("internvl", "served", ""),
        ("glm4v", "served", ""),
        ("deepseek_v4", "refused", "layers of type compressed_sparse_attention"),
        ("paligemma", "refused", "in both directions"),
        ("doge", "refused", "a mask of its own"),
        ("falcon", "refused", "computes its attention itself"),
        ("git", "refused", "several classes of attention"),
        ("kosmos-2", "refused", "on text alone, failed"),
        ("bert", "served", ""),
        ("stablelm", "served", ""),
        ("hrm_text", "served", ""),
        ("glm_moe_dsa", "served", ""),
        ("minimax_m3_vl_text", "served", ""),
        ("udop", "refused", "encoder-decoder"),
    ],
)
def test_type_is_served_or_refused_for_its_reason(model_type: str, verdict: str, reason: str) -> None:
    trial = try_type(model_type, all_types()[model_type])
    assert trial.verdict == verdict, trial.reason
    assert reason in trial.reason
    assert bool(trial.reason) is (verdict != "served")


def test_page_tells_of_every_type_once() -> None:
    written = PAGE.read_text().split(HEADING)[1]
    assert "differs" not in written
    missing = [name for name in all_types() if written.count(f"`{name}`") != 1]
    assert not missing


def test_section_gathers_what_is_refused_for_the_same_reason() -> None:
    trials = [
        Trial("llama", "LlamaForCausalLM", "served"),
        Trial("gemma3", "Gemma3ForConditionalGeneration", "served"),
        Trial("a", "AForCausalLM", "refused", "AForCausalLM has layers of type conv: no"),
        Trial("b", "BForCausalLM", "refused", "BForCausalLM has layers of type conv: no"),
        Trial("c", "CForCausalLM", "not made", "its own code"),
        Trial("d", "DForCausalLM", "differs", "[1] in place of [2]"),
    ]
    rows = [line for line in section(trials).splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| served, causal | 1 | `llama` |",
        "| served by their language model | 1 | `gemma3` |",
        "| refused: has layers of type conv: no | 2 | `a`, `b` |",
        "| **differs from `generate`** | 1 | `d` |",
        "| not known: none could be made small | 1 | `c` |",
    ]
