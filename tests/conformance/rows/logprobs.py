"""Log-probabilities, in the two shapes of the API."""

import math
from typing import Any

from tests.conformance.api import Api
from tests.conformance.registry import row

ARRAYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
EMOJI = "Write the emoji for cat."


@row("logprobs.arrays", "Completions give four arrays of one length, one entry for each token")
def arrays(api: Api) -> None:
    answer = api.complete(logprobs=3, max_tokens=8, ignore_eos=True)
    logprobs = answer["choices"][0]["logprobs"]
    assert {len(logprobs[name]) for name in ARRAYS} == {8}
    assert "".join(logprobs["tokens"]) == answer["choices"][0]["text"]


@row("logprobs.sampled", "`top_logprobs` always holds the sampled token too, with its own log-probability")
def sampled(api: Api) -> None:
    for num_top in (0, 1, 4):
        logprobs = api.complete(logprobs=num_top, max_tokens=12, temperature=2, seed=3)["choices"][0]["logprobs"]
        entries = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
        for token, logprob, top in entries:
            assert top[token] == logprob
            assert max(num_top, 1) <= len(top) <= num_top + 1


@row("logprobs.offset", "`text_offset` is where each token stands, in characters from the start of the prompt")
def offset(api: Api) -> None:
    prompt = "Zoë said: once"
    for echo in (False, True):
        body = {"logprobs": 0, "echo": echo, "skip_special_tokens": False, "ignore_eos": True}
        [choice] = api.complete(prompt, **body)["choices"]
        text = choice["text"] if echo else prompt + choice["text"]
        logprobs = choice["logprobs"]
        assert logprobs["text_offset"][0] == (0 if echo else len(prompt))
        for token, start in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert token.startswith("bytes:") or text[start:].startswith(token)


@row("logprobs.echo", "`echo`, `logprobs` and `max_tokens: 0` score the prompt alone; its first entry is null")
def echo(api: Api) -> None:
    text = "The capital of France is Paris."
    answer = api.complete(text, echo=True, logprobs=1, max_tokens=0)
    [choice] = answer["choices"]
    first, *others = choice["logprobs"]["token_logprobs"]
    assert (choice["text"], first, choice["logprobs"]["top_logprobs"][0]) == (text, None, None)
    assert all(-9999.0 <= logprob <= 0 for logprob in others)
    assert len(others) + 1 == answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 0


@row("logprobs.one_more", "A prompt scored with `max_tokens: 1` has the same scores, and one token more")
def one_more(api: Api) -> None:
    scores = [
        api.complete("The capital of France", echo=True, logprobs=1, max_tokens=count)["choices"][0]["logprobs"]
        for count in (0, 1)
    ]
    pairs = list(zip(*(found["token_logprobs"] for found in scores), strict=False))
    assert len(scores[1]["tokens"]) == len(scores[0]["tokens"]) + 1
    assert pairs[0] == (None, None)
    assert all(abs(a - b) < 0.05 for a, b in pairs[1:])


@row("logprobs.chat", "Chat gives token, logprob, bytes and top_logprobs for each token, and refusal null")
def chat(api: Api) -> None:
    answer = api.chat(logprobs=True, top_logprobs=2)
    logprobs = answer["choices"][0]["logprobs"]
    assert set(logprobs) == {"content", "refusal"}
    assert len(logprobs["content"]) == answer["usage"]["completion_tokens"]
    for entry in logprobs["content"]:
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 2
        assert all(set(top) == {"token", "logprob", "bytes"} for top in entry["top_logprobs"])


@row("logprobs.bytes", "The `bytes` of all tokens join to the text, where a token holds part of a code point too")
def raw_bytes(api: Api) -> None:
    answer = api.chat(EMOJI, logprobs=True, skip_special_tokens=False)
    [choice] = answer["choices"]
    raw = bytes(byte for entry in choice["logprobs"]["content"] for byte in entry["bytes"])
    text = choice["message"]["content"]
    assert any(ord(character) > 0xFFFF for character in text)
    assert raw.decode().startswith(text)


@row("logprobs.stream", "The chunks of a stream have the log-probabilities of the whole answer, each token once")
def streamed(api: Api) -> None:
    chunks = api.chat_stream(EMOJI, logprobs=True, top_logprobs=1)
    entries = [entry for c in chunks for entry in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    whole = api.chat(EMOJI, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [entry["bytes"] for entry in whole]
    pieces = api.complete_stream(logprobs=2, max_tokens=10, echo=True)
    tokens = [token for c in pieces for token in (c["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert tokens == api.complete(logprobs=2, max_tokens=10, echo=True)["choices"][0]["logprobs"]["tokens"]


@row("logprobs.before_sampling", "They are those of the model, before temperature, penalties, bias and filters")
def before_sampling(api: Api) -> None:
    def first(**body: Any) -> dict[str, float]:
        [top] = api.complete(logprobs=5, max_tokens=1, **body)["choices"][0]["logprobs"]["top_logprobs"]
        return dict(sorted(top.items(), key=lambda item: -item[1])[:5])

    plain = first()
    for changed in ({"temperature": 2}, {"presence_penalty": 2, "repetition_penalty": 3}, {"logit_bias": {"5": -100}}):
        found = first(**changed)
        assert set(found) == set(plain)
        assert all(math.isclose(found[token], plain[token], abs_tol=0.05) for token in plain)


@row("logprobs.add_up", "The alternatives of a token are probabilities: sorted, and no more than 1 in all")
def add_up(api: Api) -> None:
    for entry in api.chat(logprobs=True, top_logprobs=20)["choices"][0]["logprobs"]["content"]:
        values = [top["logprob"] for top in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.001
