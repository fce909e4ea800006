"""An object of JSON that is written as its JSON text: what the arguments of a call are to a chat template.

OpenAI's API sends arguments as text, transformers documents them as an object, and templates are written for either:
some add the arguments to a text, some write them with `tojson`, some go through them (decision 37). Knows nothing of
messages.
"""

import json
from collections.abc import Mapping
from typing import Any


class JsonObject(dict[str, Any]):
    """A dict in all but its text. Added to a text, printed, or asked for a method of texts, it is its JSON."""

    __slots__ = ("_text",)

    def __init__(self, values: Mapping[str, Any], text: str | None = None) -> None:
        """`text` is how whoever sent it wrote it; without any it is written as transformers' `tojson` does."""
        super().__init__(values)
        self._text = json.dumps(values, ensure_ascii=False) if text is None else text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: Any) -> Any:
        return self._text + _as_text(other)

    def __radd__(self, other: Any) -> Any:
        return _as_text(other) + self._text

    def __getattr__(self, name: str) -> Any:
        """Return a method of texts, which a template finds where no entry has its name."""
        if name in self:
            raise AttributeError(name)
        return getattr(self._text, name)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, JsonObject) else value
