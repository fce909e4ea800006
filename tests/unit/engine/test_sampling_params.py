import math

import msgspec
import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import (
    ANYWHERE,
    MAX_ANSWER_RESERVE,
    MAX_STOP_STRINGS,
    MAX_TAG_TOKENS,
    NOWHERE,
    RANGES,
    Grammar,
    SamplingParams,
    Thinking,
)

# Every parameter is in one of the two, with a value that switches it on. Those of the second rule tokens out, or make
# them less likely, by the tokens that were generated before.
INDEPENDENT_OF_TOKENS: dict[str, object] = {
    "n": 2,
    "max_tokens": 5,
    "min_tokens": 3,  # counts tokens, whichever they are
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "logit_bias": {3: 5.0},
    "seed": 1,
    "stop": ("x",),
    "stop_token_ids": (3,),
    "more_eos_token_ids": (3,),
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "logprobs": 2,
    "prompt_logprobs": 2,
    "allowed_token_ids": (3, 4),
    "pooling": "mean",
}
FOLLOWING_TOKENS: dict[str, object] = {
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "bad_words_token_ids": ((3,),),
    "grammar": Grammar("json_object"),
    "thinking": Thinking(end=(3,), budget=5),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_p", -0.1),
        ("seed", -9_223_372_036_854_776_001),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -math.inf),
        ("repetition_penalty", 0.0),
        ("seed", 2**64),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("logit_bias", {1: 101.0}),
        ("stop", ("",)),
        ("stop", ("x",) * (MAX_STOP_STRINGS + 1)),
        ("stop_token_ids", tuple(range(257))),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name
    assert name in str(caught.value)


def test_the_message_gives_the_bounds_and_the_value() -> None:
    with pytest.raises(InvalidRequestError, match="temperature must be at least 0 and at most 2, got 3"):
        SamplingParams(temperature=3)
    with pytest.raises(InvalidRequestError, match="top_p must be at least 0 and at most 1, got -1"):
        SamplingParams(top_p=-1)
    with pytest.raises(InvalidRequestError, match="repetition_penalty must be above 0 and at most 100, got 0"):
        SamplingParams(repetition_penalty=0)


@pytest.mark.parametrize("seed", [-9_223_372_036_854_776_000, -(2**63), -1, 0, 2**64 - 1])
def test_every_seed_can_be_sent_and_counts_modulo_its_64_bits(seed: int) -> None:
    sampling = SamplingParams(seed=seed)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=SamplingParams) == sampling
    assert (sampling.seed or 0) % 2**64 == seed % 2**64


def test_a_nucleus_of_nothing_is_greedy() -> None:
    assert SamplingParams(top_p=0).is_greedy
    assert not SamplingParams(top_p=0.1).is_greedy


def test_a_banned_word_of_too_many_tokens_is_refused_by_the_name_that_clients_know() -> None:
    with pytest.raises(InvalidRequestError, match="bad_words have 1 to 64 tokens each, got 65") as caught:
        SamplingParams(bad_words_token_ids=((5,) * 65,))
    assert caught.value.param == "bad_words"


def test_bounds_themselves_are_legal() -> None:
    SamplingParams(n=128, max_tokens=0, temperature=2, top_p=1, top_k=-1, min_p=1, seed=2**64 - 1)
    SamplingParams(max_tokens=None, min_tokens=5, seed=-(2**63), logprobs=20, stop=("x",) * 4)


@pytest.mark.parametrize("fields", [{"logit_bias": {50: 1.0}}, {"stop_token_ids": (50,)}, {"stop_token_ids": (-1,)}])
def test_token_ids_are_held_against_the_vocabulary(fields: dict[str, object]) -> None:
    sampling = SamplingParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"outside the vocabulary \(0 to 49\)"):
        sampling.check_token_ids(50)
    if 50 in sampling.logit_bias or 50 in sampling.stop_token_ids:
        sampling.check_token_ids(51)


def test_every_parameter_is_known_to_follow_tokens_or_not_to() -> None:
    assert set(INDEPENDENT_OF_TOKENS) | set(FOLLOWING_TOKENS) == set(SamplingParams.__struct_fields__)
    assert not SamplingParams().looks_back
    assert SamplingParams().followed_places == NOWHERE


@pytest.mark.parametrize("name", [*INDEPENDENT_OF_TOKENS, *FOLLOWING_TOKENS])
def test_a_request_looks_back_where_a_parameter_does_and_the_host_has_to_know_what_a_grammar_follows(name: str) -> None:
    values = INDEPENDENT_OF_TOKENS | FOLLOWING_TOKENS
    fields = {name: values[name]} | ({"max_tokens": 0} if name == "pooling" else {})
    sampling = SamplingParams(**fields)  # type: ignore[arg-type]
    assert sampling != SamplingParams(), "the value switches nothing on"
    assert sampling.looks_back == (name in FOLLOWING_TOKENS)
    assert sampling.followed_places == {"grammar": ANYWHERE, "thinking": range(5, 7)}.get(name, NOWHERE)


def test_thoughts_without_a_budget_are_not_followed() -> None:
    sampling = SamplingParams(thinking=Thinking(end=(3,)))
    assert [sampling.looks_back, bool(sampling.followed_places), sampling.has_budget] == [False] * 3


def test_tokens_are_followed_where_some_may_be_forced_and_one_place_beyond() -> None:
    thinking = Thinking(end=(3,), start=2, budget=20, forced=(9, 3, 9))
    assert SamplingParams(max_tokens=100, thinking=thinking).followed_places == range(20, 25)
    assert SamplingParams(max_tokens=16, thinking=thinking).followed_places == range(8, 13)
    recurring = msgspec.structs.replace(thinking, recurs=True)
    assert SamplingParams(thinking=recurring).followed_places == ANYWHERE


@pytest.mark.parametrize(
    ("budget", "max_tokens", "expected"),
    [
        (20, None, 20),
        (20, 100, 20),
        (20, 33, 20),  # 8 for the answer, 3 for the end, 1 for the beginning
        (20, 32, 20),
        (20, 31, 20),
        (20, 30, 19),
        (20, 8, 2),
        (20, 5, 0),
        (20, 1, 0),
        (0, 100, 0),
        (5000, 5000, 5000 - MAX_ANSWER_RESERVE - 4),
        (None, 10, None),
    ],
)
def test_a_budget_leaves_room_for_an_answer(budget: int | None, max_tokens: int | None, expected: int | None) -> None:
    thinking = Thinking(end=(3,), start=2, budget=budget, forced=(9, 3, 9))
    assert thinking.budget_within(max_tokens) == expected


def test_a_thought_has_tags_and_its_budget_is_no_debt() -> None:
    with pytest.raises(InvalidRequestError, match="thinking_budget must be at least 0, got -2"):
        Thinking(end=(3,), budget=-2)
    for wrong in ({"end": ()}, {"end": (3,), "forced": ()}, {"end": (3,), "openings": ((1,) * (MAX_TAG_TOKENS + 1),)}):
        with pytest.raises(InvalidRequestError, match=f"1 to {MAX_TAG_TOKENS} tokens each"):
            Thinking(**wrong)
    with pytest.raises(InvalidRequestError, match="opens a thought before a grammar"):
        Grammar("json_object", thinking=Thinking(end=(3,), openings=((1, 2),)))


def test_tags_are_held_against_the_vocabulary() -> None:
    for tags in ({"end": (50,)}, {"end": (3,), "start": 50}, {"end": (3,), "forced": (3, 50)}):
        thinking = Thinking(**tags)
        for sampling in (SamplingParams(thinking=thinking), SamplingParams(grammar=Grammar("regex", "a", thinking))):
            with pytest.raises(InvalidRequestError, match="thinking_budget has token id 50"):
                sampling.check_token_ids(50)
            sampling.check_token_ids(51)


def test_every_number_has_its_bounds_in_the_table() -> None:
    numbers = (int, float, int | None, float | None)
    assert set(RANGES) == {field.name for field in msgspec.structs.fields(SamplingParams) if field.type in numbers}


def test_it_survives_the_wire() -> None:
    thinking = Thinking(end=(3,), budget=0, forced=(9, 3), openings=((1, 2),), recurs=True)
    sampling = SamplingParams(
        logit_bias={3: -100.0}, seed=2**64 - 1, stop=("a", "b"), temperature=0.0, thinking=thinking
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=SamplingParams) == sampling
    assert sampling.is_greedy
