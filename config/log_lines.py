"""How log lines look, in the processes of the server and of the engine: text for people, or one JSON object a line.

What is known of the request at hand stands in its lines' objects, wherever in its task they are written. Knows nothing
of who writes what.
"""

import json
import logging
import time
from contextvars import ContextVar
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_fields: ContextVar[dict[str, Any] | None] = ContextVar("log_fields", default=None)


def log_fields() -> dict[str, Any]:
    """Return what the lines of the request at hand have besides, to be changed; nobody's outside of one."""
    fields = _fields.get()
    return {} if fields is None else fields


def begin_log_fields(**fields: Any) -> dict[str, Any]:
    """Begin the fields of a request, for this task and those that it starts."""
    _fields.set(fields)
    return fields


def configure_log_lines(level: str, log_format: LogFormat, text_format: str) -> None:
    """Set up the root logger of this process. Lines go to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(text_format))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if log_format == "json":
        logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """Writes `time` (UTC), `level`, `logger`, `message`, the request's fields, those of the record, `exception`.

    A record has fields of its own where it is logged with `extra={"fields": {...}}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **log_fields(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
