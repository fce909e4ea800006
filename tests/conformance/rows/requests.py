"""What holds for every request, whatever its parameters."""

import json
from typing import Any

from orcinus.server.apis.chat.body import ChatBody
from orcinus.server.apis.completions.body import CompletionBody
from orcinus.server.requests.bodies import GenerationBody
from orcinus.server.requests.parameters import Endpoint, parameter_table
from tests.conformance.api import Api
from tests.conformance.registry import row

EXTENSIONS = (
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "add_special_tokens", "add_generation_prompt"),
    *("continue_final_message", "chat_template_kwargs", "prompt_logprobs", "return_token_ids", "priority"),
    *("truncate_prompt_tokens", "cache_salt", "structured_outputs"),
)
GENERATION_BODIES: dict[Endpoint, type[GenerationBody]] = {"completions": CompletionBody, "chat": ChatBody}
PATHS = ("/v1/completions", "/v1/chat/completions")


def nulls_of(endpoint: str) -> dict[str, None]:
    names = [row.name for row in parameter_table(GENERATION_BODIES) if endpoint in row.endpoints]
    return dict.fromkeys(name for name in names if name not in {"prompt", "messages", "temperature"})


@row("requests.null.completions", "For completions, null equals absent for every parameter")
def null_completions(api: Api) -> None:
    assert api.complete(**nulls_of("completions"))["choices"] == api.complete()["choices"]


@row("requests.null.chat", "For chat, null equals absent for every parameter")
def null_chat(api: Api) -> None:
    assert api.chat(**nulls_of("chat"))["choices"] == api.chat()["choices"]


@row("requests.unknown", "A parameter that is not known is a 400 that names it")
def unknown(api: Api) -> None:
    assert api.refuse_completion(temprature=1)["param"] == "temprature"
    assert api.refuse_chat(max_token=1)["param"] == "max_token"


GENERATING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 5},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 5},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
}


@row("requests.neutral", "What other servers know is taken at the values that leave it off, on every endpoint")
def neutral(api: Api) -> None:
    off = {"typical_p": 1.0, "mirostat": 0, "num_beams": 1, "early_stopping": False, "guided_json": {}, "n": 1}
    for path, body in GENERATING.items():
        api.ask("POST", path, {**body, **off})


@row("requests.top_p_zero", "`top_p` of 0 is greedy on every endpoint")
def top_p_zero(api: Api) -> None:
    for path, body in GENERATING.items():
        api.ask("POST", path, {**body, "top_p": 0, "temperature": 1})
    wild = api.complete(top_p=0, temperature=2, max_tokens=20)["choices"][0]["text"]
    assert wild == api.complete(max_tokens=20)["choices"][0]["text"]


@row("requests.seeds", "Seeds are taken from one end of OpenAI's document to the other, negative ones too")
def seeds(api: Api) -> None:
    for path, body in GENERATING.items():
        for value in (-9_223_372_036_854_776_000, -1, 9_223_372_036_854_776_000):
            api.ask("POST", path, {**body, "seed": value})


@row("requests.hosted_tools", "Tools that a server would run itself are left out, and named in a header")
def hosted_tools(api: Api) -> None:
    for path in ("/v1/responses", "/v1/chat/completions"):
        response = api.http.post(path, json={**GENERATING[path], "tools": [{"type": "web_search"}]})
        assert response.status_code == 200
        assert response.headers["x-orcinus-left-out"] == "tools[0]=web_search"


@row("requests.extensions", "Every extension that users of other servers send is supported under its usual name")
def extensions(_: Api) -> None:
    supported = {row.name for row in parameter_table(GENERATION_BODIES) if row.support == "supported"}
    assert set(EXTENSIONS) <= supported


@row("requests.model", "An unknown model is 404 `model_not_found`; a missing one means the served model")
def model(api: Api) -> None:
    assert api.complete(max_tokens=1)["model"] == api.complete(max_tokens=1, model=api.model["id"])["model"]
    for error in (api.refuse_completion(404, model="gpt-5"), api.refuse_chat(404, model="gpt-5")):
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
        assert "gpt-5" in error["message"]


@row("requests.stream_options", "`stream_options` without `stream` is a 400")
def stream_options(api: Api) -> None:
    for error in (api.refuse_completion(stream_options={}), api.refuse_chat(stream_options={"include_usage": True})):
        assert error["param"] == "stream_options"


@row("requests.context", "Prompt and `max_tokens` over the context are `context_length_exceeded` with both numbers")
def context(api: Api) -> None:
    length = api.model["max_model_len"]
    for refuse in (api.refuse_completion, api.refuse_chat):
        for body in ({"max_tokens": length + 7}, {"max_tokens": length + 7, "stream": True}):
            error = refuse(**body)
            assert error["code"] == "context_length_exceeded"
            assert str(length) in error["message"]
            assert str(length + 7) in error["message"]


@row("requests.long_prompt", "A prompt that is longer than the context alone is `context_length_exceeded` too")
def long_prompt(api: Api) -> None:
    length = api.model["max_model_len"]
    error = api.refuse_completion(prompt=[5] * (length + 1), max_tokens=0)
    assert error["code"] == "context_length_exceeded"
    assert str(length + 1) in error["message"]


@row("requests.prompts", "More than 256 prompts, or prompts times n over the cap, are refused with the limit")
def too_many(api: Api) -> None:
    error = api.refuse_completion(prompt=["x"] * 257)
    assert (error["param"], "256" in error["message"], "257" in error["message"]) == ("prompt", True, True)
    error = api.refuse_completion(prompt=["x"] * 200, n=100)
    assert (error["param"], "1024" in error["message"], "20000" in error["message"]) == ("n", True, True)


@row("requests.prompt_shape", "A prompt of another shape is refused: none, empty, mixed with floats, true or null")
def prompt_shapes(api: Api) -> None:
    wrong: list[Any] = [None, [], 5, [1.5], [True], {"a": 1}, [[1], ["x"]]]
    for prompt in wrong:
        assert api.refuse("/v1/completions", {"prompt": prompt})["param"] == "prompt", prompt


@row("requests.messages", "Messages without a known role or with content that is no text are refused by their place")
def messages(api: Api) -> None:
    for message, place in (
        ({"content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "messages[0].content[0]"),
    ):
        assert api.refuse("/v1/chat/completions", {"messages": [message]})["param"] == place


@row("requests.message_parts", "Content may be a list of text parts, and developer is another name of system")
def parts(api: Api) -> None:
    question = "What is the capital of France?"
    split = [{"type": "text", "text": question[:9]}, {"type": "text", "text": question[9:]}]
    assert api.chat([{"role": "user", "content": split}])["choices"] == api.chat(question)["choices"]
    answers = [
        api.chat([{"role": role, "content": "Be brief."}, {"role": "user", "content": question}])["choices"]
        for role in ("system", "developer")
    ]
    assert answers[0] == answers[1]


@row("requests.finite", "Numbers are finite: NaN and Infinity are no JSON, and 1e999 is refused")
def finite(api: Api) -> None:
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        api.refuse("/v1/completions", b'{"prompt":"x","temperature":%b}' % number)


@row("requests.json", "A body that is no JSON, no object, or names a parameter twice is a 400")
def malformed(api: Api) -> None:
    for body in (b"", b"{", b"[]", b'"x"', b"null", b'{"prompt":"x","prompt":"y"}', b'{"prompt":"\xff"}'):
        for path in PATHS:
            assert api.refuse(path, body)["type"] == "invalid_request_error"


@row("requests.depth", "A body that nests deeper than the limit is a 400 that gives it")
def depth(api: Api) -> None:
    deep = json.dumps({"prompt": "x"})[:-1].encode() + b',"metadata":' + b"[" * 100 + b"]" * 100 + b"}"
    assert "64" in api.refuse("/v1/completions", deep)["message"]


@row("requests.openapi", "The OpenAPI document gives the bounds: n, prompts, top_logprobs, stop, seed")
def bounds(api: Api) -> None:
    schemas = api.openapi["components"]["schemas"]
    completion, chat = schemas["CompletionBody"]["properties"], schemas["ChatBody"]["properties"]
    assert completion["n"]["maximum"] == chat["n"]["maximum"] == 128
    assert {option.get("maxItems") for option in completion["prompt"]["anyOf"]} >= {256}
    assert bound_of(chat["top_logprobs"], "maximum") == bound_of(completion["logprobs"], "maximum") == 20
    assert bound_of(chat["stop"], "maxItems") == 4
    assert bound_of(chat["seed"], "minimum") == -9_223_372_036_854_776_000
    assert bound_of(chat["seed"], "maximum") == 2**64 - 1


def bound_of(schema: dict[str, Any], name: str) -> Any:
    [found] = [option[name] for option in [schema, *schema.get("anyOf", [])] if name in option]
    return found


@row("requests.seed_is_local", "A seed is that of its request: what comes after it without one still varies")
def seed(api: Api) -> None:
    def draw(**body: Any) -> str:
        text: str = api.complete(temperature=2, max_tokens=30, ignore_eos=True, **body)["choices"][0]["text"]
        return text

    assert draw(seed=5) == draw(seed=5)
    assert draw() != draw()


@row("requests.id", "A client's `x-request-id` comes back, and without one there is a new one")
def request_id(api: Api) -> None:
    assert api.http.get("/version", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert api.http.get("/version").headers["x-request-id"] != api.http.get("/version").headers["x-request-id"]
