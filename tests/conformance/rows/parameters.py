"""Every request parameter of every endpoint: a row for each line of the table of parameters.

What is supported needs an effect registered here; that it is accepted, and its types and bounds, are checked as its
schema gives them, at each endpoint that has it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from orcinus.server.apis.chat.body import ChatBody
from orcinus.server.apis.completions.body import CompletionBody
from orcinus.server.apis.embeddings.body import EmbeddingBody
from orcinus.server.apis.messages.body import MessagesBody
from orcinus.server.apis.rerank.body import RerankBody
from orcinus.server.apis.responses.body import ResponseBody
from orcinus.server.apis.score.body import ScoreBody
from orcinus.server.requests.parameters import Endpoint, ParameterRow, parameter_table
from tests.conformance.api import Api, talk
from tests.conformance.registry import Check, Row
from tests.conformance.rows import anthropic, responses_api
from tests.conformance.rows.structured import COUNTRY, SCHEMA
from tests.conformance.sse import read_json

COUNT = "Count from 1 to 10."
FRANCE = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint, with the smallest body that it accepts."""

    path: str
    body: dict[str, Any]
    model: type[BaseModel]

    def send(self, api: Api, **parameters: Any) -> dict[str, Any]:
        """Return what the endpoint answers; any error fails the row."""
        return api.ask("POST", self.path, {**self.body, **parameters})

    def refuses(self, api: Api, name: str, value: Any) -> None:
        """With a 400 that names the parameter; Anthropic's errors have no field for it."""
        response = api.http.post(self.path, json={**self.body, name: value})
        assert response.status_code == 400, f"{name} {str(value)[:80]}: {response.status_code} {response.text[:300]}"
        error = read_json(response.content)["error"]
        assert name in error["message"], error
        if "param" in error:
            assert (error["param"] or "").startswith(name), error


PLACES: Mapping[Endpoint, Place] = {
    "completions": Place("/v1/completions", {"prompt": "x", "max_tokens": 1}, CompletionBody),
    "chat": Place("/v1/chat/completions", {"messages": talk("x"), "max_completion_tokens": 1}, ChatBody),
    "responses": Place("/v1/responses", {"input": "x", "max_output_tokens": 1}, ResponseBody),
    "messages": Place("/v1/messages", {"messages": talk("x"), "max_tokens": 1}, MessagesBody),
    "embeddings": Place("/v1/embeddings", {"input": "x"}, EmbeddingBody),
    "rerank": Place("/v1/rerank", {"query": "x", "documents": ["x"]}, RerankBody),
    "score": Place("/v1/score", {"text_1": "x", "text_2": "x"}, ScoreBody),
}

# By the endpoint where the effect is seen, and the parameter; `text` is completions and chat together.
EFFECTS: dict[tuple[str, str], tuple[str, Check]] = {}


def effect(name: str, text: str, at: str = "text") -> Callable[[Check], Check]:
    """Registers how it is seen that a supported parameter does something."""

    def register(check: Check) -> Check:
        assert (at, name) not in EFFECTS, f"two effects of {name}"
        EFFECTS[at, name] = (text, check)
        return check

    return register


def parameter_rows() -> list[Row]:
    """One for each parameter; one without an effect gets a row that fails."""
    table = parameter_table({endpoint: place.model for endpoint, place in PLACES.items()})
    names = [parameter.name for parameter in table]
    return [_row_of(parameter, is_only=names.count(parameter.name) == 1) for parameter in table]


def key_of(parameter: ParameterRow) -> tuple[str, str]:
    is_text = not {"completions", "chat"}.isdisjoint(parameter.endpoints)
    return ("text" if is_text else parameter.endpoints[0], parameter.name)


def _row_of(parameter: ParameterRow, *, is_only: bool) -> Row:
    """A name with several meanings has the first endpoint of each in its rows' names."""
    name = f"parameters.{parameter.name}" + ("" if is_only else f".{parameter.endpoints[0]}")
    where = f"`{parameter.name}` ({', '.join(parameter.endpoints)})"
    if parameter.support == "ignored":
        return Row(name, f"{where} is accepted with any value", lambda api: check_ignored(api, parameter))
    if parameter.support == "refused":
        return Row(name, f"{where} is a 400 that names it", lambda api: check_refused(api, parameter))
    text, check = EFFECTS.get(key_of(parameter), ("has no check", fail))

    def check_supported(api: Api) -> None:
        check(api)
        check_accepted(api, parameter)
        check_bounds(api, parameter)

    return Row(name, f"{where}: {text}", check_supported)


def fail(_: Api) -> None:
    raise AssertionError("no effect is registered for this parameter")


def check_ignored(api: Api, parameter: ParameterRow) -> None:
    for endpoint in parameter.endpoints:
        for value in ("x", 5, {"a": ["b"]}, True):
            PLACES[endpoint].send(api, **{parameter.name: value})


def check_refused(api: Api, parameter: ParameterRow) -> None:
    for endpoint in parameter.endpoints:
        PLACES[endpoint].refuses(api, parameter.name, [{"a": "b"}])


def schema_at(endpoint: Endpoint, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = PLACES[endpoint].model.model_json_schema()["properties"][name]
    return schema


def check_accepted(api: Api, parameter: ParameterRow) -> None:
    """Its default, said aloud, is no news to the server; null neither."""
    for endpoint in parameter.endpoints:
        default = schema_at(endpoint, parameter.name).get("default")
        if default is not None and parameter.name not in PLACES[endpoint].body and default != []:
            PLACES[endpoint].send(api, **{parameter.name: default})
        if parameter.name not in PLACES[endpoint].body:
            PLACES[endpoint].send(api, **{parameter.name: None})


def check_bounds(api: Api, parameter: ParameterRow) -> None:
    """Check that what is beyond the schema, or of another type, is refused by name."""
    for endpoint in parameter.endpoints:
        for value in wrong_values(schema_at(endpoint, parameter.name)):
            PLACES[endpoint].refuses(api, parameter.name, value)


def wrong_values(schema: dict[str, Any]) -> Iterator[Any]:
    """One of a wrong type, and one beyond each bound."""
    options = [option for option in [schema, *schema.get("anyOf", [])] if option.get("type") != "null"]
    kinds = {option.get("type", "object") for option in options if "anyOf" not in option}
    yield "1.5" if "number" in kinds else 1.5
    for option in options:
        if "minimum" in option:
            yield option["minimum"] - 1
        if "exclusiveMinimum" in option:
            yield option["exclusiveMinimum"]
        if "maximum" in option:
            yield option["maximum"] + 1
        yield from wrong_sizes(option)


def wrong_sizes(option: dict[str, Any]) -> Iterator[Any]:
    if "maxLength" in option:
        yield "x" * (option["maxLength"] + 1)
    if option.get("minLength"):
        yield ""
    if option.get("minItems"):
        yield []
    if "maxProperties" in option:
        yield {str(number): 1 for number in range(option["maxProperties"] + 1)}
    entries: dict[str, Any] = {"string": "x", "integer": 1, "object": {}, "array": [1]}
    if "maxItems" in option:
        yield [entries[option["items"].get("type", "object")]] * (option["maxItems"] + 1)


def text_of(answer: dict[str, Any], index: int = 0) -> str:
    choice = answer["choices"][index]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


def ids_of(answer: dict[str, Any]) -> list[int]:
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


def run(api: Api, **body: Any) -> list[int]:
    """12 tokens, past the end of the answer."""
    return ids_of(api.complete(max_tokens=12, ignore_eos=True, return_token_ids=True, **body))


def draw(api: Api, seed: int, **body: Any) -> list[int]:
    """As `run`, from a very flat distribution."""
    return run(api, **{"temperature": 2, "seed": seed, **body})


@effect("model", "the served name is accepted and comes back; another is a 404")
def model(api: Api) -> None:
    assert api.chat(model=api.model["id"], max_tokens=1)["model"] == api.model["id"]
    assert api.refuse_chat(404, model="x")["param"] == "model"


@effect("n", "gives as many choices, which differ when they are drawn")
def n(api: Api) -> None:
    answer = api.complete(n=4, temperature=2, max_tokens=20, ignore_eos=True)
    assert len({choice["text"] for choice in answer["choices"]}) == 4
    assert len(api.chat(n=3, max_tokens=2)["choices"]) == 3


@effect("stream", "answers with events that join to the whole answer")
def stream(api: Api) -> None:
    chunks = api.complete_stream(max_tokens=12)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text_of(api.complete(max_tokens=12))


@effect("stream_options", "knows `include_usage`, `continuous_usage_stats`, `include_timing`, `include_obfuscation`")
def stream_options(api: Api) -> None:
    for name in ("include_usage", "continuous_usage_stats", "include_timing"):
        assert api.complete_stream(stream_options={name: True})[-1]["usage"], name
    api.complete_stream(stream_options={"include_obfuscation": True})
    assert api.refuse_completion(stream=True, stream_options={"x": 1})["param"] == "stream_options.x"


@effect("temperature", "0 always takes the likeliest token; 2 draws")
def temperature(api: Api) -> None:
    assert run(api, temperature=0) == run(api, temperature=0)
    assert len({tuple(draw(api, seed)) for seed in range(3)}) == 3
    logprobs = api.complete(logprobs=1, max_tokens=12)["choices"][0]["logprobs"]
    for logprob, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert logprob == max(top.values())


@effect("top_p", "close to 0 leaves the likeliest token alone")
def top_p(api: Api) -> None:
    assert draw(api, 1, top_p=0.0001) == run(api)
    assert draw(api, 1) != run(api)


@effect("top_k", "1 leaves the likeliest token alone; 0 and -1 leave all")
def top_k(api: Api) -> None:
    assert draw(api, 1, top_k=1) == run(api)
    assert draw(api, 1, top_k=0) == draw(api, 1, top_k=-1) == draw(api, 1)


@effect("min_p", "1 leaves the likeliest token alone; 0 leaves all")
def min_p(api: Api) -> None:
    assert draw(api, 1, min_p=1) == run(api)
    assert draw(api, 1, min_p=0) == draw(api, 1)


def penalized(api: Api, prompt: str, **penalty: float) -> tuple[list[str], list[dict[str, float]]]:
    """The tokens, and the likeliest 20 at each place."""
    answer = api.complete(prompt, logprobs=20, max_tokens=40, ignore_eos=True, **penalty)
    logprobs = answer["choices"][0]["logprobs"]
    return logprobs["tokens"], logprobs["top_logprobs"]


def check_penalty(api: Api, name: str, cost: Callable[[int], float]) -> None:
    """At each place the token is the best of the likeliest, less what those generated before cost."""
    for strength in (-1.0, 0.5, 1.0, 2.0):
        for prompt in ("one two one two one two", "Once upon a time", COUNT):
            check_choices(*penalized(api, prompt, **{name: strength}), lambda count: strength * cost(count))  # noqa: B023


def check_choices(tokens: list[str], tops: list[dict[str, float]], cost: Callable[[int], float]) -> None:
    for place, (token, top) in enumerate(zip(tokens, tops, strict=True)):
        scores = {other: logprob - cost(tokens[:place].count(other)) for other, logprob in top.items()}
        assert scores[token] >= max(scores.values()) - 1e-3


@effect("presence_penalty", "takes so much from the log-probability of every token that was generated before")
def presence_penalty(api: Api) -> None:
    check_penalty(api, "presence_penalty", lambda count: float(count > 0))


@effect("frequency_penalty", "takes so much for each time that a token was generated before")
def frequency_penalty(api: Api) -> None:
    check_penalty(api, "frequency_penalty", float)


@effect("repetition_penalty", "100 leaves no token of the prompt or the answer to be repeated")
def repetition_penalty(api: Api) -> None:
    answer = api.complete(COUNT, max_tokens=24, ignore_eos=True, return_token_ids=True, repetition_penalty=100)
    assert len(set(ids_of(answer))) == 24
    assert not set(ids_of(answer)) & set(api.tokens(COUNT))


@effect("logit_bias", "100 forces a token and -100 rules one out")
def logit_bias(api: Api) -> None:
    first = run(api)[0]
    assert set(run(api, logit_bias={"40": 100})) == {40}
    assert first not in run(api, logit_bias={str(first): -100})


@effect("seed", "the same one repeats an answer, another changes it; up to 64 bits, signed or not")
def seed(api: Api) -> None:
    assert draw(api, 7) == draw(api, 7) != draw(api, 8)
    for extreme in (-9_223_372_036_854_776_000, 2**64 - 1):
        assert draw(api, extreme) == draw(api, extreme)


@effect("stop", "a string or up to four end the answer")
def stop(api: Api) -> None:
    whole = text_of(api.chat(COUNT))
    for given in ("4", ["9", "4"]):
        assert text_of(api.chat(COUNT, stop=given)) == whole.partition("4")[0]


@effect("stop_token_ids", "end the answer, and are named as `stop_reason`")
def stop_token_ids(api: Api) -> None:
    third = run(api)[2]
    answer = api.complete(max_tokens=24, stop_token_ids=[third], return_token_ids=True)
    assert answer["choices"][0]["stop_reason"] == third
    assert ids_of(answer) == run(api)[: run(api).index(third) + 1]


@effect("min_tokens", "keeps the answer from ending before")
def min_tokens(api: Api) -> None:
    short = api.chat(FRANCE)["usage"]["completion_tokens"]
    assert api.chat(FRANCE, min_tokens=short + 9)["usage"]["completion_tokens"] >= short + 9


@effect("ignore_eos", "goes on to the limit")
def ignore_eos(api: Api) -> None:
    answer = api.chat(FRANCE, ignore_eos=True, max_tokens=60)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (60, "length")


@effect("include_stop_str_in_output", "keeps the stop string")
def include_stop_str_in_output(api: Api) -> None:
    assert text_of(api.chat(COUNT, stop="4", include_stop_str_in_output=True)).endswith("4")


@effect("skip_special_tokens", "false shows them in the text")
def skip_special_tokens(api: Api) -> None:
    body: dict[str, Any] = {"ignore_eos": True, "max_tokens": 40}
    assert "<|im_end|>" in text_of(api.chat(FRANCE, skip_special_tokens=False, **body))
    assert "<|im_end|>" not in text_of(api.chat(FRANCE, **body))


@effect("prompt_logprobs", "gives for each token of the prompt its log-probability, its rank and k alternatives")
def prompt_logprobs(api: Api) -> None:
    ids = api.tokens("The capital of France")
    answer = api.complete("The capital of France", prompt_logprobs=2)
    first, *others = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    for token_id, entry in zip(ids[1:], others, strict=True):
        assert {"logprob", "rank", "decoded_token"} == set(entry[str(token_id)])
        assert 2 <= len(entry) <= 3
    assert len(api.chat(FRANCE, prompt_logprobs=0)["prompt_logprobs"]) > len(ids)


@effect("return_token_ids", "adds the ids of prompt and answer")
def return_token_ids(api: Api) -> None:
    [choice] = api.complete("Once", return_token_ids=True, skip_special_tokens=False)["choices"]
    assert choice["prompt_token_ids"] == api.tokens("Once")
    assert api.ask("POST", "/detokenize", {"tokens": choice["token_ids"]})["prompt"] == choice["text"]


@effect("truncate_prompt_tokens", "keeps the last k tokens of the prompt; -1 what the context allows")
def truncate_prompt_tokens(api: Api) -> None:
    ids = api.tokens(COUNT)
    answer = api.complete(COUNT, truncate_prompt_tokens=3, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == ids[-3:]
    long = api.complete([7] * 5000, truncate_prompt_tokens=-1, max_tokens=10, ignore_eos=True)
    assert long["usage"]["total_tokens"] == api.model["max_model_len"]


@effect("priority", "the lower of two that wait runs first, whichever came first")
def priority(api: Api) -> None:
    for given in ((-(2**31), 2**31 - 1), (7, -7)):
        assert order_of(api, given) == sorted(given)


def order_of(api: Api, priorities: tuple[int, int]) -> list[int]:
    """The order in which requests end that wait, in the order given, for the one slot."""
    ends: list[int] = []

    def run_with(given: int) -> None:
        api.small.api.complete(priority=given, max_tokens=32, ignore_eos=True)
        ends.append(given)

    with ThreadPoolExecutor() as threads, api.small.busy():
        for number, given in enumerate(priorities, start=1):
            threads.submit(run_with, given)
            api.small.wait_for_queue(number)
    return ends


@effect("cache_salt", "keeps cached prefixes to those with the same salt")
def cache_salt(api: Api) -> None:
    def cached(salt: str) -> int:
        usage = api.complete("Salted words. " * 40, max_tokens=1, cache_salt=salt)["usage"]
        count: int = usage["prompt_tokens_details"]["cached_tokens"]
        return count

    salt = f"salt of {api.complete(max_tokens=1)['id']}"
    assert cached(salt) == 0
    assert cached(salt) > 0
    assert cached(f"another {salt}") == 0


@effect("timeout", "ends a request that takes longer with 408")
def timeout(api: Api) -> None:
    api.complete(max_tokens=1, timeout=60)
    assert api.refuse_completion(408, timeout=0.03, max_tokens=1500, ignore_eos=True)["type"] == "timeout"


@effect("prompt", "is required")
def prompt(api: Api) -> None:
    assert api.refuse("/v1/completions", {})["param"] == "prompt"


@effect("max_tokens", "ends the answer with `length`")
def max_tokens(api: Api) -> None:
    for answer in (api.complete(max_tokens=5, ignore_eos=True), api.chat(max_tokens=5, ignore_eos=True)):
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (5, "length")


@effect("best_of", "answers with the n likeliest of so many; less than n is refused, and so is streaming it")
def best_of(api: Api) -> None:
    def mean(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return float(sum(values) / len(values))

    body: dict[str, Any] = {"temperature": 2, "seed": 4, "max_tokens": 8, "logprobs": 0, "ignore_eos": True}
    every = api.complete(n=6, **body)["choices"]
    best = api.complete(n=2, best_of=6, **body)["choices"]
    wanted = sorted(every, key=mean, reverse=True)[:2]
    assert [choice["text"] for choice in best] == [choice["text"] for choice in wanted]
    assert [choice["index"] for choice in best] == [0, 1]
    assert api.refuse_completion(n=3, best_of=2)["param"] == "best_of"
    assert api.refuse_completion(best_of=2, stream=True)["param"] == "best_of"


@effect("echo", "puts the prompt before the answer")
def echo(api: Api) -> None:
    assert text_of(api.complete("Once", echo=True)) == "Once" + text_of(api.complete("Once"))


@effect("logprobs", "a number for completions, true for chat, gives those of every token")
def logprobs(api: Api) -> None:
    assert api.complete(logprobs=2)["choices"][0]["logprobs"]["tokens"]
    assert api.chat(logprobs=True)["choices"][0]["logprobs"]["content"]


@effect("top_logprobs", "gives so many alternatives, and needs `logprobs`")
def top_logprobs(api: Api) -> None:
    content = api.chat(logprobs=True, top_logprobs=20)["choices"][0]["logprobs"]["content"]
    assert {len(entry["top_logprobs"]) for entry in content} == {20}
    assert api.refuse_chat(top_logprobs=2)["param"] == "top_logprobs"


@effect("add_special_tokens", "tokenizes as /tokenize does with the same value")
def add_special_tokens(api: Api) -> None:
    for value in (True, False):
        asked = {"add_special_tokens": value}
        count = api.ask("POST", "/tokenize", {"prompt": "Once", **asked})["count"]
        assert api.complete("Once", **asked)["usage"]["prompt_tokens"] == count
        count = api.ask("POST", "/tokenize", {"messages": talk("Hi"), **asked})["count"]
        assert api.chat("Hi", **asked)["usage"]["prompt_tokens"] == count


@effect("messages", "what was said before is part of the question")
def messages(api: Api) -> None:
    before = [{"role": "user", "content": "My name is Emma."}, {"role": "assistant", "content": "Hello, Emma!"}]
    answer = api.chat([*before, {"role": "user", "content": "What is my name?"}])
    assert "Emma" in text_of(answer)


@effect("max_completion_tokens", "ends the answer with `length`")
def max_completion_tokens(api: Api) -> None:
    answer = api.chat(max_completion_tokens=4, ignore_eos=True)
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (4, "length")


@effect("reasoning_effort", "is accepted, for templates that use it")
def reasoning_effort(api: Api) -> None:
    for given in ("minimal", "low", "medium", "high"):
        api.chat(reasoning_effort=given, max_tokens=1)


@effect("reasoning", "`effort` and `enabled` are accepted, for templates that use them; two efforts are refused")
def chat_reasoning(api: Api) -> None:
    api.chat(reasoning={"effort": "low", "enabled": True, "exclude": True}, max_tokens=1)
    assert api.refuse_chat(reasoning={"effort": "low"}, reasoning_effort="high")["param"] == "reasoning.effort"


@effect("models", "is content with any of these and `model` that is served")
def models(api: Api) -> None:
    name = api.model["id"]
    assert api.chat(model="x", models=["y", name], max_tokens=1)["model"] == name
    assert api.refuse_chat(404, models=["x"])["param"] == "model"


@effect("usage", "asks for the usage, which a whole answer has anyway")
def usage(api: Api) -> None:
    assert api.chat(usage={"include": True}, max_tokens=1)["usage"]["completion_tokens"] == 1


@effect("include_reasoning", "is accepted, for models that think")
def include_reasoning(api: Api) -> None:
    assert text_of(api.chat(FRANCE, include_reasoning=False)) == text_of(api.chat(FRANCE))


@effect("enable_thinking", "is a variable of the template")
def enable_thinking(api: Api) -> None:
    api.chat(enable_thinking=True, max_tokens=1)
    assert api.refuse_chat(enable_thinking=True, thinking={"type": "disabled"})["param"] == "thinking"


@effect("thinking", "`enabled` and `disabled` are accepted, for templates that use them")
def chat_thinking(api: Api) -> None:
    for given in ("enabled", "disabled"):
        api.chat(thinking={"type": given}, max_tokens=1)


@effect("thinking_budget", "is accepted, for models that think; two budgets are refused")
def thinking_budget(api: Api) -> None:
    for given in (-1, 0, 20):
        api.chat(thinking_budget=given, reasoning={"max_tokens": given} if given >= 0 else None, max_tokens=1)
    assert api.refuse_chat(thinking_budget=5, reasoning={"max_tokens": 6})["param"] == "reasoning.max_tokens"


@effect("thinking_token_budget", "is the same")
def thinking_token_budget(api: Api) -> None:
    api.chat(thinking_token_budget=5, thinking_budget=5, max_tokens=1)
    refused = api.refuse_chat(thinking_token_budget=5, thinking_budget=6)
    assert refused["param"] == "thinking_token_budget"


@effect("add_generation_prompt", "false leaves out the opening of the answer")
def add_generation_prompt(api: Api) -> None:
    bodies = [{"add_generation_prompt": value, "return_token_ids": True, "max_tokens": 1} for value in (True, False)]
    opened, bare = (api.chat("Hi", **body)["prompt_token_ids"] for body in bodies)
    assert len(bare) < len(opened)
    assert opened[: len(bare)] == bare


@effect("continue_final_message", "goes on with the last message")
def continue_final_message(api: Api) -> None:
    whole = text_of(api.chat(FRANCE))
    start = whole[: whole.index("Paris")].rstrip()
    turns = [*talk(FRANCE), {"role": "assistant", "content": start}]
    assert start + text_of(api.chat(turns, continue_final_message=True)) == whole


@effect("chat_template_kwargs", "are variables of the template; those that the server sets are refused")
def chat_template_kwargs(api: Api) -> None:
    api.chat(chat_template_kwargs={"style": "dry"}, max_tokens=1)
    assert api.refuse_chat(chat_template_kwargs={"messages": []})["param"] == "chat_template_kwargs"


@effect("bad_words", "are never generated, with or without a space before them")
def bad_words(api: Api) -> None:
    assert "Paris" in text_of(api.chat(FRANCE))
    assert "Paris" not in text_of(api.chat(FRANCE, bad_words=["Paris"], max_tokens=40))


@effect("allowed_token_ids", "leaves these tokens alone; ids outside the vocabulary are refused")
def allowed_token_ids(api: Api) -> None:
    assert set(draw(api, 1, allowed_token_ids=[40, 41, 42])) <= {40, 41, 42}
    assert api.refuse_completion(allowed_token_ids=[10**6])["param"] == "allowed_token_ids"


@effect("response_format", "`text` changes nothing; an unknown type is refused by its place")
def response_format(api: Api) -> None:
    assert api.chat(response_format={"type": "text"})["choices"] == api.chat()["choices"]
    assert api.refuse_chat(response_format={"type": "xml"})["param"].startswith("response_format")


@effect("structured_outputs", "takes one constraint, not none or two")
def structured_outputs(api: Api) -> None:
    assert text_of(api.complete(structured_outputs={"choice": ["left", "right"]})) in {"left", "right"}
    for wrong in ({}, {"choice": ["a"], "regex": "a"}, {"xml": "a"}):
        assert (api.refuse_completion(structured_outputs=wrong)["param"] or "").startswith("structured_outputs")


@effect("tools", "may be called by the model; a list of something else is refused by its place")
def tools(api: Api) -> None:
    assert api.chat(tools=[])["choices"] == api.chat()["choices"]
    assert api.refuse_chat(tools=[{"type": "function"}])["param"].startswith("tools[0]")


@effect("tool_choice", "needs tools, and one of its four forms")
def tool_choice(api: Api) -> None:
    assert api.chat(tool_choice="none")["choices"] == api.chat()["choices"]
    for wrong in ("required", {"type": "function", "function": {"name": "f"}}, "sometimes"):
        assert api.refuse_chat(tool_choice=wrong)["param"].startswith("tool_choice")


@effect("parallel_tool_calls", "is true or false")
def parallel_tool_calls(api: Api) -> None:
    for value in (True, False):
        assert api.chat(parallel_tool_calls=value)["choices"] == api.chat()["choices"]


@effect("input", "is required", at="responses")
def response_input(api: Api) -> None:
    assert api.refuse("/v1/responses", {})["param"] == "input"


@effect("instructions", "are a system message before the conversation, and come back", at="responses")
def instructions(api: Api) -> None:
    response = api.respond(FRANCE, instructions="Be brief.")
    chat = api.chat([{"role": "system", "content": "Be brief."}, *talk(FRANCE)])
    assert response["instructions"] == "Be brief."
    assert response["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]


@effect("max_output_tokens", "ends the response, which then is incomplete", at="responses")
def max_output_tokens(api: Api) -> None:
    response = api.respond(max_output_tokens=3, ignore_eos=True)
    assert (response["usage"]["output_tokens"], response["status"]) == (3, "incomplete")


@effect("stream_options", "knows `include_obfuscation`, only with `stream`", at="responses")
def response_stream_options(api: Api) -> None:
    responses_api.events_of(api, stream_options={"include_obfuscation": False})
    assert api.refuse("/v1/responses", {"input": "x", "stream_options": {}})["param"] == "stream_options"


@effect("text", "its `format` is what the text matches; a wrong one is refused by its place", at="responses")
def text_options(api: Api) -> None:
    responses_api.structured(api)
    wrong = {"format": {"type": "json_schema", "name": "x"}}
    assert (api.refuse("/v1/responses", {"input": "x", "text": wrong})["param"] or "").startswith("text.format")


@effect("top_logprobs", "gives so many alternatives to each token of the text", at="responses")
def response_logprobs(api: Api) -> None:
    [part] = api.respond(FRANCE, top_logprobs=2)["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]).startswith(part["text"])
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}


@effect("include", "`message.output_text.logprobs` adds them; what is no such part is refused", at="responses")
def include(api: Api) -> None:
    [part] = api.respond(FRANCE, include=["message.output_text.logprobs"])["output"][0]["content"]
    assert part["logprobs"]
    assert (api.refuse("/v1/responses", {"input": "x", "include": ["x"]})["param"] or "").startswith("include")


@effect("reasoning", "`effort` is accepted, for templates that use it, and comes back", at="responses")
def reasoning(api: Api) -> None:
    assert api.respond(reasoning={"effort": "low"}, max_output_tokens=1)["reasoning"]["effort"] == "low"


@effect("truncation", "`auto` keeps what the context allows; without it too much is refused", at="responses")
def truncation(api: Api) -> None:
    long = "one two three four " * api.model["max_model_len"]
    assert api.respond(long, truncation="auto", max_output_tokens=4)["usage"]["output_tokens"] <= 4
    assert api.refuse("/v1/responses", {"input": long})["code"] == "context_length_exceeded"


@effect("metadata", "comes back in the response", at="responses")
def metadata(api: Api) -> None:
    assert api.respond(metadata={"topic": "tests"}, max_output_tokens=1)["metadata"] == {"topic": "tests"}


@effect("system", "goes before the conversation", at="messages")
def system(api: Api) -> None:
    anthropic.system(api)


@effect("max_tokens", "is required, and ends the message with `max_tokens`", at="messages")
def message_limit(api: Api) -> None:
    assert anthropic.send(api, max_tokens=3)["usage"]["output_tokens"] == 3
    assert "max_tokens" in anthropic.refuse(api, max_tokens=None)["message"]


@effect("stop_sequences", "end the message, and which it was is told", at="messages")
def stop_sequences(api: Api) -> None:
    anthropic.stop_reasons(api)


@effect("tools", "may be called by the model", at="messages")
def message_tools(api: Api) -> None:
    anthropic.tools(api)


@effect("tool_choice", "`tool` and `any` are enforced, `none` makes no call", at="messages")
def message_tool_choice(api: Api) -> None:
    timer = {"name": "set_timer", "input_schema": {"type": "object", "properties": {"minutes": {"type": "integer"}}}}
    body: dict[str, Any] = {"tools": [anthropic.TOOL, timer], "max_tokens": 200}
    for choice in ({"type": "tool", "name": "set_timer"}, {"type": "any"}):
        used = anthropic.send(api, "Set a timer for 7 minutes.", tool_choice=choice, **body)
        assert used["content"][0]["type"] == "tool_use"
    silent = anthropic.send(api, "Set a timer for 7 minutes.", tool_choice={"type": "none"}, **body)
    assert {block["type"] for block in silent["content"]} == {"text"}


@effect("thinking", "is accepted, for models that think; a budget is less than `max_tokens`", at="messages")
def thinking(api: Api) -> None:
    for given in ({"type": "enabled", "budget_tokens": 7}, {"type": "disabled"}):
        assert anthropic.send(api, thinking=given, max_tokens=8)["content"]
    refused = anthropic.refuse(api, thinking={"type": "enabled", "budget_tokens": 8}, max_tokens=8)
    assert refused["message"].startswith("thinking.budget_tokens (8)")


def check_message_schema(api: Api, **body: Any) -> None:
    answer = anthropic.send(api, COUNTRY, **body)
    assert json.loads(answer["content"][0]["text"]) == {"country": "France", "capital": "Paris"}


@effect("output_config", "its `format` is what the text matches", at="messages")
def output_config(api: Api) -> None:
    check_message_schema(api, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})


@effect("output_format", "is the older place of the same", at="messages")
def output_format(api: Api) -> None:
    check_message_schema(api, output_format={"type": "json_schema", "schema": SCHEMA})


@effect("input", "is required", at="embeddings")
def embedding_input(api: Api) -> None:
    assert api.refuse("/v1/embeddings", {})["param"] == "input"


@effect("encoding_format", "`float` is a list of numbers, `base64` the same numbers packed", at="embeddings")
def encoding_format(api: Api) -> None:
    kinds = [type(api.embed("x", encoding_format=form)["data"][0]["embedding"]) for form in ("float", "base64")]
    assert kinds == [list, str]


@effect("dimensions", "gives so many numbers", at="embeddings")
def dimensions(api: Api) -> None:
    assert len(api.embed("x", dimensions=5)["data"][0]["embedding"]) == 5
