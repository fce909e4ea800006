"""The blocks of a message of Anthropic's API: those of text in one form, whatever they come as.

Documents, results of searches and references to tools are texts to the model. What a tool of another server left behind
is passed over, and the answer says so. Knows nothing of turns.
"""

from collections.abc import Collection
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.apis.offered_tools import is_hosted, leave_out_hosted
from orcinus.server.errors import shown
from orcinus.server.json_values import read_object, read_string

TEXT = ("text",)
USER = ("text", "document", "search_result", "tool_result")
RESULT = ("text", "document", "search_result", "tool_reference")
ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use")
_OTHERS_BLOCKS = ("server_tool_use", "compaction", "container_upload")  # beside those that are named after hosted tools

Block = dict[str, Any]
PlacedBlock = tuple[Block, str]  # and its place in the body, for errors


def read_blocks(content: Any, where: str, kinds: Collection[str]) -> list[PlacedBlock]:
    """Return the blocks that the model is shown, of which each has its text or thinking in place.

    A string is one block of text. Raises `InvalidRequestError` for blocks of kinds that are not among these.
    """
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(f"{where} must be a string or a list of blocks, got {shown(content)}", where)
    placed = [(block, f"{where}[{index}]") for index, block in enumerate(content)]
    return [(_read_block(block, place, kinds), place) for block, place in placed if not _is_left_out(block, place)]


def _is_left_out(block: Any, where: str) -> bool:
    """Return whether the block is of a tool that another server ran, and say that it is passed over."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not is_hosted(kind) and kind not in _OTHERS_BLOCKS:
        return False
    leave_out_hosted(str(kind), where)
    return True


def _read_block(block: Any, where: str, kinds: Collection[str]) -> Block:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidRequestError(
            f"{where}: this model takes text only, here in blocks of type {', '.join(kinds)}; got {shown(kind)}", where
        )
    match kind:
        case "text" | "thinking":
            read_string(block, kind, where)
        case "document":
            return {"type": "text", "text": _read_document(block, where)}
        case "search_result":
            return {"type": "text", "text": _read_texts(block.get("content"), f"{where}.content")}
        case "tool_reference":
            return {"type": "text", "text": read_string(block, "tool_name", where)}
    found: Block = block
    return found


def _read_document(block: Block, where: str) -> str:
    source = read_object(block.get("source"), f"{where}.source")
    match source.get("type"):
        case "text":
            return read_string(source, "data", f"{where}.source")
        case "content":
            return _read_texts(source.get("content"), f"{where}.source.content")
        case kind:
            raise InvalidRequestError(
                f'{where}.source: this model takes text only, in a "document" whose source is of type text or content; '
                f"got {shown(kind)}",
                f"{where}.source",
            )


def _read_texts(content: Any, where: str) -> str:
    return "\n".join(block["text"] for block, _ in read_blocks(content, where, TEXT))
