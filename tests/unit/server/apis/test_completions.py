"""POST /v1/completions: the shapes and rules of whole answers, and the exact bytes of streams."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion

from orcinus.engine.messages import TokenLogprobs
from orcinus.engine.outputs import RequestOutput
from orcinus.server.apis.completions.answer import start_completion
from tests.unit.engine.fakes import END_OF_TEXT, FakeExecutor, echoes, says
from tests.unit.server.serving import Serving, error_of, events_of, serving


async def stream(served: Serving, **body: Any) -> list[dict[str, Any]]:
    response = await served.post("/v1/completions", stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return list(events_of(response.text))


async def test_whole_answer_has_every_field_of_the_specification(served: Serving) -> None:
    answer = await served.complete("ab", max_tokens=8)
    Completion.model_validate(answer, strict=True)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "fake-model"
    assert answer["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 6,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_max_tokens_is_16_unless_given(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        answer = await served.complete("x")
        assert answer["choices"][0]["text"] == "abcdefghijklmnop"
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_max_tokens_zero_runs_the_prompt_alone(served: Serving) -> None:
    answer = await served.complete("ab", max_tokens=0)
    assert answer["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [99]], ["ab", "c"]),
        (["ab", [99]], ["ab", "c"]),
    ],
)
async def test_every_form_of_prompt_is_understood(tmp_path: Path, prompt: Any, texts: list[str]) -> None:
    async with serving(tmp_path, FakeExecutor(echoes)) as served:
        answer = await served.complete(prompt)
        assert [choice["text"] for choice in answer["choices"]] == texts


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], [True], {"a": 1}, 5, [97, "b"], [[97, "b"]], [1.5], [None]])
async def test_a_prompt_that_is_none_is_refused_by_name(served: Serving, prompt: Any) -> None:
    assert error_of(await served.post("/v1/completions", prompt=prompt), 400)["param"] == "prompt"


@pytest.mark.parametrize("token_id", [-1, 259, 10**30])
async def test_token_ids_outside_the_vocabulary_are_refused_with_both_numbers(served: Serving, token_id: int) -> None:
    error = error_of(await served.post("/v1/completions", prompt=[97, token_id]), 400)
    assert str(token_id) in error["message"]
    assert "258" in error["message"]


async def test_index_is_prompt_index_times_n_plus_choice_index(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(echoes)) as served:
        answer = await served.complete(["p", "qq"], n=2)
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "p"),
            (1, "p"),
            (2, "qq"),
            (3, "qq"),
        ]
        assert answer["usage"]["prompt_tokens"] == 3  # each prompt once, whatever n is
        assert answer["usage"]["completion_tokens"] == 2 * 2 + 2 * 3


async def test_echo_puts_the_prompt_before_the_text(served: Serving) -> None:
    assert (await served.complete("ab", echo=True))["choices"][0]["text"] == "abHello"
    assert (await served.complete([97, 98], echo=True))["choices"][0]["text"] == "abHello"


async def test_echo_with_logprobs_and_no_new_tokens_scores_the_prompt(served: Serving) -> None:
    answer = await served.complete("abc", echo=True, logprobs=1, max_tokens=0)
    assert answer["choices"][0] == {
        "index": 0,
        "text": "abc",
        "logprobs": {
            "tokens": ["a", "b", "c"],
            "token_logprobs": [None, -0.5, -0.5],
            "top_logprobs": [None, {"b": -0.5}, {"c": -0.5}],
            "text_offset": [0, 1, 2],
        },
        "finish_reason": "length",
    }
    assert answer["usage"]["completion_tokens"] == 0


async def test_logprobs_count_their_offsets_from_the_start_of_the_prompt(served: Serving) -> None:
    logprobs = (await served.complete("abc", logprobs=2, max_tokens=3))["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["H", "e", "l"],
        "token_logprobs": [-0.5, -0.5, -0.5],
        "top_logprobs": [{"H": -0.5, "I": -1.5}, {"e": -0.5, "f": -1.5}, {"l": -0.5, "m": -1.5}],
        "text_offset": [3, 4, 5],
    }


async def test_logprobs_zero_gives_the_chosen_tokens_alone(served: Serving) -> None:
    logprobs = (await served.complete("abc", logprobs=0, max_tokens=2))["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"H": -0.5}, {"e": -0.5}]


async def test_tokens_that_hold_part_of_a_code_point_have_names_of_their_own(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("é!"))) as served:
        answer = await served.complete("a", logprobs=0, max_tokens=3)
        assert answer["choices"][0]["text"] == "é!"
        assert answer["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
        assert answer["choices"][0]["logprobs"]["text_offset"] == [1, 1, 2]


async def test_minus_infinity_is_sent_as_the_lowest_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = TokenLogprobs(token_id=97, logprob=float("-inf"), top=[(98, float("-inf"))])
    monkeypatch.setattr("tests.unit.engine.fakes.token_logprobs", lambda *args: impossible)
    async with serving(tmp_path) as served:
        logprobs = (await served.complete("x", logprobs=1, max_tokens=1))["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"] == [-9999.0]
        assert logprobs["top_logprobs"] == [{"b": -9999.0, "a": -9999.0}]


async def test_prompt_logprobs_and_token_ids_are_added_when_asked_for(served: Serving) -> None:
    answer = await served.complete("ab", prompt_logprobs=1, return_token_ids=True)
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98]
    assert choice["token_ids"] == [*b"Hello", END_OF_TEXT]
    assert choice["prompt_logprobs"] == [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]


async def test_stop_string_never_reaches_the_text_and_is_named(served: Serving) -> None:
    choice = (await served.complete("ab", stop="ll"))["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("He", "stop", "ll")
    kept = (await served.complete("ab", stop=["ll"], include_stop_str_in_output=True))["choices"][0]
    assert kept["text"] == "Hell"


async def test_stop_token_id_ends_the_text_and_is_named(served: Serving) -> None:
    choice = (await served.complete("ab", stop_token_ids=[ord("l")]))["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("He", "stop", ord("l"))


async def test_truncate_prompt_tokens_keeps_the_end(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(echoes), info={"max_model_len": 16}) as served:
        short = await served.complete("abcdef", truncate_prompt_tokens=2, max_tokens=4)
        assert short["choices"][0]["text"] == "ef"
        long = await served.complete("a" * 40, truncate_prompt_tokens=-1, max_tokens=4)
        assert long["usage"]["prompt_tokens"] == 12


async def test_cached_tokens_of_each_prompt_are_summed(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("x"))) as served:
        prompt = "p" * 40
        await served.complete(prompt)
        usage = (await served.complete([prompt, prompt], n=2))["usage"]
        assert usage["prompt_tokens"] == 80
        assert usage["prompt_tokens_details"]["cached_tokens"] == 64


async def test_context_overflow_gives_both_numbers(served: Serving) -> None:
    error = error_of(await served.post("/v1/completions", prompt="a" * 250, max_tokens=10), 400)
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "260" in error["message"]


async def test_stream_has_exactly_these_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hi"))) as served:
        response = await served.post("/v1/completions", prompt="ab", stream=True, stop="Hi!", logprobs=None)
        head, first = response.text.split('"choices":', 1)
        assert response.text == (
            head
            + '"choices":[{"index":0,"text":"Hi","logprobs":null,"finish_reason":null}]}\n\n'
            + head
            + '"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        )
        assert first
        assert head.startswith('data: {"id":"cmpl-')
        assert ',"object":"text_completion","created":' in head
        assert ',"model":"fake-model","system_fingerprint":"fp_' in head


async def test_streamed_text_and_whole_text_are_one(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Grüße, 世界 🙂!"))) as served:
        chunks = await stream(served, prompt="x", max_tokens=100)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Grüße, 世界 🙂!"
        assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks)
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"][0]["finish_reason"]] == [
            "stop"
        ]
        assert all(chunk["choices"][0]["text"] or chunk["choices"][0]["finish_reason"] for chunk in chunks)
        for chunk in chunks:
            assert set(chunk["choices"][0]) >= {"text", "index", "logprobs", "finish_reason"}


async def test_streams_of_several_prompts_interleave_with_their_indices(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(echoes)) as served:
        chunks = await stream(served, prompt=["pppp", "qq"], n=2)
        texts = dict.fromkeys(range(4), "")
        for chunk in chunks:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == {0: "pppp", 1: "pppp", 2: "qq", 3: "qq"}


async def test_streamed_echo_and_logprobs_join_to_the_whole(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeExecutor(says("Hello"))) as served:
        asked = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 4}
        whole = (await served.complete(**asked))["choices"][0]
        chunks = await stream(served, **asked)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
        for name, values in whole["logprobs"].items():
            joined = [value for chunk in chunks for value in chunk["choices"][0]["logprobs"][name]]
            assert joined == values


async def test_include_usage_adds_null_to_each_chunk_and_one_last_chunk(served: Serving) -> None:
    chunks = await stream(served, prompt="ab", stream_options={"include_usage": True})
    *middle, last = chunks
    assert middle
    assert all(chunk["usage"] is None for chunk in middle)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 8


async def test_continuous_usage_stats_count_up_to_the_total(served: Serving) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream(served, prompt="ab", n=2, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == 12


async def test_stream_options_without_stream_are_refused(served: Serving) -> None:
    error = error_of(await served.post("/v1/completions", prompt="a", stream_options={"include_usage": True}), 400)
    assert error["param"] == "stream_options"


async def test_n_and_prompts_together_are_bounded(served: Serving) -> None:
    error = error_of(await served.post("/v1/completions", prompt=["a"] * 128, n=128), 400)
    assert "1024" in error["message"]
    assert "16384" in error["message"]
    assert error_of(await served.post("/v1/completions", prompt=["a"] * 257), 400)["param"] == "prompt"


async def test_sampling_that_a_request_leaves_open_is_the_models_own(tmp_path: Path) -> None:
    executor = FakeExecutor()
    async with serving(tmp_path, executor, info={"sampling_defaults": {"temperature": 0.25, "top_k": 40}}) as served:
        await served.complete("a", max_tokens=1)
        await served.complete("b", max_tokens=1, temperature=None, top_p=0.5, top_k=0)
        await served.chat("c", max_tokens=1, temperature=1)
    sampled = [new.sampling for plan in executor.plans for new in plan.new_requests]
    assert [(s.temperature, s.top_k, s.top_p) for s in sampled] == [(0.25, 40, 1.0), (0.25, 0, 0.5), (1.0, 40, 1.0)]


class Outputs:
    """A stream of outputs made by hand."""

    def __init__(self, *outputs: RequestOutput) -> None:
        self._outputs = iter(outputs)

    def __aiter__(self) -> "Outputs":
        return self

    async def __anext__(self) -> RequestOutput:
        try:
            return next(self._outputs)
        except StopIteration:
            raise StopAsyncIteration from None

    def abort(self) -> None: ...


def candidate(index: int, text: str, *logprobs: float) -> RequestOutput:
    entries = [TokenLogprobs(token_id=97, logprob=logprob) for logprob in logprobs]
    tokens = [97] * len(entries)
    return RequestOutput(index=index, text=text, token_ids=tokens, logprobs=entries, finish_reason="stop")


async def test_best_of_answers_with_the_likeliest_per_token(served: Serving) -> None:
    body = {"prompt": ["p", "q"], "n": 2, "best_of": 3, "echo": True}
    generation = await start_completion(served.app.state.context, body)
    assert (generation.request.sampling.n, generation.request.sampling.logprobs) == (3, 0)
    generation.stream.abort()
    generation.stream = Outputs(
        candidate(0, "a", -3.0),
        candidate(1, "b", -1.0, -1.0),
        candidate(2, "c", -1.5),
        candidate(5, "f", -0.1),
        candidate(4, "e", -0.2),
        candidate(3, "d", -0.3),
    )
    answer = json.loads(b"".join(await generation.whole()))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "pb"),
        (1, "pc"),
        (2, "qf"),
        (3, "qe"),
    ]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 7, "all candidates were generated"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 3, "best_of": 2}, r"at least n \(3\), got 2"),
        ({"best_of": 2, "stream": True}, "cannot be streamed"),
        ({"best_of": 129}, "less than or equal to 128"),
    ],
)
async def test_a_best_of_that_cannot_be_is_refused(served: Serving, body: dict[str, Any], words: str) -> None:
    error = error_of(await served.post("/v1/completions", prompt="x", **body), 400)
    assert error["param"] == "best_of"
    assert re.search(words, error["message"])


async def test_best_of_equal_to_n_may_be_streamed(served: Serving) -> None:
    response = await served.post("/v1/completions", prompt="x", n=2, best_of=2, stream=True, max_tokens=1)
    assert {event["choices"][0]["index"] for event in events_of(response.text)} == {0, 1}


async def test_a_whole_answer_says_where_its_time_went(served: Serving) -> None:
    prompt = "p" * 40
    await served.complete(prompt)
    response = await served.post("/v1/completions", prompt=prompt, max_tokens=3)
    timing = re.fullmatch(
        r"queue;dur=([\d.]+), prefill;dur=([\d.]+), decode;dur=([\d.]+), cached_tokens;desc=32, preemptions;desc=0",
        response.headers["server-timing"],
    )
    assert timing is not None
    assert all(float(milliseconds) < 60_000 for milliseconds in timing.groups())
