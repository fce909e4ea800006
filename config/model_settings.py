"""Settings of the model: what is served, in which type, and how its prompts and answers are read."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, field_validator

from orcinus.config.parser_names import (
    REASONING_PARSER_ALIASES,
    TOOL_CALL_PARSER_ALIASES,
    ReasoningParser,
    ToolCallParser,
)
from orcinus.config.setting import Names, Strings, setting, without_empty
from orcinus.config.text_files import read_text

DEMO_MODEL_NAME = "orcinus-demo"
MAX_LABELS = 2  # of a reranker


class ModelSettings(BaseModel):
    """Says what is served."""

    model: str | None = setting(
        None,
        "Model",
        "Directory, hub id or GGUF file of the model; without one, the demo model that comes with Orcinus.",
        min_length=1,
    )
    served_model_name: Strings = setting(
        (), "Model", "Name that clients call the model by; repeatable. Default: taken from MODEL.", "NAME"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Model",
        "Type of weights and activations; auto takes the checkpoint's, where the device is fast with it.",
    )
    quantization: Literal["none", "int8", "int4"] | None = setting(
        None,
        "Model",
        "Quantize weights at load and activations as they come, on a CPU. int8: up to twice as fast, a little less"
        " exact. int4: groups of 16 weights with a scale each, little more than half of that memory, clearly less"
        " exact in small models. A GGUF file's blocks and the weights of an AWQ, GPTQ or compressed-tensors checkpoint"
        " are multiplied as they are without this; none dequantizes them at load.",
    )
    packed_weights_dir: str = setting(
        "auto",
        "Model",
        "Directory that packed weights are kept in (what --quantization makes, and what GGUF, AWQ, GPTQ and"
        " compressed-tensors files have), so that the next start maps them and takes a fraction of the time. Each takes"
        " as much as the weights in memory; the four that were used last stay. auto: $XDG_CACHE_HOME/orcinus/packed, or"
        " below ~/.cache; none: they are not kept.",
        "DIR",
        min_length=1,
    )
    max_model_len: int | None = setting(
        None,
        "Model",
        "Context length in tokens, prompt and output together. Default: the model's.",
        "N",
        ge=1,
    )
    chat_template: str | None = setting(
        None, "Model", "Chat template to use instead of the model's: a file, or Jinja text.", "FILE"
    )
    tool_call_parser: ToolCallParser = setting(
        "auto",
        "Model",
        "How the model writes calls of tools; auto tells by its tokenizer's response template, else by its chat"
        " template. vLLM's names are taken for the same.",
    )
    reasoning_parser: ReasoningParser = setting(
        "auto",
        "Model",
        "How the model marks what it thinks before it answers; auto tells by its tokenizer's response template, else by"
        " its chat template. vLLM's names are taken for the same.",
    )

    default_thinking_budget: int | None = setting(
        None,
        "Model",
        "Tokens that the thinking of a chat may have which names neither a budget nor an effort: it is ended there, and"
        " the answer follows. 0: none. Default: no budget.",
        "N",
        ge=0,
        le=2**31 - 1,
    )

    trust_remote_code: bool = setting(
        False, "Model", "Run Python code that comes with the model. It can do anything that you can."
    )
    use_generation_config: bool = setting(
        True,
        "Model",
        "Where a request does not say, take temperature, top_p, top_k, min_p and repetition_penalty from the"
        " model's generation_config.json.",
    )
    pooling: Literal["auto", "mean", "last"] = setting(
        "auto",
        "Model",
        "How an embedding is made of a prompt's last hidden states: their mean, or the last token's. auto does what the"
        " model's 1_Pooling/config.json (of sentence-transformers) says, and takes the mean without one.",
    )
    rerank_template: Literal["auto", "chat", "qwen3", "mxbai-v2", "bge-gemma"] = setting(
        "auto",
        "Model",
        "The prompt by which the model judges how relevant a document is to a query, in /v1/rerank and /v1/score: that"
        " of a family of rerankers, or with chat a question in the model's chat template. auto takes a chat template"
        " that has the roles query and document as it is, else the family that the model's name tells, else chat.",
    )
    rerank_labels: Names = setting(
        (),
        "Model",
        "Texts whose first tokens are the answers of that prompt: the one of a relevant document, and, where there is"
        " one, that of another. Default: what the model's 1_LogitScore/config.json (of sentence-transformers) says,"
        " else what the family has, else yes,no.",
        "YES[,NO]",
    )

    @field_validator("served_model_name")
    @classmethod
    def _names_are_not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return without_empty(value)

    @field_validator("tool_call_parser", mode="before")
    @classmethod
    def _take_tool_alias(cls, name: Any) -> Any:
        return TOOL_CALL_PARSER_ALIASES.get(str(name), name)

    @field_validator("reasoning_parser", mode="before")
    @classmethod
    def _take_reasoning_alias(cls, name: Any) -> Any:
        return REASONING_PARSER_ALIASES.get(str(name), name)

    @field_validator("rerank_labels")
    @classmethod
    def _labels_are_two_at_most(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > MAX_LABELS or len(set(value)) < len(value) or not all(value):
            raise ValueError(f"must be one or two different texts, such as yes,no; got {','.join(value)!r}")
        return value

    @field_validator("chat_template")
    @classmethod
    def _template_exists(cls, value: str | None) -> str | None:
        if value is not None and "{" not in value and not Path(value).is_file():
            raise ValueError(f"there is no file {value}, and it is no Jinja text")
        if value is not None and "{" not in value:
            read_text(Path(value))
        return value

    @property
    def model_path(self) -> str:
        """`model`, or the directory of the demo model."""
        return self.model or str(demo_model_path())

    @property
    def packed_weights_path(self) -> str | None:
        """`packed_weights_dir`, None if packed weights are not kept."""
        if self.packed_weights_dir != "auto":
            return None if self.packed_weights_dir == "none" else self.packed_weights_dir
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        try:
            return str(Path(base).expanduser() / "orcinus" / "packed")
        except RuntimeError:  # there is no home
            return None

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may use; responses carry the first. A local path is named by its last part."""
        if self.served_model_name:
            return self.served_model_name
        if self.model is None:
            return (DEMO_MODEL_NAME,)
        path = Path(self.model)
        if not path.exists():
            return (self.model,)
        return (path.stem if path.suffix == ".gguf" else path.resolve().name,)

    def read_chat_template(self) -> str | None:
        """Return the Jinja text of `chat_template`, read from its file if it names one. Raises `TextFileError`."""
        if self.chat_template is None or "{" in self.chat_template:
            return self.chat_template
        return read_text(Path(self.chat_template))


def demo_model_path() -> Path:
    """Return the directory of the demo model, installed or in a checkout."""
    return Path(__file__).resolve().parent.parent / "engine" / "demo_model"
