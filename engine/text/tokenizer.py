"""Text to token ids and back, and the model's chat template. Knows nothing of requests and tensors.

Importing transformers takes seconds, so a model whose tokenizer needs nothing of it (`tokenizer.json` says it all)
is read with the `tokenizers` library alone; the tests hold that both ways agree. Everything else goes through
transformers' `AutoTokenizer`. A tokenizer is immutable once loaded and may be used by several threads.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer

from orcinus.config.text_files import TextFileError, read_text
from orcinus.engine.errors import InvalidRequestError, ModelLoadError, reason_of
from orcinus.engine.platform.gguf_reader import vocabularies_left_out
from orcinus.engine.platform.lean_imports import (
    gguf_read_without_torch,
    is_torch_hidden,
    show_torch,
    wait_for_transformers,
)
from orcinus.engine.platform.model_source import ModelSource, gguf_path, model_source
from orcinus.engine.text.chat_template import ChatTemplate
from orcinus.engine.text.conversation import Message
from orcinus.engine.text.gguf_tokens import add_marked_tokens, named_tokens, read_tokens, simplify_decoder
from orcinus.engine.text.sentencepiece_file import check_sentencepiece

logger = logging.getLogger(__name__)

_FAST_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Settings of tokenizer_config.json by which transformers changes what tokenizer.json says.
_CONFIG_OVERRIDES = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "auto_map",
    "fix_mistral_regex",
    "split_special_tokens",
)
_DEFAULT_TEMPLATE = "default"
_TOOL_TEMPLATE = "tool_use"
_MORE_TEMPLATES = "additional_chat_templates"
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Backend(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token(self, token_id: int) -> str | None:
        """Return the token as the vocabulary writes it, None outside the vocabulary."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def added_tokens(self) -> Mapping[int, AddedToken]: ...

    @property
    def decoder_steps(self) -> list[dict[str, Any]]:
        """The `tokenizers` decoder as its JSON, flattened; empty if it is something else."""


class Tokenizer:
    """A model's tokenizer; make one with `Tokenizer.load`."""

    def __init__(
        self,
        backend: _Backend,
        chat_template: ChatTemplate | None,
        tool_template: ChatTemplate | None = None,
        *,
        eos_token: str | None = None,
        response_template: Any = None,
    ) -> None:
        """`tool_template`, where there is one, takes the place of `chat_template` in chats with tools.

        `response_template` is what the model's files have of that name, unchecked: how its answers are read.
        """
        self._backend = backend
        self._eos_token = eos_token
        self._chat_template = chat_template
        self._tool_template = tool_template
        self.response_template = response_template
        self.vocab_size = backend.vocab_size
        self.special_ids = frozenset(i for i, token in backend.added_tokens.items() if token.special)

    @classmethod
    def load(cls, model: str, *, trust_remote_code: bool = False, chat_template: str | None = None) -> "Tokenizer":
        """Read the tokenizer of a model directory, a hub id or a GGUF file.

        `chat_template`, a file's path or the text of a template, replaces the model's own.
        Raises `ModelLoadError`.
        """
        try:
            backend, own_template, special_tokens, response_template = _load_parts(model, trust_remote_code)
        except ModelLoadError:
            raise
        except Exception as error:  # other people's code reads other people's files
            raise ModelLoadError(f"cannot load the tokenizer of {model}: {reason_of(error)}") from error
        if chat_template is not None:
            templates: list[ChatTemplate | None] = [_given_template(chat_template, special_tokens)]
        else:
            templates = _own_templates(own_template, special_tokens)
        eos_token = special_tokens.get("eos_token")
        return cls(backend, *templates, eos_token=eos_token, response_template=response_template)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def chat_template_source(self) -> str:
        """The text of the chat template, and of the one for chats with tools; empty if there is none."""
        return "\n".join(template.source for template in (self._chat_template, self._tool_template) if template)

    @property
    def reads_pairs(self) -> bool:
        """Whether the chat template is a reranker's (`ChatTemplate.reads_pairs`). Takes a moment when first asked."""
        return self._chat_template is not None and self._chat_template.reads_pairs

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Return how the special tokens are written; `decode` leaves them out unless told otherwise."""
        return frozenset(token.content for token in self._backend.added_tokens.values() if token.special)

    @cached_property
    def eos_token_id(self) -> int | None:
        """The token that ends a text as the tokenizer has it, which may be another than the model's settings name."""
        return None if self._eos_token is None else self.added_token_id(self._eos_token)

    def added_token_id(self, text: str) -> int | None:
        """Return the id of the added token (special or not) that is written as `text`, if there is one."""
        return self._added_ids.get(text)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text. Raises `InvalidRequestError` if it is not Unicode (lone surrogates)."""
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError("the text has characters that cannot be written as UTF-8") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of a whole sequence; ids outside the vocabulary have none.

        `engine.text.detokenizer` does so while tokens arrive.
        """
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token alone adds to a text, which may be part of a code point; of a special token, its name."""
        known = self._token_bytes.get(token_id)
        if known is None:
            known = self._token_bytes[token_id] = self._find_bytes(token_id)
        return known

    def render_chat(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return what `ChatTemplate.render` does. The text has its special tokens: encode it without adding any.

        Raises `InvalidRequestError` if the model has no template, and what `ChatTemplate.render` raises.
        """
        template = (tools and self._tool_template) or self._chat_template
        if template is None:
            raise InvalidRequestError(
                "this model has no chat template: use completions, or start the server with --chat-template", "messages"
            )
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether a text is the bytes of its tokens, one after the other, read as UTF-8."""
        return [step["type"] for step in self._backend.decoder_steps] == ["ByteLevel"]

    @cached_property
    def has_byte_fallback(self) -> bool:
        """Whether a text is its tokens' text, one after the other, with single bytes as tokens of their own."""
        steps = self._backend.decoder_steps
        kinds = [step["type"] for step in steps]
        return "String" in (steps[0].get("pattern", ()) if steps else ()) and kinds in (
            ["Replace", "ByteFallback", "Fuse"],
            ["Replace", "ByteFallback", "Fuse", "Strip"],
        )

    def fallback_byte(self, token_id: int) -> int | None:
        """Return the byte that a byte-fallback token such as `<0xE4>` stands for, None for any other token."""
        match = _BYTE_TOKEN.fullmatch(self._backend.token(token_id) or "")
        return int(match[1], 16) if match else None

    @cached_property
    def _added_ids(self) -> dict[str, int]:
        return {token.content: token_id for token_id, token in self._backend.added_tokens.items()}

    @cached_property
    def _token_bytes(self) -> dict[int, bytes]:
        return {}

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._backend.token(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            return _bytes_of_characters(token)
        if (byte := self.fallback_byte(token_id)) is not None:
            return bytes([byte])
        for step in self._backend.decoder_steps:
            token = _replace(token, step)
        return token.encode()


# --- backends -------------------------------------------------------------------------------------------


class _FastBackend:
    def __init__(self, tokenizer: FastTokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # Alone among its kind, this call lets go of the GIL; it counts no offsets, which are not needed.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    @cached_property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        return self._tokenizer.get_added_tokens_decoder()

    @cached_property
    def decoder_steps(self) -> list[dict[str, Any]]:
        decoder = self._tokenizer.decoder
        return [] if decoder is None else _flatten(json.loads(decoder.__getstate__()))


class _SlowBackend:
    """A tokenizer that transformers runs in Python."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        known = [token_id for token_id in token_ids if token_id < self.vocab_size]
        text: str = self._tokenizer.decode(
            known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def token(self, token_id: int) -> str | None:
        if token_id >= self.vocab_size:
            return None
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return token

    @cached_property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def added_tokens(self) -> Mapping[int, AddedToken]:
        added: Mapping[int, AddedToken] = self._tokenizer.added_tokens_decoder
        return added

    @property
    def decoder_steps(self) -> list[dict[str, Any]]:
        return []


def _flatten(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _flatten(inner)]


# --- loading --------------------------------------------------------------------------------------------

# Backend, the model's own template(s) or None, its named tokens, its response template or None.
_Parts = tuple[_Backend, Any, dict[str, str], Any]


def _load_parts(model: str, trust_remote_code: bool) -> _Parts:
    source = model_source(model)
    directory = None if source.gguf_file else source.directory
    return (directory and _plain_parts(directory)) or _transformers_parts(source, trust_remote_code)


def _plain_parts(directory: Path) -> _Parts | None:
    """Read the tokenizer without transformers; None if it takes transformers to know what it is."""
    tokenizer_file, settings_file = directory / "tokenizer.json", directory / "tokenizer_config.json"
    if not (tokenizer_file.is_file() and settings_file.is_file()):
        return None
    settings = json.loads(read_text(settings_file))
    if not _is_plain(settings):
        return None
    tokenizer = FastTokenizer.from_file(str(tokenizer_file))
    special_tokens = {name: _token_text(settings[name]) for name in _NAMED_TOKENS if settings.get(name)}
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special_tokens.values()])
    template = _template_files(directory) or settings.get("chat_template") or _processors_template(directory)
    return _FastBackend(tokenizer), template, special_tokens, settings.get("response_template")


def _template_files(directory: Path) -> dict[str, str]:
    """Return the templates that are files, by their names, as transformers finds them."""
    files = {file.stem: file for file in sorted((directory / _MORE_TEMPLATES).glob("*.jinja"))}
    if (default := directory / "chat_template.jinja").is_file():
        files[_DEFAULT_TEMPLATE] = default
    return {name: read_text(file) for name, file in files.items()}


def _processors_template(directory: Path | None) -> Any:
    """Return the template that a multimodal checkpoint keeps for its processor alone; None if there is none."""
    for name in ("chat_template.json", "processor_config.json"):
        if directory is not None and (file := directory / name).is_file():
            settings = json.loads(read_text(file))
            template = settings.get("chat_template") if isinstance(settings, dict) else None
            if template:
                return template
    return None


def _is_plain(settings: Mapping[str, Any]) -> bool:
    """Whether transformers would take tokenizer.json as it is."""
    return settings.get("tokenizer_class") in _FAST_CLASSES and not any(
        settings.get(name) for name in _CONFIG_OVERRIDES
    )


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _transformers_parts(source: ModelSource, trust_remote_code: bool) -> _Parts:
    tokenizer = _auto_tokenizer(source, trust_remote_code)
    named = dict(tokenizer.special_tokens_map)
    if source.gguf_file is not None:
        metadata = read_tokens(gguf_path(source))
        add_marked_tokens(tokenizer.backend_tokenizer, metadata)
        simplify_decoder(tokenizer.backend_tokenizer)
        named |= named_tokens(metadata)
    elif source.directory is not None:
        check_sentencepiece(source.directory, lambda text: tokenizer.encode(text, add_special_tokens=False))
    backend = _FastBackend(tokenizer.backend_tokenizer) if tokenizer.is_fast else _SlowBackend(tokenizer)
    directory = None if source.gguf_file else source.directory
    template = tokenizer.chat_template or _processors_template(directory)
    return backend, template, named, getattr(tokenizer, "response_template", None)


def _auto_tokenizer(source: ModelSource, trust_remote_code: bool) -> Any:
    """Return what transformers' `AutoTokenizer` does. A GGUF file's takes torch with earlier releases alone."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf_file is None:
        return _from_pretrained(source, options)
    options["gguf_file"] = source.gguf_file
    if is_torch_hidden():
        try:
            with gguf_read_without_torch():
                return _from_pretrained(source, options)
        except Exception as error:  # whatever comes of torch's not being there
            logger.info("reading the tokenizer of %s with torch: %s", source.gguf_file, error)
            show_torch()
    return _from_pretrained(source, options)


def _from_pretrained(source: ModelSource, options: Mapping[str, Any]) -> Any:
    wait_for_transformers()
    from transformers import AutoTokenizer

    with nullcontext() if source.gguf_file is None else vocabularies_left_out():
        return AutoTokenizer.from_pretrained(source.path_or_id, **options)


def _given_template(given: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    from jinja2 import TemplateSyntaxError

    try:
        source = given if "{" in given else read_text(Path(given))
        return ChatTemplate(source, special_tokens)
    except TextFileError as error:
        raise ModelLoadError(f"the chat template {given} cannot be read: {error.reason}") from error
    except TemplateSyntaxError as error:
        raise ModelLoadError(f"the chat template is no valid template: {error}") from error


def _own_templates(own: Any, special_tokens: Mapping[str, str]) -> list[ChatTemplate | None]:
    """Return the model's template, its only one or the default one of several, and the one for chats with tools.

    None for one that is missing or broken: the model can still complete text.
    """
    if isinstance(own, list):
        own = {entry["name"]: entry["template"] for entry in own}
    named = own if isinstance(own, dict) else {_DEFAULT_TEMPLATE: own}
    return [_compiled(named.get(name), special_tokens) for name in (_DEFAULT_TEMPLATE, _TOOL_TEMPLATE)]


def _compiled(source: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    from jinja2 import TemplateSyntaxError

    try:
        return ChatTemplate(source, special_tokens) if source else None
    except TemplateSyntaxError as error:
        logger.warning("the model's chat template is not used, it has a syntax error: %s", error)
        return None


# --- what a single token holds --------------------------------------------------------------------------

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """Return the byte of each printable character that byte-level BPE (GPT-2) writes for one.

    It is the byte's own character if that is printable, else one from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_of_character()


def _bytes_of_characters(token: str) -> bytes:
    """Return the bytes of a token. One with a character that stands for no byte was added, and is meant literally."""
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()


def _replace(token: str, step: Mapping[str, Any]) -> str:
    match step:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return token.replace(old, new)
        case {"type": "Metaspace", "replacement": str(old)}:
            return token.replace(old, " ")
        case _:
            return token
