"""What holds for whole answers: fields, finish reasons, indices, usage, stop strings."""

from tests.conformance.api import Api
from tests.conformance.registry import row
from tests.server_process import ServerProcess

COUNT = "Count from 1 to 10."


@row("responses.completion", "A completion's choice has text, index, logprobs and finish_reason, null or not")
def completion(api: Api) -> None:
    answer = api.complete()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert set(answer["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}
    assert answer["choices"][0]["logprobs"] is None


@row("responses.chat", "A chat choice has index, message, logprobs and finish_reason; the message content and refusal")
def chat(api: Api) -> None:
    answer = api.chat()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert set(answer["choices"][0]) == {"index", "message", "logprobs", "finish_reason"}
    assert set(answer["choices"][0]["message"]) == {"role", "content", "refusal"}


@row("responses.identity", "Ids differ from answer to answer, and the fingerprint of one server does not")
def identity(api: Api) -> None:
    first, second = api.complete(max_tokens=1), api.complete(max_tokens=1)
    assert first["id"] != second["id"]
    assert first["system_fingerprint"] == second["system_fingerprint"]


@row("responses.stop", "An answer that ends by itself says `stop`, one that is cut says `length`")
def finish_reasons(api: Api) -> None:
    assert api.chat()["choices"][0]["finish_reason"] == "stop"
    assert api.chat(max_tokens=2)["choices"][0]["finish_reason"] == "length"


@row("responses.timeout", "A deadline that passes is 408 `timeout`, never a `length`")
def timeout(api: Api) -> None:
    error = api.refuse_completion(408, max_tokens=1500, ignore_eos=True, timeout=0.05)
    assert error["type"] == "timeout"


@row("responses.index", "With n and several prompts, index = prompt * n + choice, and one usage sums them all")
def indices(api: Api) -> None:
    answer = api.complete(["One", "Two", "Three"], n=2, max_tokens=3, echo=True, ignore_eos=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    starts = [choice["text"][:3] for choice in answer["choices"]]
    assert starts == ["One", "One", "Two", "Two", "Thr", "Thr"]
    assert answer["usage"]["completion_tokens"] == 6 * 3
    assert answer["usage"]["prompt_tokens"] == sum(len(api.tokens(text)) for text in ("One", "Two", "Three"))


@row("responses.usage", "Usage counts what was generated and what the prompt cache gave")
def usage(api: Api) -> None:
    prompt = "The prompt cache. " * 40
    answers = [api.complete(prompt, max_tokens=4, ignore_eos=True, return_token_ids=True) for _ in range(2)]
    for answer in answers:
        assert answer["usage"]["completion_tokens"] == len(answer["choices"][0]["token_ids"]) == 4
        assert answer["usage"]["prompt_tokens"] == len(answer["choices"][0]["prompt_token_ids"])
    assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@row("responses.drafts", "With `--speculation` the text is the same, and the usage says what became of its drafts")
def drafts(api: Api) -> None:
    question = "Repeat after me: the quick brown fox jumps over the lazy dog."
    process = ServerProcess("--speculation", "ngram")
    try:
        with Api(process.url) as drafting:
            answer = drafting.chat(question)
            num_tried = drafting.metric("orcinus_draft_tokens_proposed_total")
    finally:
        process.close()
    whole = api.chat(question)
    assert answer["choices"][0]["message"] == whole["choices"][0]["message"]
    told, untold = (each["usage"]["completion_tokens_details"] for each in (answer, whole))
    assert told["accepted_prediction_tokens"] > 0
    assert told["accepted_prediction_tokens"] + told["rejected_prediction_tokens"] == num_tried
    assert "accepted_prediction_tokens" not in untold


@row("responses.stop_strings", "A stop string ends the answer, is not in it, and is named as `stop_reason`")
def stop_strings(api: Api) -> None:
    whole = api.chat(COUNT)["choices"][0]["message"]["content"]
    for stop in ("5", "4, 5", ", 5,"):
        assert stop in whole
        [choice] = api.chat(COUNT, stop=["never", stop])["choices"]
        assert choice["message"]["content"] == whole.partition(stop)[0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


@row("responses.stop_streamed", "No part of a stop string reaches a stream, wherever its tokens are cut")
def stop_streamed(api: Api) -> None:
    whole = api.chat(COUNT)["choices"][0]["message"]["content"]
    for stop in ("5", "4, 5", ", 5,"):
        chunks = api.chat_stream(COUNT, stop=stop)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text == whole.partition(stop)[0]


@row("responses.five_stops", "Four stop strings are allowed, a fifth is a 400")
def five_stops(api: Api) -> None:
    api.complete(stop=["a1", "b2", "c3", "d4"], max_tokens=1)
    error = api.refuse_completion(stop=["a", "b", "c", "d", "e"])
    assert (error["param"], "4" in error["message"], "5" in error["message"]) == ("stop", True, True)


@row("responses.timing", "A whole answer says in `Server-Timing` where its time went")
def timing(api: Api) -> None:
    response = api.http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 4})
    named = dict(entry.split(";", 1) for entry in response.headers["server-timing"].split(", "))
    assert {"queue", "prefill", "decode"} <= set(named)
    for name in ("queue", "prefill", "decode"):
        assert float(named[name].removeprefix("dur=")) >= 0
