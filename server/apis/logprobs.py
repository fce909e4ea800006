"""Log-probabilities in the two formats of the API: the four arrays of completions, the list of chat.

Knows token ids, their bytes and their numbers; where they come from is the engine's business. What JSON cannot
hold (-inf) is sent as -9999.0, as the API defines.
"""

import codecs
from collections.abc import Sequence
from typing import Any

from orcinus.engine.messages import TokenLogprobs
from orcinus.server.context import ServingTokenizer

LOWEST_LOGPROB = -9999.0


class TextLogprobs:
    """The arrays `tokens`, `token_logprobs`, `top_logprobs`, `text_offset` of one choice, made piece by piece.

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

    def add(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> dict[str, list[Any]]:
        """Return the next tokens' arrays. An entry is None where the model gave none (the first token of a prompt)."""
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [entry and finite(entry.logprob) for entry in entries],
            "top_logprobs": [entry and self._top(entry) for entry in entries],
            "text_offset": [self._advance(token_id) for token_id in token_ids],
        }

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        top = {self._name(token_id): finite(logprob) for token_id, logprob in entry.top[: self._num_top]}
        top.setdefault(self._name(entry.token_id), finite(entry.logprob))
        return top

    def _name(self, token_id: int) -> str:
        """Return the token's text, or `bytes:\\xe2\\x82` where it holds part of a code point: keys must differ."""
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _advance(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._unwritten_ids:
            self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return offset


def chat_logprobs(tokenizer: ServingTokenizer, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """Return the `logprobs` of a chat choice, or of a chunk of one."""
    content = [
        {
            **_chat_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, token_id, logprob) for token_id, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(
    tokenizer: ServingTokenizer, entries: Sequence[TokenLogprobs | None], num_top: int
) -> list[dict[str, Any] | None]:
    """Return the extension `prompt_logprobs`: for each prompt token, id to log-probability, rank and text.

    The rank of a token that is not among the likeliest asked for is not known, and null.
    """
    return [None if entry is None else _ranked(tokenizer, entry, num_top) for entry in entries]


def finite(logprob: float) -> float:
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
        str(token_id): {"logprob": finite(logprob), "rank": rank, "decoded_token": _text(tokenizer, token_id)}
        for token_id, logprob, rank in ranks
    }


def _chat_token(tokenizer: ServingTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": _text(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _text(tokenizer: ServingTokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
