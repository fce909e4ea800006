"""Draws the pictures of docs/images: `python -m tests.browser.screenshots`. They show the demo model under load.

Needs Debian's chromium. The pictures have a palette of 256 colours, so that they are small.
"""

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.browser.browsing import launched, opened, until_ready
from tests.server_process import ROOT, ServerProcess

FOLDER = ROOT / "docs/images"
NUM_SLOTS = 8
QUESTIONS = ["Tell me a story.", "What is the capital of Peru?", "List the planets.", "Tell me a story about a dog."]
DESKTOP = {"viewport": {"width": 1440, "height": 1120}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}


class Load:
    """Clients that ask one question after the other, as long as the block lasts."""

    def __init__(self, server: ServerProcess, num_clients: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(num_clients)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        while not self._stop.is_set():
            messages = [{"role": "user", "content": rng.choice(QUESTIONS)}]
            body = {"messages": messages, "max_tokens": rng.randrange(60, 420), "ignore_eos": rng.random() < 0.8}
            try:
                self._server.http.post("/v1/chat/completions", json=body)
            except httpx.HTTPError:
                return
            time.sleep(rng.random() * 0.1)


def draw(browser: Any, server: ServerProcess, name: str, options: dict[str, Any], *, has_race: bool) -> None:
    with opened(browser, server, **options) as page:
        until_ready(page)
        if has_race:
            page.click("#race-send")
            page.wait_for_selector("#race-panels:not([hidden])")
            page.evaluate("scrollTo(0, 0)")
        with Load(server, NUM_SLOTS + 5):
            time.sleep(9)
            page.click(".suggestion >> nth=1")
            page.wait_for_selector(".timing")
            page.fill("#question", "Tell me a story about a dog.")
            page.press("#question", "Enter")
            time.sleep(2.5)
            page.screenshot(path=FOLDER / name, full_page=options is PHONE)
    shrink(FOLDER / name)


def shrink(path: Path) -> None:
    """Write a picture again with fewer colours, which nobody sees on a page as plain as this."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with launched() as browser:
        server = ServerProcess("--max-num-seqs", str(NUM_SLOTS))
        try:
            draw(browser, server, "page-light.png", {**DESKTOP, "color_scheme": "light"}, has_race=True)
            draw(browser, server, "page-dark.png", {**DESKTOP, "color_scheme": "dark"}, has_race=True)
            draw(browser, server, "page-phone.png", PHONE, has_race=False)
        finally:
            server.close()


if __name__ == "__main__":
    main()
