"""The corpus: it repeats itself for a seed, and the held-out wordings stay out of training."""

import json
import re
from random import Random

import pytest

from demo import corpus, talk, tool_talk
from demo.evaluate import is_right
from demo.wordings import WORDINGS, Wordings

ALL_WORDINGS: dict[str, Wordings] = {
    **WORDINGS,
    **{f"talk {name}": topic.asked for name, topic in talk.SMALL_TALK.items()},
    **{f"tool {kind.names[0]}": kind.asked for kind in tool_talk.TOOL_KINDS},
    "unanswerable": talk.UNANSWERABLE,
}


def plain(template: str) -> str:
    """A template without what does not make a wording: case, signs and the names of its fields."""
    return re.sub(r"[^a-z{}+*=-]+", " ", re.sub(r"\{\w+\}", "{}", template.lower())).strip()


@pytest.mark.parametrize("kind", ALL_WORDINGS)
def test_train_and_heldout_wordings_are_disjoint(kind: str) -> None:
    wordings = ALL_WORDINGS[kind]
    train = set(wordings.templates("train"))
    heldout = set(wordings.templates("heldout"))
    assert train
    assert heldout
    assert not train & heldout


@pytest.mark.parametrize("kind", [kind for kind in ALL_WORDINGS if not kind.startswith("talk")])
def test_heldout_wordings_differ_in_more_than_signs(kind: str) -> None:
    wordings = ALL_WORDINGS[kind]
    train = {plain(template) for template in wordings.templates("train")}
    assert not train & {plain(template) for template in wordings.templates("heldout")}


def test_no_heldout_question_is_in_the_training_stream() -> None:
    rng = Random(5)
    trained = {
        message["content"]
        for _ in range(4000)
        for message in corpus.conversation(rng).messages
        if message["role"] == "user"
    }
    heldout = {build(rng, "heldout").messages[-2]["content"] for build in corpus.BUILDERS.values() for _ in range(40)}
    assert not trained & heldout


def test_same_seed_gives_the_same_conversations() -> None:
    first = [corpus.conversation(Random(seed)) for seed in range(50)]
    assert first == [corpus.conversation(Random(seed)) for seed in range(50)]


@pytest.mark.parametrize("kind", corpus.BUILDERS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_own_answers_are_judged_right(kind: str, split: str) -> None:
    rng = Random(f"{kind} {split}")
    for _ in range(20):
        example = corpus.BUILDERS[kind](rng, "train" if split == "train" else "heldout")
        assert example.messages[-1]["role"] == "assistant"
        assert is_right(example, example.messages[-1]["content"])
        assert not is_right(example, "")


def test_tool_calls_name_an_offered_tool_and_its_parameters() -> None:
    rng = Random(7)
    for _ in range(100):
        example = corpus.tool_call(rng, "train")
        body = example.messages[-1]["content"].removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        call = json.loads(body)
        offered = {tool["function"]["name"]: tool["function"] for tool in example.tools}
        assert set(call["arguments"]) == set(offered[call["name"]]["parameters"]["required"])
