"""A browser that notes whatever is wrong with a page: errors, requests to others, breaches of its own policy."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server_process import ServerProcess, until

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)

_NOTE_VIOLATIONS = """
  window.violations = [];
  addEventListener("securitypolicyviolation", event => window.violations.push(event.violatedDirective));
"""


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A headless Chromium of the system. Skips the test where there is none, or nothing to drive it."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here; Debian's package of that name has it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Any, server: ServerProcess, *, expected_errors: int = 0, **options: Any) -> Iterator[Any]:
    """The page of a server; at the end there must be nothing wrong with it.

    `expected_errors` are answers of 400 and more, each of which the browser's console tells of.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.add_init_script(_NOTE_VIOLATIONS)
    context.set_default_timeout(60_000)  # a machine that is busy
    page = context.new_page()
    console: list[str] = []
    errors: list[str] = []
    foreign: list[str] = []
    page.on("console", lambda message: console.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    own = (server.url + "/", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    try:
        page.goto(server.url + "/")
        yield page
        assert page.evaluate("window.violations") == []
        assert (errors, foreign) == ([], [])
        assert len(console) == expected_errors, console
    finally:
        context.close()


def until_ready(page: Any) -> None:
    page.wait_for_selector("#dot[data-status=ready]")


def wait_for(page: Any, expression: str) -> None:
    """Wait until an expression is true. Playwright's own way needs `eval`, which the page's policy forbids."""
    until(lambda: page.evaluate(expression), f"not so: {expression}", timeout_s=60)


def scrolls_sideways(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
