"""`orcinus serve`: settings in, a running server out.

The order of imports is the point of this module: the engine process is spawned as soon as the settings are known, and
loads the model while this process imports what HTTP needs.
"""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orcinus.config.arguments import Parser, add_settings, settings_from
from orcinus.config.settings import Settings
from orcinus.config.version import VERSION
from orcinus.engine.errors import OrcinusError
from orcinus.engine.messages import EngineInfo
from orcinus.engine.platform.child_process import ignore_user_signals
from orcinus.server import STARTED_AT
from orcinus.server.process.heap import give_freed_memory_back
from orcinus.server.process.logs import configure_logging
from orcinus.server.process.start_warnings import start_up_warnings

if TYPE_CHECKING:
    from orcinus.engine.frontend.async_engine import AsyncEngine

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Serve a model over the OpenAI HTTP API. Without MODEL, the demo model that comes with Orcinus.

Every setting is a flag, an environment variable (in brackets below) or a key of the YAML file given by --config;
the command line wins over the environment, the environment over the file.
"""
_EPILOG = """\
examples:
  orcinus serve
  orcinus serve Qwen/Qwen3-0.6B --max-model-len 4096 --max-num-seqs 32
  orcinus serve ./model.gguf --served-model-name my-model --port 9000
  ORCINUS_API_KEY=secret orcinus serve ./my-model --host 0.0.0.0
"""


def main(argv: Sequence[str]) -> int:
    """Serve until a signal. Raises `SettingsError` and, where the server cannot start or go on, `OrcinusError`."""
    parser = Parser("orcinus serve", "[MODEL] [OPTIONS]", _DESCRIPTION, _EPILOG)
    add_settings(parser, positional_model=True)
    settings = settings_from(parser.parse(argv))
    try:
        return serve(settings)
    except OrcinusError as error:
        if settings.log_format == "text":
            raise
        logger.error("%s", error)  # as every other line
        return 1


def serve(settings: Settings) -> int:
    """Run the server with these settings, and return the exit code."""
    end_at_once_on_signals()
    give_freed_memory_back()
    gc.disable()  # imports make hundreds of thousands of objects that stay: collecting among them is wasted time
    configure_logging(settings)
    _announce_loading(settings)
    from orcinus.engine.frontend.async_engine import AsyncEngine
    from orcinus.engine.platform.lean_imports import hide_torch

    engine = AsyncEngine(settings)
    engine.start()
    hide_torch(trust_remote_code=settings.trust_remote_code)
    from orcinus.server.app import create_app
    from orcinus.server.process.server import run_server

    app = create_app(engine, settings)

    def announce(info: EngineInfo, port: int) -> None:
        form = app.state.context.message_format
        if form.has_unread_tools:
            logger.warning("requests with tools are refused: %s; see --tool-call-parser", form.why_no_tools)
        _print_summary(info, settings, port, engine, form.summary)

    gc.freeze()
    gc.enable()
    return run_server(app, engine, settings, announce)


def end_at_once_on_signals() -> None:
    """End this process on SIGTERM or SIGINT, and its engine with it, until uvicorn takes the signals over.

    Nothing is raised, as Python would do on Ctrl-C: imports run callbacks in which an exception, and so the signal, is
    lost. As process 1 of a container, SIGTERM would otherwise do nothing. SIGUSR1 and SIGUSR2 do nothing, in any phase.
    """
    ignore_user_signals()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there are no keys yet to be read again


def _announce_loading(settings: Settings) -> None:
    """Say at once what is happening, as a model may take minutes to come, and what is probably not meant."""
    _say(settings, f"Orcinus {VERSION}: loading {settings.model or settings.model_names[0]} ...\n")
    for warning in start_up_warnings(settings):
        logger.warning("%s", warning)


def _say(settings: Settings, text: str, **fields: Any) -> None:
    """Write what people read to standard output, or a line of the log with the same."""
    if settings.log_format == "json":
        logger.info("%s", text.partition("\n")[0], extra={"fields": fields})
        return
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_summary(info: EngineInfo, settings: Settings, port: int, engine: "AsyncEngine", message_format: str) -> None:
    from orcinus.server.process.summary import server_url, start_up_summary

    ready_s = time.monotonic() - STARTED_AT
    summary = start_up_summary(
        info,
        settings,
        port=port,
        ready_s=ready_s,
        has_chat_template=engine.tokenizer.has_chat_template,
        message_format=message_format,
        shares=engine.shares,
    )
    url = f"unix:{settings.uds}" if settings.uds is not None else server_url(settings, port)
    _say(settings, summary, url=url, model=settings.model_names[0], ready_s=round(ready_s, 1))
