"""The server under load: what it is asked in its own protocol, and what has to be known of it before.

Only standard fields are sent, but for what asks to ignore the end of an answer or for top_k. It asks the server for its
model, for ids of ordinary tokens and for how many tokens a word is; each is given up where the server does not say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from orcinus.config.settings import SettingsError
from orcinus.server.load.answers import (
    NOT_JSON,
    AnswerStream,
    LoadError,
    RequestFailedError,
    RequestRecord,
    error_message,
)
from orcinus.server.load.http_client import EVENT_STREAM, HttpClient, Response
from orcinus.server.load.prompts import WORDS, LoadItem, Prompt, Writer

Endpoint = Literal["completions", "chat"]
PromptForm = Literal["auto", "tokens", "text"]

_PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_SLOTS_METRIC = "orcinus_slots"
_FEWEST_TOKEN_IDS = 16
_FEW_WORDS = 8


GREEDY: Mapping[str, float] = MappingProxyType({"temperature": 0.0})
"""Sampling fields of a request for the likeliest tokens."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a server, and how it is asked. Its requests raise `RequestFailedError`.

    `sampling` are the fields of a request that say how tokens are chosen.
    """

    client: HttpClient
    model: str
    endpoint: Endpoint
    sampling: Mapping[str, float]
    ignore_eos: bool

    def body(self, item: LoadItem) -> bytes:
        """The JSON of one request. Raises `SettingsError` for a prompt that the endpoint has no place for."""
        body = {
            "model": self.model,
            **_prompt_field(self.endpoint, item.prompt),
            "max_tokens": item.max_tokens,
            **self.sampling,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body)

    async def ask(self, item: LoadItem, body: bytes) -> RequestRecord:
        """Send `body`, which is that of `item`, and measure its answer."""
        stream = AnswerStream()
        sent_s = self.client.clock()
        response = await self.client.post(_PATHS[self.endpoint], body, stream.feed)
        _check(response)
        if response.content_type != EVENT_STREAM:
            raise RequestFailedError("the answer is not streamed", f"its type is {response.content_type or 'unknown'}")
        return stream.record(sent_s, item.prompt_tokens, item.max_tokens)


async def first_model(client: HttpClient) -> str:
    """The name of the first model that the server lists. Raises `LoadError`."""
    response = await client.get("/v1/models")
    _check(response)
    try:
        return str(msgspec.json.decode(response.body)["data"][0]["id"])
    except (*NOT_JSON, LookupError, TypeError):
        raise LoadError("/v1/models of the server lists no model; name one with --model") from None


async def num_slots(client: HttpClient) -> int | None:
    """Return how many requests the server runs at once, as its metrics say; None where they do not."""
    from prometheus_client.parser import text_string_to_metric_families

    response = await client.get("/metrics")
    if response.status != HTTPStatus.OK:
        return None
    try:
        families = list(text_string_to_metric_families(response.body.decode()))
    except ValueError:
        return None
    values = [sample.value for family in families for sample in family.samples if sample.name == _SLOTS_METRIC]
    return int(sum(values)) if values else None


async def choose_writer(target: Target, form: PromptForm, vocab_size: int | None) -> Writer:
    """Token ids where the server takes them, and text otherwise. Raises `LoadError` if it answers neither.

    The few requests that this takes are also the proof that the server answers at all.
    """
    writer = None if form == "text" else await _token_writer(target, vocab_size)
    if form == "tokens":
        return await _checked(target, writer)
    if writer is not None and await _takes(target, writer):
        return writer
    return await _text_writer(target)


async def check_answers(target: Target) -> None:
    """Ask for one token. Raises `LoadError` with the server's reason if it does not come."""
    await _count_prompt_tokens(target, WORDS[:_FEW_WORDS])


def _prompt_field(endpoint: Endpoint, prompt: Prompt) -> dict[str, Any]:
    is_chat = isinstance(prompt, list) and any(isinstance(part, dict) for part in prompt)
    if endpoint == "completions":
        if is_chat:
            raise SettingsError("messages need --endpoint chat")
        return {"prompt": prompt}
    if isinstance(prompt, str):
        return {"messages": [{"role": "user", "content": prompt}]}
    if not is_chat:
        raise SettingsError("prompts of token ids need --endpoint completions")
    return {"messages": prompt}


async def _token_writer(target: Target, vocab_size: int | None) -> Writer | None:
    """Any id below `vocab_size`, or those of common words, which are in the vocabulary and no special tokens."""
    if target.endpoint == "chat":
        return None
    token_ids = await _word_token_ids(target) if vocab_size is None else range(vocab_size)
    return Writer(token_ids) if token_ids else None


async def _word_token_ids(target: Target) -> list[int]:
    text = " ".join(WORDS)
    for names in ({"model": target.model, "prompt": text, "add_special_tokens": False}, {"content": text}):
        token_ids = await _tokenize(target.client, names)
        if len(token_ids) >= _FEWEST_TOKEN_IDS:
            return sorted(token_ids)
    return []


async def _tokenize(client: HttpClient, body: dict[str, Any]) -> set[int]:
    """The ids in the answer of /tokenize, which is no part of OpenAI's API; none where there is no such answer."""
    response = await client.post("/tokenize", msgspec.json.encode(body))
    try:
        return set(msgspec.json.decode(response.body, type=_Tokenized).tokens)
    except NOT_JSON:
        return set()


class _Tokenized(msgspec.Struct):
    tokens: list[int]


async def _checked(target: Target, writer: Writer | None) -> Writer:
    if writer is None:
        raise LoadError("the server gives no token ids (/tokenize); say how many it has with --vocab-size")
    await _count_prompt_tokens(target, writer.units[:_FEW_WORDS])
    return writer


async def _takes(target: Target, writer: Writer) -> bool:
    """Whether the server answers a prompt of token ids."""
    try:
        await _checked(target, writer)
    except RequestFailedError as error:
        if error.is_refusal:
            return False
        raise
    return True


async def _text_writer(target: Target) -> Writer:
    """Words, with the number of tokens that the server counts in them; one each where it does not count."""
    few = await _count_prompt_tokens(target, WORDS[:_FEW_WORDS])
    many = await _count_prompt_tokens(target, WORDS)
    if few is None or many is None or many <= few:
        return Writer(WORDS)
    tokens_per_word = (many - few) / (len(WORDS) - _FEW_WORDS)
    return Writer(WORDS, tokens_per_word, max(few - _FEW_WORDS * tokens_per_word, 0.0))


async def _count_prompt_tokens(target: Target, units: Sequence[int] | Sequence[str]) -> int | None:
    item = LoadItem(prompt=Writer(units).compose(list(units)), max_tokens=1)
    return (await target.ask(item, target.body(item))).prompt_tokens


def _check(response: Response) -> None:
    """Raises `RequestFailedError` for a response with an error."""
    if response.status == 200:
        return
    try:
        detail = error_message(msgspec.json.decode(response.body)["error"])
    except (*NOT_JSON, LookupError, TypeError):
        detail = response.body[:200].decode("utf-8", "replace")
    raise RequestFailedError(f"HTTP {response.status}", detail, is_refusal=400 <= response.status < 500)
