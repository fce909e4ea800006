"""How one request's tokens are chosen and when it stops: validated once, then read by all of the engine.

Owns the bounds of every parameter (`RANGES`). Knows nothing of tokenizers: a bound that needs the vocabulary
(`logit_bias`, `stop_token_ids`) is checked by `check_token_ids`, which admission calls, where the model is known.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import msgspec

from orcinus.engine.errors import InvalidRequestError

MAX_N = 128
MAX_STOP_STRINGS = 4
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_ALLOWED_TOKEN_IDS = 65_536
MAX_BAD_WORDS = 256
MAX_BAD_WORD_TOKENS = 64
MAX_LABELS = 64
MAX_GRAMMAR_CHARS = 256 * 1024
MAX_THOUGHT_TAGS = 64
MAX_TAG_TOKENS = 64
MAX_ANSWER_RESERVE = 1024
MIN_SEED = -9_223_372_036_854_776_000  # of OpenAI's document: -(2**63) as a number of its JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The numbers that a parameter takes: from `ge` on or above `gt`, one of which is given, up to `le`; None: no end.

    The bounds are named as in annotated-types, so that a schema can take them over.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def check(self, name: str, value: float) -> None:
        """Raise `InvalidRequestError` if the value lies outside, or is no finite number."""
        is_above = (self.ge is None or value >= self.ge) and (self.gt is None or value > self.gt)
        if math.isfinite(value) and is_above and (self.le is None or value <= self.le):
            return
        raise InvalidRequestError(f"{name} must be {self}, got {value}", name)

    def __str__(self) -> str:
        lower = f"at least {self.ge}" if self.gt is None else f"above {self.gt}"
        return lower if self.le is None else f"{lower} and at most {self.le}"


RANGES: Mapping[str, Range] = MappingProxyType(
    {
        "n": Range(ge=1, le=MAX_N),
        "max_tokens": Range(ge=0),
        "min_tokens": Range(ge=0),
        "temperature": Range(ge=0, le=2),
        "top_p": Range(ge=0, le=1),
        "top_k": Range(ge=-1),
        "min_p": Range(ge=0, le=1),
        "presence_penalty": Range(ge=-2, le=2),
        "frequency_penalty": Range(ge=-2, le=2),
        "repetition_penalty": Range(gt=0, le=100),
        "seed": Range(ge=MIN_SEED, le=2**64 - 1),
        "logprobs": Range(ge=0, le=MAX_LOGPROBS),
        "prompt_logprobs": Range(ge=0, le=MAX_LOGPROBS),
    }
)
"""Of every parameter of `SamplingParams` that is a number."""
NOWHERE, ANYWHERE = range(0), range(sys.maxsize)
LOGIT_BIAS_RANGE = Range(ge=-100, le=100)

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]
Pooling = Literal["mean", "last"]


class Thinking(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that come before an answer: up to and with the token sequence `end`, or one of `more_ends`.

    `start` None, and no `openings`: the prompt has opened the thinking. Otherwise the output may open it with the token
    `start`, or with one of the token sequences `openings`, as its very first ones; if it begins with any others, there
    is no thinking. Where it `recurs` an opening may come later and again.

    After `budget` tokens of thoughts, tags that open them not counted, the tokens `forced` (None: `end`) come in place
    of what is drawn. Raises `InvalidRequestError` for a budget below 0, and for tags of too many tokens or none.
    """

    end: tuple[int, ...]
    start: int | None = None
    budget: int | None = None
    forced: tuple[int, ...] | None = None
    more_ends: tuple[tuple[int, ...], ...] = ()
    openings: tuple[tuple[int, ...], ...] = ()
    recurs: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None:
            Range(ge=0).check("thinking_budget", self.budget)
        _check_length("thinking_budget", self.sequences, MAX_THOUGHT_TAGS)
        for tag in self.sequences:
            if not 1 <= len(tag) <= MAX_TAG_TOKENS:
                raise InvalidRequestError(
                    f"tags of thoughts have 1 to {MAX_TAG_TOKENS} tokens each, got {len(tag)}", "thinking_budget"
                )

    @property
    def opening_tags(self) -> tuple[tuple[int, ...], ...]:
        """Return the token sequences of which one opens a thought; none where the prompt has."""
        return self.openings if self.start is None else ((self.start,), *self.openings)

    @property
    def closing_tags(self) -> tuple[tuple[int, ...], ...]:
        return (self.end, *self.more_ends)

    @property
    def forced_tokens(self) -> tuple[int, ...]:
        return self.end if self.forced is None else self.forced

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """Return all token sequences, for checks."""
        return (*self.opening_tags, *self.closing_tags, self.forced_tokens)

    def budget_within(self, max_tokens: int | None) -> int | None:
        """Return the budget of an output of at most `max_tokens`: less, where tags and an answer need the room.

        Kept for the answer is a quarter of `max_tokens`, at least 1 and at most `MAX_ANSWER_RESERVE` tokens.
        """
        if self.budget is None or max_tokens is None:
            return self.budget
        reserve = min(max(max_tokens // 4, 1), MAX_ANSWER_RESERVE)
        num_tag_tokens = self._longest_opening + len(self.forced_tokens)
        return max(min(self.budget, max_tokens - reserve - num_tag_tokens), 0)

    def forced_places(self, max_tokens: int | None) -> range:
        """Return where in an output of at most `max_tokens` a token may be forced, or follow one that was."""
        budget = self.budget_within(max_tokens)
        if budget is None or self.recurs:
            return NOWHERE if budget is None else ANYWHERE
        longest_end = max(map(len, self.closing_tags))  # the model may have begun to write it
        return range(budget, budget + self._longest_opening + longest_end + len(self.forced_tokens))

    @property
    def _longest_opening(self) -> int:
        return max(map(len, self.opening_tags), default=0)


class Opening(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text after which a grammar counts: `parts` in this order, and between them any characters of `between`.

    `between` None: whatever characters there are. `is_first`: the parts have to be the first of the text, but for
    characters of `between`. `begin` is how the grammar's own text begins there, as texts and token ids: what the
    opening stands for.
    """

    parts: tuple[str, ...]
    begin: tuple[str | int, ...]
    between: str | None = ""
    is_first: bool = False


class Openings(msgspec.Struct, frozen=True, omit_defaults=True):
    """The openings after which a grammar counts, where the text before and between is free.

    Where several end at one place, the first of them counts. `markers` are those special tokens that are text here.
    After one of `resets` no opening before it can be gone on with. Where the grammar's text may end, free text
    follows, with openings again unless `is_single`; without `text_follows` the grammar holds to the end.
    """

    openings: tuple[Opening, ...]
    markers: tuple[str, ...] = ()
    resets: tuple[str, ...] = ()
    text_follows: bool = True
    is_single: bool = False


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """Says what the generated text has to match, from its first character (after any thinking) to its last.

    `source` is, by kind: nothing; a JSON schema as JSON; a regular expression; a JSON list of strings; a grammar in
    Lark's notation or in GBNF. Compiled by `engine.grammar.compiler`, whose limits it has to keep. `param` is the
    parameter that asked for it, for errors. With `openings` it holds after each of them alone.
    """

    kind: GrammarKind
    source: str = ""
    thinking: Thinking | None = None
    param: str = "structured_outputs"
    openings: Openings | None = None

    def __post_init__(self) -> None:
        if len(self.source) > MAX_GRAMMAR_CHARS:
            raise InvalidRequestError(
                f"a grammar or schema has at most {MAX_GRAMMAR_CHARS} characters, got {len(self.source)}",
                "structured_outputs",
            )
        if self.thinking is not None and (self.thinking.openings or self.thinking.recurs):
            raise InvalidRequestError("one token alone opens a thought before a grammar", "structured_outputs")

    @property
    def name(self) -> str:
        """Return what the client knows it by."""
        if self.param != "structured_outputs":
            return self.param
        return f"structured_outputs.{'json' if self.kind == 'json_schema' else self.kind}"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one request, with the names and meaning of the OpenAI API and its common extensions.

    `temperature` 0 is greedy, and so is `top_p` 0. `top_k` 0 or -1 is off. Seeds count modulo 2**64.
    Penalties follow OpenAI (presence, frequency: over the generated tokens) and CTRL (repetition: over prompt and
    generated tokens, https://arxiv.org/abs/1909.05858).
    `min_p` follows https://arxiv.org/abs/2407.01082. `max_tokens` None is the rest of the context.
    `allowed_token_ids` leaves only these to choose from; of each sequence of `bad_words_token_ids` the last token is
    ruled out wherever the others have just been generated. `grammar` rules out whatever it cannot continue with.
    `more_eos_token_ids` end the output as the model's own do, `ignore_eos` included. The thoughts of `thinking` are
    held to its budget; those before a grammar to that of `Grammar.thinking`.
    With `pooling` the request is embedded instead of continued: `max_tokens` is 0, and the answer one vector. With
    `label_token_ids` the answer is the logits of these tokens after the prompt, in their order; `pooling` is "last".
    `stop` strings are a matter of the text side (`engine.text.stop_scanner`); the engine core looks at token ids only.

    Raises `InvalidRequestError` naming the parameter, its bounds and the value given.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    more_eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    pooling: Pooling | None = None
    label_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, bounds in RANGES.items():
            if (value := getattr(self, name)) is not None:
                bounds.check(name, value)
        if self.seed is not None and self.seed < -(2**63):
            msgspec.structs.force_setattr(self, "seed", self.seed % 2**64)  # or no message could hold it
        if self.pooling is not None and self.max_tokens != 0:
            raise InvalidRequestError(f"with pooling, max_tokens must be 0, got {self.max_tokens}", "max_tokens")
        if self.label_token_ids and self.pooling != "last":
            raise InvalidRequestError(f"label_token_ids need pooling last, got {self.pooling}", "label_token_ids")
        Range(ge=0, le=self.max_tokens).check("min_tokens", self.min_tokens)
        for token_bias in self.logit_bias.values():
            LOGIT_BIAS_RANGE.check("logit_bias", token_bias)
        _check_length("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        _check_length("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        _check_length("stop", self.stop, MAX_STOP_STRINGS)
        _check_length("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
        _check_length("bad_words", self.bad_words_token_ids, MAX_BAD_WORDS)
        _check_length("label_token_ids", self.label_token_ids, MAX_LABELS)
        for word in self.bad_words_token_ids:
            if not 1 <= len(word) <= MAX_BAD_WORD_TOKENS:
                raise InvalidRequestError(
                    f"bad_words have 1 to {MAX_BAD_WORD_TOKENS} tokens each, got {len(word)}", "bad_words"
                )
        for stop in self.stop:
            if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequestError(
                    f"stop strings have 1 to {MAX_STOP_STRING_CHARS} characters, got {len(stop)}", "stop"
                )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_p == 0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def followed_places(self) -> range:
        """The places in the output at which the host has to know each token before the next one can be chosen.

        Of such a request no step is planned before the one before it is known.
        """
        if self.grammar is not None:
            return ANYWHERE
        return NOWHERE if self.thinking is None else self.thinking.forced_places(self.max_tokens)

    @property
    def has_budget(self) -> bool:
        """Whether its thoughts, other than those before a grammar, are held to a budget."""
        return self.thinking is not None and self.thinking.budget is not None

    @property
    def looks_back(self) -> bool:
        """Whether what may come next depends on the tokens before it, other than through the model and by their number.

        Of such a request no tokens are tried as drafts.
        """
        follows_tokens = self.grammar is not None or self.has_budget
        return follows_tokens or bool(self.bad_words_token_ids) or self.has_penalties

    def contradiction(self, num_tokens: int) -> InvalidRequestError:
        """Return the error of a text of `num_tokens` tokens after which these parameters rule every token out."""
        form = [] if self.grammar is None else [self.grammar.name]
        lists = {"allowed_token_ids": self.allowed_token_ids, "bad_words": self.bad_words_token_ids}
        names = [name for name, value in lists.items() if value] + form or ["the request"]
        words = f"{', '.join(names[:-1])} and {names[-1]} together leave" if len(names) > 1 else f"{names[0]} leaves"
        return InvalidRequestError(f"{words} no token to go on with after {num_tokens} tokens", names[0])

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise `InvalidRequestError` where a token id lies outside the vocabulary."""
        _check_ids("logit_bias", self.logit_bias, vocab_size)
        _check_ids("stop_token_ids", self.stop_token_ids, vocab_size)
        _check_ids("more_eos_token_ids", self.more_eos_token_ids, vocab_size)
        _check_ids("allowed_token_ids", self.allowed_token_ids, vocab_size)
        _check_ids("label_token_ids", self.label_token_ids, vocab_size)
        for word in self.bad_words_token_ids:
            _check_ids("bad_words", word, vocab_size)
        for thinking in (self.thinking, self.grammar and self.grammar.thinking):
            for tag in thinking.sequences if thinking else ():
                _check_ids("thinking_budget", tag, vocab_size)


def _check_length(name: str, values: Iterable[object], limit: int) -> None:
    if (length := len(list(values))) > limit:
        raise InvalidRequestError(f"{name} takes at most {limit} entries, got {length}", name)


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{name} has token id {token_id}, outside the vocabulary (0 to {vocab_size - 1})", name
            )
