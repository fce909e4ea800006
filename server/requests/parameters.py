"""What becomes of every request parameter: supported, ignored, or refused. Declared here and nowhere else.

The supported ones are the fields of the bodies (`server.requests.bodies` and each API's own); the two tables below hold
the rest of what clients of this and other servers send. A name in none of them is refused by name, so that a misspelt
parameter is never mistaken for one in force. `parameter_table` feeds docs/reference/parameters.md.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import UnsupportedThreadError
from orcinus.server.json_values import MAX_NAME_CHARS, without_nulls
from orcinus.server.requests.foreign import FOREIGN, WITHOUT_MEANING, asks_nothing
from orcinus.server.requests.left_out import leave_out, refuse_unknown

Endpoint = Literal["completions", "chat", "responses", "messages", "embeddings", "rerank", "score"]
BOTH: tuple[Endpoint, ...] = ("completions", "chat")
CHAT: tuple[Endpoint, ...] = ("chat",)
COMPLETIONS: tuple[Endpoint, ...] = ("completions",)
RESPONSES: tuple[Endpoint, ...] = ("responses",)
MESSAGES: tuple[Endpoint, ...] = ("messages",)
EMBEDDINGS: tuple[Endpoint, ...] = ("embeddings",)
RERANK: tuple[Endpoint, ...] = ("rerank",)
SCORING: tuple[Endpoint, ...] = (*RERANK, "score")
GENERATING: tuple[Endpoint, ...] = (*BOTH, *RESPONSES)
SAMPLING: tuple[Endpoint, ...] = (*GENERATING, *MESSAGES)
ALL_BUT_COMPLETIONS: tuple[Endpoint, ...] = (*CHAT, *RESPONSES, *MESSAGES)
ALL: tuple[Endpoint, ...] = (*GENERATING, *EMBEDDINGS, *SCORING)


@dataclass(frozen=True, slots=True)
class Ignored:
    """Accepted, with any value, because it could not change the output here.

    One that `is_named` asks for something that other servers do: the answer's header says that it was left out.
    """

    why: str
    endpoints: tuple[Endpoint, ...] = BOTH
    is_named: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A 400 that names the parameter, unless `asks_nothing(value)`: the value that means "leave it off"."""

    why: str
    endpoints: tuple[Endpoint, ...] = BOTH
    asks_nothing: Callable[[Any], bool] = operator.not_
    error: type[InvalidRequestError] = InvalidRequestError


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """A row of the table of parameters."""

    name: str
    support: Literal["supported", "ignored", "refused"]
    endpoints: tuple[Endpoint, ...]
    note: str


IGNORED: Mapping[str, Ignored] = {
    "user": Ignored("no accounts here", ALL),
    "metadata": Ignored("nothing is stored", (*BOTH, *MESSAGES)),
    "store": Ignored("nothing is stored", GENERATING),
    "service_tier": Ignored("one tier; see `priority`", (*GENERATING, *MESSAGES)),
    "safety_identifier": Ignored("no accounts here", GENERATING),
    "prompt_cache_key": Ignored("the prefix cache finds shared prefixes by itself", GENERATING),
    "prompt_cache_options": Ignored("the prefix cache needs none", GENERATING),
    "prompt_cache_retention": Ignored("blocks stay cached until their memory is needed", GENERATING),
    "verbosity": Ignored("the models served here have no such control", CHAT),
    "prediction": Ignored("only ever a matter of speed", CHAT),
    "max_tool_calls": Ignored("no tool is run here, so there is nothing to limit", RESPONSES),
    "client_metadata": Ignored("nothing is stored", GENERATING),
    "access_programs": Ignored("no accounts here", RESPONSES),
    "background_options": Ignored("nothing runs in the background", RESPONSES),
    "image": Ignored("only text is served", RESPONSES),
    "cache_control": Ignored("the prefix cache finds shared prefixes by itself", (*CHAT, *MESSAGES)),
    "diagnostics": Ignored("the prefix cache finds shared prefixes by itself", MESSAGES),
    "speed": Ignored("only ever a matter of speed", MESSAGES),
    "user_profile_id": Ignored("no accounts here", MESSAGES),
    **dict.fromkeys(
        ("thinking_budget", "thinking_token_budget"), Ignored("completions know no thinking from text", COMPLETIONS)
    ),
    "billing_policy": Ignored("nothing is billed", MESSAGES),
    "fallback_credit_token": Ignored("nothing is billed", MESSAGES),
    "max_chunks_per_doc": Ignored("documents are never cut into chunks", RERANK),
    **dict.fromkeys(("betas", "anthropic_beta"), Ignored("what is served needs no header", MESSAGES)),
    **dict.fromkeys(
        ("route", "provider", "transforms"),
        Ignored("there is one model, and no way to choose; named in x-orcinus-left-out", SAMPLING, is_named=True),
    ),
    **{name: Ignored(why, SAMPLING) for name, why in WITHOUT_MEANING.items()},
}


def _keeps_all(context_management: Any) -> bool:
    """Return whether the edits, in Anthropic's form, keep all there is; some clients always send such."""
    edits = context_management.get("edits") if isinstance(context_management, dict) else context_management
    if not isinstance(edits, list):
        return not edits
    return all(isinstance(edit, dict) and edit.get("keep") == "all" for edit in edits)


_OLD_NAME = "send it as {} of structured_outputs"
_OLD_TOOLS = "the older form of tools and tool_choice"
_NO_PLACE = "answers of this API have no place for it"
_NO_TOOLS = "tools are sent as this API has them, and there are none in completions"
_NOT_STORED = "nothing is stored here: send the whole conversation as input"

REFUSED: Mapping[str, Refused] = {
    "suffix": Refused("the models served here do not fill in the middle", SAMPLING),
    "echo": Refused("completions alone give the prompt back", ALL_BUT_COMPLETIONS),
    "best_of": Refused("choose among n choices yourself", ALL_BUT_COMPLETIONS, asks_nothing(1)),
    "n": Refused("there is one answer to a request here", (*RESPONSES, *MESSAGES), asks_nothing(1)),
    "logprobs": Refused(_NO_PLACE, (*RESPONSES, *MESSAGES), lambda value: value is False),
    "return_token_ids": Refused(_NO_PLACE, (*RESPONSES, *MESSAGES)),
    "response_format": Refused(
        "send it as text.format or output_config.format", (*RESPONSES, *MESSAGES), asks_nothing({"type": "text"})
    ),
    "parallel_tool_calls": Refused(_NO_TOOLS, (*COMPLETIONS, *MESSAGES), asks_nothing(True)),
    "tools": Refused(_NO_TOOLS, COMPLETIONS),
    "tool_choice": Refused(_NO_TOOLS, COMPLETIONS, asks_nothing("none", "auto")),
    "continue_final_message": Refused("the last message is continued if it is the assistant's", MESSAGES),
    "use_beam_search": Refused("beam search is not supported", SAMPLING),
    "functions": Refused(_OLD_TOOLS, CHAT),
    "function_call": Refused(_OLD_TOOLS, CHAT, lambda value: value in ("none", "auto")),
    "guided_json": Refused(_OLD_NAME.format("json"), SAMPLING),
    "guided_regex": Refused(_OLD_NAME.format("regex"), SAMPLING),
    "guided_choice": Refused(_OLD_NAME.format("choice"), SAMPLING),
    "guided_grammar": Refused(_OLD_NAME.format("grammar"), SAMPLING),
    "modalities": Refused("only text is served", CHAT, lambda value: value == ["text"]),
    "audio": Refused("only text is served", CHAT),
    "web_search_options": Refused("no request ever leaves this server", CHAT, lambda value: False),
    "moderation": Refused("there is no moderation model here", (*CHAT, *RESPONSES), lambda value: False),
    "chat_template": Refused("templates come from the operator (--chat-template)", CHAT),
    "length_penalty": Refused("beam search is not supported", SAMPLING, asks_nothing(1)),
    "previous_response_id": Refused(_NOT_STORED, RESPONSES),
    "conversation": Refused(_NOT_STORED, RESPONSES),
    "prompt": Refused("no prompts are stored here: send it as input and instructions", RESPONSES),
    "background": Refused("nothing is stored here that could be asked for later", RESPONSES),
    "context_management": Refused("the conversation is never compacted", (*RESPONSES, *MESSAGES), _keeps_all),
    "compaction": Refused("the conversation is never compacted", MESSAGES),
    "container": Refused("no code is run here", MESSAGES),
    "mcp_servers": Refused("no request ever leaves this server", MESSAGES),
    "thread": Refused("nothing is stored: send the whole conversation", MESSAGES, error=UnsupportedThreadError),
    "fallbacks": Refused("one model is served", MESSAGES),
    "inference_geo": Refused("this server does not know where it stands", MESSAGES),
    "normalize": Refused("embeddings have length 1 here", EMBEDDINGS, lambda value: value is True),
    "truncate": Refused("send it as truncate_prompt_tokens", EMBEDDINGS),
    "embed_dtype": Refused("embeddings are float32; see encoding_format", EMBEDDINGS, asks_nothing("float32")),
    "rank_fields": Refused("of a document the text is read", RERANK, asks_nothing(["text"])),
    "relevant_spans": Refused("documents are judged as a whole", RERANK, asks_nothing({"mode": "disabled"})),
    "prompt_embeds": Refused("prompts are text or token ids", COMPLETIONS),
    **{name: Refused(why, SAMPLING, is_off) for name, (why, is_off) in FOREIGN.items()},
}


def select_parameters(body: Mapping[str, Any], model: type[BaseModel], endpoint: Endpoint) -> dict[str, Any]:
    """Return the supported parameters of a body, less those that are null.

    Raises `InvalidRequestError` naming the first that is refused or not known.
    """
    selected = {}
    for name, value in without_nulls(body).items():
        if name in model.model_fields:
            selected[name] = value
        elif name not in IGNORED or endpoint not in IGNORED[name].endpoints:
            _check_asks_nothing(name, value, endpoint)
        elif IGNORED[name].is_named and value:
            leave_out(name)
    return selected


def parameter_table(models: Mapping[Endpoint, type[BaseModel]]) -> list[ParameterRow]:
    """Return every parameter that has a decision, in the order of the tables; a field's note is its description.

    A name that endpoints use in different ways has a row for each.
    """
    supported: dict[tuple[str, str], list[Endpoint]] = {}
    for endpoint, model in models.items():
        for name, field in model.model_fields.items():
            supported.setdefault((name, field.description or ""), []).append(endpoint)
    rows = [ParameterRow(name, "supported", tuple(places), note) for (name, note), places in supported.items()]
    rows += [ParameterRow(name, "ignored", row.endpoints, row.why) for name, row in IGNORED.items()]
    rows += [ParameterRow(name, "refused", row.endpoints, row.why) for name, row in REFUSED.items()]
    return rows


def _check_asks_nothing(name: str, value: Any, endpoint: Endpoint) -> None:
    refused = REFUSED.get(name)
    if refused is None or endpoint not in refused.endpoints:
        refuse_unknown(name[:MAX_NAME_CHARS])
        return
    if not refused.asks_nothing(value):
        raise refused.error(f"{name} is not supported: {refused.why}", name)
