"""What lies behind each path."""

from openai.types import Model

from tests.conformance.api import USER_KEY, Api, error_of, talk
from tests.conformance.registry import row
from tests.conformance.rows import anthropic
from tests.conformance.schema import check_type

CHAT = "What is the capital of France?"
PUBLIC = ("/live", "/ready", "/health", "/metrics", "/", "/docs", "/openapi.json")


@row(
    "completions.prompt",
    "A prompt is a string, a list of strings, token ids, or lists of them; each gives the same answer",
)
def prompts(api: Api) -> None:
    ids = api.tokens("Once upon a time")
    [alone] = api.complete("Once upon a time")["choices"]
    for prompt, count in ((["Once upon a time"] * 2, 2), (ids, 1), ([ids, ids, ids], 3)):
        choices = api.complete(prompt)["choices"]
        assert [choice["text"] for choice in choices] == [alone["text"]] * count
        assert [choice["index"] for choice in choices] == list(range(count))


@row("completions.max_tokens", "`max_tokens` is 16 if it is absent, and 0 is legal")
def default_limit(api: Api) -> None:
    assert api.complete(ignore_eos=True)["usage"]["completion_tokens"] == 16
    nothing = api.complete(max_tokens=0)
    assert nothing["usage"]["completion_tokens"] == 0
    assert (nothing["choices"][0]["text"], nothing["choices"][0]["finish_reason"]) == ("", "length")


@row("chat.template", "Messages go through the model's chat template, as /tokenize shows it")
def template(api: Api) -> None:
    rendered = api.ask("POST", "/tokenize", {"messages": talk(CHAT)})
    assert rendered["count"] > len(api.tokens(CHAT))
    answer = api.chat(CHAT, return_token_ids=True)
    assert answer["prompt_token_ids"] == rendered["tokens"]
    assert answer["usage"]["prompt_tokens"] == rendered["count"]


@row("chat.answer", "The demo model answers a question that it knows the answer of, and stops by itself")
def answer(api: Api) -> None:
    [choice] = api.chat(CHAT)["choices"]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


@row("chat.max_tokens", "`max_completion_tokens` and `max_tokens` are one limit; two different ones are a 400")
def two_names(api: Api) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 3, "max_completion_tokens": 3}):
        answer = api.chat(CHAT, **limit)
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["choices"][0]["finish_reason"] == "length"
    assert api.refuse_chat(max_tokens=3, max_completion_tokens=4)["param"] == "max_tokens"


@row("chat.rest", "Without a limit the answer may fill the context, no more and no less")
def rest_of_context(api: Api) -> None:
    length = api.model["max_model_len"]
    filler = "one two three four " * length
    answer = api.chat(filler, truncate_prompt_tokens=length - 20, ignore_eos=True)
    assert answer["usage"]["total_tokens"] == length
    assert answer["choices"][0]["finish_reason"] == "length"


@row("models.list", "GET /v1/models lists what is served, in the SDK's type")
def list_models(api: Api) -> None:
    answer = api.ask("GET", "/v1/models")
    assert answer["object"] == "list"
    assert [check_type(Model, entry)["id"] for entry in answer["data"]]


@row("models.retrieve", "GET /v1/models/{id} gives that entry; an unknown id, slashes included, is a 404")
def retrieve_model(api: Api) -> None:
    assert api.ask("GET", f"/v1/models/{api.model['id']}") == api.model
    for name in ("nothing", "no/such-model"):
        assert error_of(api.http.get(f"/v1/models/{name}"), 404)["code"] == "model_not_found"


@row("tokenize.text", "POST /tokenize gives ids, their number and the context length; with the tokens' text if asked")
def tokenize(api: Api) -> None:
    answer = api.ask("POST", "/tokenize", {"prompt": "Hello, world!", "return_token_strs": True})
    assert set(answer) == {"count", "max_model_len", "tokens", "token_strs"}
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == api.model["max_model_len"]
    assert "".join(answer["token_strs"]) == "Hello, world!"


@row("tokenize.bad", "/tokenize wants either a prompt or messages, and /detokenize ids of the vocabulary")
def bad_tokens(api: Api) -> None:
    assert api.refuse("/tokenize", {})["param"] == "prompt"
    assert api.refuse("/tokenize", {"prompt": "x", "messages": talk("x")})["param"] == "prompt"
    assert api.refuse("/detokenize", {"tokens": [10**6]})["param"] == "tokens"


@row("detokenize.text", "POST /detokenize gives back the text of ids, special tokens included unless told otherwise")
def detokenize(api: Api) -> None:
    text = "Zoë has 2 cats 🐱 – really."
    assert api.ask("POST", "/detokenize", {"tokens": api.tokens(text)}) == {"prompt": text}
    chat = api.ask("POST", "/tokenize", {"messages": talk("Hi")})["tokens"]
    whole = api.ask("POST", "/detokenize", {"tokens": chat})["prompt"]
    bare = api.ask("POST", "/detokenize", {"tokens": chat, "skip_special_tokens": True})["prompt"]
    assert "Hi" in bare
    assert len(bare) < len(whole)


@row("probes", "/live, /ready, /health and /version answer, and /health is /ready")
def probes(api: Api) -> None:
    assert api.ask("GET", "/live") == {"status": "live"}
    assert api.ask("GET", "/ready") == api.ask("GET", "/health") == {"status": "ready"}
    assert list(api.ask("GET", "/version")) == ["version"]


@row("metrics", "/metrics is Prometheus text, on without being asked for, and counts what is generated")
def metrics(api: Api) -> None:
    before = api.metric("orcinus_generation_tokens_total")
    api.complete(max_tokens=5, ignore_eos=True)
    assert api.metric("orcinus_generation_tokens_total") >= before + 5


@row("head", "HEAD is answered wherever GET is, as GET without the body")
def head(api: Api) -> None:
    for path in ("/", "/docs", "/openapi.json", "/live", "/ready", "/health", "/version", "/v1/models", "/metrics"):
        got, asked = api.http.get(path), api.http.head(path)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-type"] == got.headers["content-type"]
    assert api.http.head("/v1/models/no-such").status_code == 404


@row(
    "auth",
    "With a key set, every route asks for it but the probes, /metrics and the pages; a wrong key is a 401 like none",
)
def auth(api: Api) -> None:
    known, url = api.small.api, api.small.process.url
    with Api(url) as anonymous, Api(url, "wrong") as wrong:
        for path, methods in known.openapi["paths"].items():
            for method in methods:
                asked = path.replace("{model}", known.model["id"])
                with known.http.stream(method, asked) as answer:  # some have no end
                    assert answer.status_code not in {401, 403}, path
                for stranger in (anonymous, wrong):
                    check_locked(stranger, method, path)
        for path in ("/", "/docs", "/openapi.json", "/nowhere"):
            check_locked(anonymous, "GET", path)


@row("auth.models", "A key that may use other models alone gets a 403 `model_not_found`, as from OpenAI, and sees none")
def forbidden_models(api: Api) -> None:
    with Api(api.small.process.url, USER_KEY) as user:
        assert user.ask("GET", "/v1/models")["data"] == []
        model = api.small.api.model["id"]
        for method, path, body in (
            ("POST", "/v1/completions", {"model": model, "prompt": "a"}),
            ("POST", "/v1/chat/completions", {"model": model, "messages": talk("a")}),
            ("GET", f"/v1/models/{model}", None),
        ):
            error = error_of(user.http.request(method, path, json=body), 403)
            assert (error["type"], error["code"], error["param"]) == (
                "invalid_request_error",
                "model_not_found",
                "model",
            )


@row("auth.usage", "GET and HEAD /v1/usage tell what named keys have used, to an administrator's key alone")
def usage_of_keys(api: Api) -> None:
    admin = api.small.api
    before = {entry["key"]: entry for entry in admin.ask("GET", "/v1/usage?by=key")["data"]}
    admin.complete(max_tokens=2, ignore_eos=True)
    [entry] = [entry for entry in admin.ask("GET", "/v1/usage?by=key")["data"] if entry["key"] == "conformance"]
    used = before.get("conformance", dict.fromkeys(entry, 0))
    assert (entry["requests"], entry["generated_tokens"]) == (used["requests"] + 1, used["generated_tokens"] + 2)
    assert admin.http.head("/v1/usage").status_code == 200
    assert error_of(admin.http.post("/v1/usage"), 405)["code"] == "method_not_allowed"
    assert error_of(admin.http.get("/v1/usage?by=week"), 400)["param"] == "by"
    with Api(api.small.process.url, USER_KEY) as user:
        assert error_of(user.http.get("/v1/usage"), 403)["code"] == "admin_key_needed"


def check_locked(stranger: Api, method: str, path: str) -> None:
    response = stranger.http.request(method, path)
    if path in PUBLIC:
        assert response.status_code == 200, path
        return
    assert response.headers["www-authenticate"] == "Bearer"
    if path.startswith("/v1/messages"):
        assert anthropic.error_of(response, 401)["type"] == "authentication_error"
        return
    error = error_of(response, 401)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
