"""Renders a chat template in a process of its own, whose time and memory the kernel limits.

This is for what is not known to be cheap (`engine.text.template_sandbox`): starting a process for each rendering takes
a tenth of a second or two, which templates that do nothing unusual never pay. The process gets all it needs in one
message and answers in one. Knows nothing of what is rendered.
"""

import subprocess
import sys
from subprocess import PIPE
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.platform.child_process import group_signals_held, ignore_group_signals, module_command
from orcinus.engine.text.template_sandbox import MAX_RENDER_S, RenderLimitError

MAX_CHARS = 2**25
_MEMORY_BYTES = 2**29
_TIMEOUT_S = 30.0  # of the clock; the limit is in processor time


class Job(msgspec.Struct, frozen=True):
    """The arguments of a `ChatTemplate` and of its `render`."""

    source: str
    special_tokens: dict[str, Any]
    messages: list[Any]
    options: dict[str, Any]
    limit_s: float = MAX_RENDER_S  # of processor time


class Outcome(msgspec.Struct, frozen=True):
    """The text, or what is wrong and which parameter is to blame."""

    text: str = ""
    fault: str | None = None
    param: str | None = None


def render_in_child(job: Job) -> str:
    """Render in a new process and wait for it. Raises what `ChatTemplate.render` raises."""
    answer = _ask(msgspec.json.encode(job))
    if not answer:
        raise RenderLimitError(
            f"the chat template takes more than {job.limit_s:g} s or {_MEMORY_BYTES >> 20} MiB on these messages",
            "messages",
        )
    outcome = msgspec.json.decode(answer, type=Outcome)
    if outcome.fault is not None:
        raise InvalidRequestError(outcome.fault, outcome.param)
    return outcome.text


def _ask(message: bytes) -> bytes:
    """Return the answer of a new process, an empty one if the process ends over it."""
    child = module_command("orcinus.engine.text.template_process")
    with group_signals_held():
        process = subprocess.Popen(  # noqa: S603
            child.arguments, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, env=child.environment
        )
    with process:
        try:
            return process.communicate(message, _TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            return b""
        finally:
            process.kill()


def main() -> None:
    """Render one job and end, whatever becomes of the parent."""
    ignore_group_signals()
    from orcinus.engine.text.chat_template import render_unbounded

    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    _limit_resources(job.limit_s)
    sys.stdout.buffer.write(msgspec.json.encode(_outcome(render_unbounded, job)))


def _outcome(render: Any, job: Job) -> Outcome:
    try:
        text = render(job)
    except InvalidRequestError as error:
        return Outcome(fault=str(error), param=error.param)
    if len(text) > MAX_CHARS:
        return Outcome(
            fault=f"the chat template makes more than {MAX_CHARS} characters of these messages", param="messages"
        )
    return Outcome(text)


def _limit_resources(limit_s: float) -> None:
    """Limit what this process may use beyond what it has used by now."""
    if sys.platform == "win32":
        return
    import resource

    import psutil

    used = psutil.Process()
    seconds = sum(used.cpu_times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds + limit_s) + 1,) * 2)
    limit = used.memory_info().vms + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
