"""Log-probabilities in the two formats of the API: the four arrays of completions, the list of chat.

They are written as JSON as they come, and kept as bytes: an answer may have a million of them. Knows token ids, their
bytes and their numbers; where they come from is the engine's business. What JSON cannot hold (-inf) is sent as -9999.0,
as the API defines.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import msgspec

from orcinus.engine.messages import PackedLogprobs, TokenLogprobs
from orcinus.server.apis.json_pieces import JsonList
from orcinus.server.context import ServingTokenizer

LOWEST_LOGPROB = -9999.0
STEP_TOKENS = 16  # of a prompt, written at once: each may have 21 log-probabilities

Entries = PackedLogprobs | Sequence[TokenLogprobs | None]

_encode = msgspec.json.encode


class ChatLogprobs:
    """Writes the entries of `content` in the `logprobs` of chat choices. Remembers how the tokens are written."""

    def __init__(self, tokenizer: ServingTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: dict[int, tuple[bytes, bytes]] = {}  # what stands before and after the number

    def write(self, entries: Iterable[TokenLogprobs]) -> bytes:
        """Return the entries with commas between them."""
        return b",".join(map(self._entry, entries))

    def _entry(self, entry: TokenLogprobs) -> bytes:
        own, *others = _numbers(entry)
        before, after = self._token(entry.token_id)
        top = b"},".join(
            [
                b"%b%b%b" % (before, number, after)
                for (before, after), number in zip(map(self._token, _top_ids(entry)), others, strict=True)
            ]
        )
        return b'%b%b%b,"top_logprobs":[%b%b' % (before, own, after, top, b"}]}" if top else b"]}")

    def _token(self, token_id: int) -> tuple[bytes, bytes]:
        known = self._tokens.get(token_id)
        if known is None:
            raw = self._tokenizer.token_bytes(token_id)
            before = b'{"token":%b,"logprob":' % _encode(raw.decode("utf-8", "replace"))
            known = self._tokens[token_id] = before, b',"bytes":%b' % _encode([*raw])
        return known


class TextLogprobs:
    """The arrays `tokens`, `token_logprobs`, `top_logprobs`, `text_offset` of one choice, written piece by piece.

    `num_top` alternatives are given for a token, and always itself.
    `offset` is where the first token stands, in characters from the start of the prompt. A token that holds part
    of a code point stands where that code point does. Special tokens that the text leaves out take no room.
    """

    def __init__(self, tokenizer: ServingTokenizer, *, num_top: int, offset: int, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = offset
        self._unwritten_ids = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._names: dict[int, bytes] = {}
        self._arrays = _new_arrays()

    def add(self, token_ids: Iterable[int], entries: Iterable[TokenLogprobs | None]) -> Iterator[int]:
        """Write tokens, some at a step; gives how many bytes each step has written.

        An entry is None where the model gave none (the first token of a prompt).
        """
        entries = iter(entries)
        token_ids = iter(token_ids)
        while ids := [*islice(token_ids, STEP_TOKENS)]:
            parts = self._write(ids, [*islice(entries, len(ids))])
            for array, part in zip(self._arrays.values(), parts, strict=True):
                array.add(part)
            yield sum(map(len, parts))

    def take(self) -> dict[str, JsonList]:
        """Return what was written since the last time."""
        written, self._arrays = self._arrays, _new_arrays()
        return written

    def _write(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]
    ) -> tuple[bytes, bytes, bytes, bytes]:
        numbers = [[b"null"] if entry is None else _numbers(entry, self._num_top) for entry in entries]
        tops = [
            b"null" if entry is None else self._top(entry, values)
            for entry, values in zip(entries, numbers, strict=True)
        ]
        return (
            b",".join(map(self._name, token_ids)),
            b",".join([own for own, *_ in numbers]),
            b",".join(tops),
            _encode([*map(self._advance, token_ids)])[1:-1],
        )

    def _top(self, entry: TokenLogprobs, numbers: Sequence[bytes]) -> bytes:
        own, *others = numbers
        top = dict(zip(map(self._name, _top_ids(entry)), others, strict=False))  # the longer one has more than asked
        top.setdefault(self._name(entry.token_id), own)
        return b"{%b}" % b",".join([b"%b:%b" % pair for pair in top.items()])

    def _name(self, token_id: int) -> bytes:
        """Return the token's text, or `bytes:\\xe2\\x82` where it holds part of a code point: keys must differ."""
        known = self._names.get(token_id)
        if known is None:
            raw = self._tokenizer.token_bytes(token_id)
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
            known = self._names[token_id] = _encode(name)
        return known

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._unwritten_ids:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return offset


def write_prompt_logprobs(tokenizer: ServingTokenizer, entries: Entries, num_top: int) -> Iterator[bytes]:
    """Write the extension `prompt_logprobs`, some tokens at a time: id to log-probability, rank and text of each.

    The rank of a token that is not among the likeliest asked for is not known, and null.
    """
    rest = iter(entries)
    while step := [*islice(rest, STEP_TOKENS)]:
        yield _encode([None if entry is None else _ranked(tokenizer, entry, num_top) for entry in step])[1:-1]


def _new_arrays() -> dict[str, JsonList]:
    return {name: JsonList() for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}


def _top_ids(entry: TokenLogprobs) -> Iterator[int]:
    return (token_id for token_id, _ in entry.top)


def _numbers(entry: TokenLogprobs, num_top: int | None = None) -> list[bytes]:
    """Return the log-probabilities of an entry as JSON: of the chosen token, then of the likeliest ones."""
    values = [*chain((entry.logprob,), (logprob for _, logprob in entry.top[:num_top]))]
    if not min(values) > LOWEST_LOGPROB:
        values = [*map(_finite, values)]
    written = _encode(values)
    if b"n" in written:  # null, of NaN, which a minimum may pass over
        written = _encode([*map(_finite, values)])
    return written[1:-1].split(b",")


def _finite(logprob: float) -> float:
    """Return a number that JSON can hold. The comparison is false for NaN too."""
    return logprob if logprob > LOWEST_LOGPROB else LOWEST_LOGPROB


def _ranked(tokenizer: ServingTokenizer, entry: TokenLogprobs, num_top: int) -> dict[str, Any]:
    ranks: list[tuple[int, float, int | None]] = [
        (token_id, logprob, rank)
        for rank, (token_id, logprob) in enumerate(entry.top, start=1)
        if rank <= num_top or token_id == entry.token_id
    ]
    if all(token_id != entry.token_id for token_id, _, _ in ranks):
        ranks.append((entry.token_id, entry.logprob, None))
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": _text(tokenizer, token_id)}
        for token_id, logprob, rank in ranks
    }


def _text(tokenizer: ServingTokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
