"""What of a model has been packed as its checkpoint has it, noted on the model, by types that people know."""

from collections import Counter
from typing import Any

_NAME = "checkpoint_bytes_by_type"


def packed_types_of(causal_lm: Any) -> dict[str, int]:
    """Return the bytes of what has been packed as the checkpoint has it, by its type; with those of an MTP head."""
    own, head = getattr(causal_lm, _NAME, {}), getattr(causal_lm, "mtp_head", None)
    return dict(Counter(own) + Counter(getattr(head, _NAME, {})))


def note_packed_types(causal_lm: Any, sizes: dict[str, int]) -> None:
    """Note what has been packed, in bytes by type."""
    setattr(causal_lm, _NAME, sizes)
