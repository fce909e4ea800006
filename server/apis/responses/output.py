"""The items of a response's output, put together piece by piece, and the events that tell of each step.

An item is a message, the reasoning, or one call of a function. Knows nothing of the response around them, nor of bytes.
"""

import uuid
from abc import ABC, abstractmethod
from typing import Any, Literal

from orcinus.server.apis.json_pieces import JsonList, JsonValue
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart

Event = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class OutputItems:
    """At most the last item is open; it is closed by whatever is no part of it.

    The events of a piece are those of its item's beginning and of its text; whoever needs no events drops them.
    """

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._open: _Item | None = None

    def add(self, piece: Piece, logprobs: bytes = b"") -> list[Event]:
        """Return the events of a piece. `logprobs` are those of the tokens behind a piece of content, written."""
        match piece:
            case Content(text):
                return self._switch_to(_MessageItem) + self._extend(text, logprobs)
            case Reasoning(text):
                return self._switch_to(_ReasoningItem) + self._extend(text)
            case ToolCallStart(_, call_id, name, is_custom, namespace):
                kind = _CustomCallItem if is_custom else _FunctionCallItem
                return self.close() + self._begin(kind(len(self._items), call_id, name, namespace))
            case ToolCallArguments(_, text):
                return self._extend(text)

    def end(self, status: Status, logprobs: bytes = b"") -> list[Event]:
        """Close the open item with this status, and return the last events; at least there is an empty message."""
        events = [] if self._items else self._switch_to(_MessageItem)
        if logprobs and isinstance(self._open, _MessageItem):
            events += self._extend("", logprobs)
        return events + self.close(status)

    def close(self, status: Status = "completed") -> list[Event]:
        """Close the open item, if there is one."""
        item, self._open = self._open, None
        return [] if item is None else item.end(status)

    def to_list(self) -> list[dict[str, Any]]:
        return [item.to_dict() for item in self._items]

    def _switch_to(self, kind: "type[_MessageItem | _ReasoningItem]") -> list[Event]:
        return [] if isinstance(self._open, kind) else self.close() + self._begin(kind(len(self._items)))

    def _begin(self, item: "_Item") -> list[Event]:
        self._items.append(item)
        self._open = item
        return item.begin()

    def _extend(self, text: str, logprobs: bytes = b"") -> list[Event]:
        assert self._open is not None
        return [self._open.extend(text, logprobs)]


class _Item(ABC):
    """One entry of `output`. `_place` is what its events say of where they belong."""

    id_prefix: str

    def __init__(self, output_index: int) -> None:
        self.id = f"{self.id_prefix}_{uuid.uuid4().hex}"
        self.status: Status = "in_progress"
        self._place: dict[str, Any] = {"item_id": self.id, "output_index": output_index}
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the item as it is now. What is in progress has no content yet."""

    @abstractmethod
    def extend(self, text: str, logprobs: bytes) -> Event: ...

    def begin(self) -> list[Event]:
        return [self._item_event("response.output_item.added")]

    def end(self, status: Status) -> list[Event]:
        self.status = status
        return [*self._last_events(), self._item_event("response.output_item.done")]

    @abstractmethod
    def _last_events(self) -> list[Event]:
        """Return what comes before the event that the item is done."""

    def _item_event(self, name: str) -> Event:
        return {"type": name, "output_index": self._place["output_index"], "item": self.to_dict()}


class _TextItem(_Item):
    """An item whose content is one part. `text_event` is what the names of its events begin with."""

    text_event: str

    def __init__(self, output_index: int) -> None:
        super().__init__(output_index)
        self._place["content_index"] = 0

    @property
    def _content(self) -> list[dict[str, Any]]:
        return [] if self.status == "in_progress" else [self._part()]

    @abstractmethod
    def _part(self) -> dict[str, Any]:
        """Return the part as it is now."""

    def begin(self) -> list[Event]:
        return [*super().begin(), {"type": "response.content_part.added", **self._place, "part": self._part()}]

    def extend(self, text: str, logprobs: bytes) -> Event:
        self._parts.append(text)
        return {"type": f"{self.text_event}.delta", **self._place, "delta": text}

    def _last_events(self) -> list[Event]:
        return [
            {"type": f"{self.text_event}.done", **self._place, "text": self.text},
            {"type": "response.content_part.done", **self._place, "part": self._part()},
        ]


class _ReasoningItem(_TextItem):
    id_prefix = "rs"
    text_event = "response.reasoning_text"

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "reasoning",
            "summary": [],
            "content": self._content,
            "encrypted_content": None,
            "status": self.status,
        }

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}


class _MessageItem(_TextItem):
    id_prefix = "msg"
    text_event = "response.output_text"

    def __init__(self, output_index: int) -> None:
        super().__init__(output_index)
        self._logprobs = JsonList()

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "status": self.status,
            "role": "assistant",
            "content": self._content,
        }

    def _part(self) -> dict[str, Any]:
        logprobs: Any = [] if self.status == "in_progress" else self._logprobs  # they grow before an event is written
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}

    def extend(self, text: str, logprobs: bytes) -> Event:
        self._logprobs.add(logprobs)
        return {**super().extend(text, logprobs), "logprobs": JsonValue(b"[%b]" % logprobs)}

    def _last_events(self) -> list[Event]:
        done, part_done = super()._last_events()
        return [{**done, "logprobs": self._logprobs}, part_done]


class _FunctionCallItem(_Item):
    id_prefix = "fc"

    def __init__(self, output_index: int, call_id: str, name: str, namespace: str | None) -> None:
        super().__init__(output_index)
        self._called = {"call_id": call_id, "name": name, **({"namespace": namespace} if namespace else {})}

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            **self._called,
            "arguments": self.text,
        }

    def extend(self, text: str, logprobs: bytes) -> Event:
        self._parts.append(text)
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def _last_events(self) -> list[Event]:
        return [{"type": "response.function_call_arguments.done", **self._place, "arguments": self.text}]


class _CustomCallItem(_FunctionCallItem):
    id_prefix = "ctc"

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "type": "custom_tool_call", "status": self.status, **self._called, "input": self.text}

    def extend(self, text: str, logprobs: bytes) -> Event:
        self._parts.append(text)
        return {"type": "response.custom_tool_call_input.delta", **self._place, "delta": text}

    def _last_events(self) -> list[Event]:
        return [{"type": "response.custom_tool_call_input.done", **self._place, "input": self.text}]
