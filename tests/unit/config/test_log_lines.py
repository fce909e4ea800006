"""Lines of the log as JSON: one object a line, whatever is in it."""

import asyncio
import json
import logging
from typing import Any

import pytest

from orcinus.config.log_lines import JsonFormatter, begin_log_fields, log_fields


def line_of(message: str, *args: Any, **options: Any) -> dict[str, Any]:
    record = logging.getLogger("orcinus.test").makeRecord(
        "orcinus.test", logging.WARNING, "file", 1, message, args, options.pop("exc_info", None), extra=options
    )
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


@pytest.mark.parametrize("text", ["two\nlines", 'a "quote"', "half of \ud83d", "\x1b[31m", "日本"])
def test_whatever_is_said_is_one_object_in_one_line(text: str) -> None:
    line = line_of("said: %s", text)
    assert line["message"] == f"said: {text}"
    assert (line["level"], line["logger"]) == ("warning", "orcinus.test")
    assert line["time"].endswith("Z")


def test_a_traceback_is_in_the_object() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        line = line_of("failed", exc_info=(type(error), error, error.__traceback__))
    assert line["exception"].endswith("ValueError: no")


def test_fields_of_a_record_are_in_the_object_and_what_is_no_json_as_text() -> None:
    assert line_of("read", fields={"path": ValueError("x"), "number": 1})["path"] == "x"


async def test_fields_of_a_request_are_in_lines_of_its_task_and_of_those_it_starts() -> None:
    seen: dict[str, Any] = {}

    async def request(name: str) -> None:
        begin_log_fields(request_id=name)
        log_fields()["span_id"] = f"span of {name}"
        await asyncio.create_task(inner(name))

    async def inner(name: str) -> None:
        await asyncio.sleep(0)
        seen[name] = line_of("inside")

    await asyncio.gather(request("a"), request("b"))
    for name in ("a", "b"):
        assert (seen[name]["request_id"], seen[name]["span_id"]) == (name, f"span of {name}")
    assert "request_id" not in line_of("outside")
    log_fields()["request_id"] = "nobody's"
    assert "request_id" not in line_of("outside")
