"""The page at / in a real browser: what a person does there, on a screen of any size, by day and by night."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.browser.browsing import launched, opened, scrolls_sideways, until_ready, wait_for
from tests.server_process import LIGHT, ServerProcess, until

pytestmark = pytest.mark.slow

TRICKY = 'It\'s "5 < 6" \\ costs $HOME `ü` 🐋?'
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def small_server(browser: Any) -> Iterator[ServerProcess]:
    """The demo model with few slots, so that some requests wait."""
    running = ServerProcess("--max-num-seqs", "4")
    yield running
    running.close()


@pytest.fixture(scope="module")
def endless_server(browser: Any) -> Iterator[ServerProcess]:
    """Whose answers go on until the context is full."""
    running = ServerProcess("--max-num-seqs", "4", module=LIGHT)
    yield running
    running.close()


@pytest.fixture(scope="module")
def guarded_server(browser: Any) -> Iterator[ServerProcess]:
    running = ServerProcess("--api-key", "sécret", module=LIGHT)
    yield running
    running.close()


def send(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def bodies_sent(page: Any) -> list[dict[str, Any]]:
    """What the page asks of chat completions from now on."""
    bodies: list[dict[str, Any]] = []
    page.on(
        "request",
        lambda request: bodies.append(request.post_data_json) if request.url.endswith("chat/completions") else None,
    )
    return bodies


# --- the conversation -----------------------------------------------------------------------------------


def test_a_conversation_is_streamed_and_goes_on_with_what_was_said(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server) as page:
        until_ready(page)
        assert "orcinus-demo" in page.inner_text("#model")
        bodies = bodies_sent(page)
        send(page, "What is the capital of France?")
        page.wait_for_selector(".timing")
        assert "Paris" in page.inner_text(".answer")
        assert re.match(r"\d+ tokens · ", page.inner_text(".timing"))
        send(page, "What is the capital of Japan?")
        wait_for(page, "document.querySelectorAll('.timing').length === 2")
        roles = [message["role"] for message in bodies[-1]["messages"]]
        assert roles == ["user", "assistant", "user"]
        assert bodies[-1]["messages"][1]["content"] == page.locator(".answer").first.inner_text()
        assert not {"tools", "temperature", "top_p", "max_tokens"} & bodies[-1].keys()
        page.click("#clear")
        page.click(".suggestion >> nth=2")
        page.wait_for_selector(".timing")
        assert [message["role"] for message in bodies[-1]["messages"]] == ["user"]


def test_settings_are_sent_where_they_are_set_and_wrong_ones_are_not(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server) as page:
        until_ready(page)
        bodies = bodies_sent(page)
        page.click("#settings summary")
        page.fill("#system", "Be brief.")
        page.fill("#temperature", "7")
        send(page, "Hello?")
        assert page.evaluate("document.activeElement.id") == "temperature"
        assert bodies == []
        for field, value in (("temperature", "0.5"), ("top-p", "0.9"), ("max-tokens", "3")):
            page.fill(f"#{field}", value)
        page.click("#send")
        page.wait_for_selector(".timing")
        assert bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (bodies[0]["temperature"], bodies[0]["top_p"], bodies[0]["max_tokens"]) == (0.5, 0.9, 3)
        assert page.inner_text(".timing").startswith("3 tokens")
        assert "temperature 0.5" in page.inner_text("#settings-summary")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_is_stopped_here_and_in_the_engine(browser: Any, endless_server: ServerProcess, way: str) -> None:
    aborted = 'orcinus_requests_total{outcome="abort"}'
    before = endless_server.metric(aborted)
    with opened(browser, endless_server) as page:
        until_ready(page)
        send(page, "On and on")
        wait_for(page, "document.querySelector('.answer')?.textContent.length > 20")
        assert page.inner_text("#send") == "Stop"
        if way == "button":
            page.click("#send")
        else:
            page.keyboard.press("Escape")
        wait_for(page, "document.querySelector('.timing')?.textContent.startsWith('Stopped')")
        assert page.inner_text("#send") == "Send"
        until(lambda: endless_server.metric(aborted) == before + 1, "the request was not aborted")


def test_a_conversation_is_cleared_while_an_answer_comes(browser: Any, endless_server: ServerProcess) -> None:
    with opened(browser, endless_server) as page:
        until_ready(page)
        bodies = bodies_sent(page)
        send(page, "On and on")
        wait_for(page, "document.querySelector('.answer')?.textContent.length > 20")
        page.click("#clear")
        wait_for(page, "document.querySelector('#send').textContent === 'Send'")
        assert page.locator("#answers > *").count() == 1
        assert page.is_visible("#empty")
        send(page, "Anew")
        page.wait_for_selector(".answer")
        assert [message["content"] for message in bodies[-1]["messages"]] == ["Anew"]
        page.keyboard.press("Escape")
        page.wait_for_selector(".timing")


def test_a_server_restarted_with_another_model_is_asked_for_that_one(browser: Any) -> None:
    before = ServerProcess("--served-model-name", "one", module=LIGHT)
    after = None
    try:
        context = browser.new_context()
        page = context.new_page()
        page.goto(before.url + "/")
        until_ready(page)
        before.close()
        page.wait_for_selector("#dot[data-status=lost]")
        port = before.url.rpartition(":")[2]
        after = ServerProcess("--port", port, "--served-model-name", "two", module=LIGHT)
        assert after.url == before.url
        wait_for(page, "document.querySelector('#model').textContent.startsWith('two')")
        bodies = bodies_sent(page)
        send(page, "Hello")
        wait_for(page, "document.querySelector('.answer')?.textContent.length > 20 || document.querySelector('.error')")
        assert bodies[-1]["model"] == "two"
        assert not page.query_selector(".error")
        context.close()
    finally:
        before.close()
        if after is not None:
            after.close()


def test_an_error_of_the_server_is_shown(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server, expected_errors=1) as page:
        until_ready(page)
        send(page, "word " * 3000)
        page.wait_for_selector(".error")
        assert "maximum context length" in page.inner_text(".error")


def test_the_page_is_used_by_the_keyboard_alone(browser: Any, endless_server: ServerProcess) -> None:
    with opened(browser, endless_server) as page:
        until_ready(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the playground"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer")
        assert page.locator(".said").text_content() == "one\ntwo"
        page.keyboard.press("Escape")
        page.wait_for_selector(".timing")


# --- copies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["curl", "python"])
def test_a_copy_is_a_program_that_gives_the_same_answer(browser: Any, small_server: ServerProcess, kind: str) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, small_server, permissions=permissions) as page:
        until_ready(page)
        page.click("#settings summary")
        page.fill("#temperature", "0")
        page.fill("#system", TRICKY)
        page.fill("#question", f"{TRICKY}\nWhat is the capital of France?")
        page.click(f"#copy-{kind}")
        page.wait_for_selector(".toast.is-shown")
        copied = page.evaluate("navigator.clipboard.readText()")
        page.click("#send")
        page.wait_for_selector(".timing")
        shown = page.locator(".answer").text_content()
    command = ["bash", "-c", copied] if kind == "curl" else [sys.executable, "-c", copied]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ})
    answer = json.loads(done.stdout)["choices"][0]["message"]["content"] if kind == "curl" else done.stdout[:-1]
    assert answer == shown


def test_a_copy_names_the_key_and_does_not_hold_it_and_is_shown_where_there_is_no_clipboard(
    browser: Any, guarded_server: ServerProcess
) -> None:
    with opened(browser, guarded_server, expected_errors=1) as page:
        page.fill("#key", "sécret")
        page.press("#key", "Enter")
        until_ready(page)
        page.evaluate("() => void (navigator.clipboard.writeText = () => Promise.reject(new Error()))")
        for kind, named in (("curl", "$ORCINUS_API_KEY"), ("python", 'os.environ["ORCINUS_API_KEY"]')):
            page.click(f"#copy-{kind}")
            text = page.input_value("#snippet-text")
            assert named in text
            assert "cret" not in text.replace("secret", "")
            page.keyboard.press("Escape")


# --- the slots ------------------------------------------------------------------------------------------


def test_slots_fill_move_and_are_replaced_and_the_numbers_follow(browser: Any, endless_server: ServerProcess) -> None:
    with opened(browser, endless_server) as page, ThreadPoolExecutor(7) as pool:
        until_ready(page)
        assert page.is_visible("#idle")
        bodies = [{"prompt": f"number {i}", "max_tokens": 700, "n": 1} for i in range(7)]
        asked = [pool.submit(endless_server.http.post, "/v1/completions", json=body) for body in bodies]
        wait_for(page, "document.querySelector('#busy').textContent === '4 of 4 taken'")
        wait_for(page, "document.querySelector('#waiting').textContent === '3'")
        wait_for(page, "document.querySelectorAll('#queue i').length === 3")
        wait_for(page, "document.querySelectorAll('#holders tr').length === 4")
        before = page.evaluate("document.querySelector('#lanes').toDataURL()")
        until(lambda: page.evaluate("document.querySelector('#lanes').toDataURL()") != before, "nothing moves")
        first = page.inner_text("#holders")
        ids = [future.result().json()["id"][-6:] for future in asked]
        wait_for(page, "document.querySelector('#busy').textContent === '0 of 4 taken'")
        assert set(re.findall(r"\b[0-9a-f]{6}\b", first)) <= set(ids)
        assert page.inner_text("#tokens-graph + *, #ttft") != "–"
        assert page.get_attribute("#tokens-graph .line", "d")


def test_who_holds_how_much_is_shown_by_key(browser: Any, guarded_server: ServerProcess) -> None:
    with opened(browser, guarded_server, expected_errors=1) as page, ThreadPoolExecutor(2) as pool:
        page.fill("#key", "sécret")
        page.press("#key", "Enter")
        until_ready(page)
        page.click("#by-key")
        headers = {b"authorization": "Bearer sécret".encode()}
        body = {"prompt": "a", "max_tokens": 1500, "n": 2}
        asked = pool.submit(guarded_server.http.post, "/v1/completions", json=body, headers=headers)
        wait_for(page, "document.querySelector('#holders th')?.textContent === 'key 1'")
        wait_for(page, "document.querySelector('#holders td')?.textContent === '2'")
        assert page.get_attribute("#by-key", "aria-pressed") == "true"
        assert asked.result().status_code == 200


def test_continuous_batching_happens_beside_static(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server) as page:
        until_ready(page)
        wait_for(page, "document.querySelector('#race-send').textContent === 'Send 16 at once'")
        page.click("#race-send")
        wait_for(page, "/^Static batching would/.test(document.querySelector('#race-verdict').textContent)")
        note = page.inner_text("#race-note")
        assert "computed, not run: 16 answers" in note
        assert "in batches of 4" in note
        assert page.locator("#race-panels .tag").all_inner_texts() == ["measured", "computed"]
        idle = [
            int(re.findall(r"idle (\d+) %", page.inner_text(f"#race-{side}"))[0]) for side in ("continuous", "static")
        ]
        assert idle[0] < idle[1]


def test_requests_that_all_fit_are_said_to(browser: Any, server: ServerProcess) -> None:
    with opened(browser, server) as page:
        until_ready(page)
        page.select_option("#race-size", "16")
        page.click("#race-send")
        wait_for(page, "/^All 16 fit/.test(document.querySelector('#race-verdict').textContent)")


def test_static_batches_are_reckoned_as_they_would_run(browser: Any, small_server: ServerProcess) -> None:
    """Two slots; 10 ms a step and 1 ms more for each request in it; all prompts 40 ms."""
    script = """async () => {
      const { staticBars, stepCosts, idleShare, withPauses } = await import("/page/static_batches.js");
      const of = (rows, ms, prefill = 0) => ({ rows, prefill, seconds: ms / 1000 });
      const costs = stepCosts([of(1, 11), of(2, 12), of(4, 14), of(2, 52, 30)]);
      const { bars, end } = staticBars([3, 1, 2, 2], 2, costs);
      const flat = stepCosts([of(4, 10), of(4, 12)]);
      const paused = [withPauses(costs, 0.5, 0.75), withPauses(costs, 0.5, 0.1)].map(each => each.base);
      return { costs, bars, end, flat, paused, idle: idleShare(bars, 2, end), none: staticBars([], 2, costs).end };
    }"""
    with opened(browser, small_server) as page:
        got = page.evaluate(script)
    assert got["costs"] == pytest.approx({"base": 0.010, "perRow": 0.001, "prompts": 0.040})
    # The first batch: 20 ms of prompts, a step of two, then two steps of one. The second: two steps of two.
    first, second = 0.020 + 0.012 + 2 * 0.011, 0.020 + 2 * 0.012
    assert [bar["end"] for bar in got["bars"]] == pytest.approx([first, 0.032, first + second, first + second])
    assert [bar["start"] for bar in got["bars"]] == pytest.approx([0, 0, first, first])
    assert got["end"] == pytest.approx(first + second)
    assert got["idle"] == pytest.approx((first - 0.032) / (2 * (first + second)))
    assert (got["flat"]["base"], got["flat"]["perRow"]) == (pytest.approx(0.011), 0)
    assert got["paused"] == pytest.approx([0.015, 0.010])
    assert got["none"] == 0


# --- keys, themes and sizes -----------------------------------------------------------------------------


def test_a_key_is_asked_for_and_a_wrong_one_is_told(browser: Any, guarded_server: ServerProcess) -> None:
    with opened(browser, guarded_server, expected_errors=2) as page:
        page.wait_for_selector("#login[open]")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        wait_for(page, "document.querySelector('#login-title').textContent.includes('not valid')")
        page.fill("#key", "sécret")
        page.press("#key", "Enter")
        until_ready(page)
        assert not page.is_visible("#login")
        send(page, "Hello")
        wait_for(page, "document.querySelector('.answer')?.textContent.length > 20")
        page.keyboard.press("Escape")
        assert "sécret" not in page.content()
        page.reload()
        until_ready(page)  # in the same tab it is not asked for again


@pytest.mark.parametrize("way", ["#send", "#race-send"])
def test_a_key_that_was_not_given_is_asked_for_again(browser: Any, guarded_server: ServerProcess, way: str) -> None:
    with opened(browser, guarded_server, expected_errors=1) as page:
        page.wait_for_selector("#login[open]")
        page.click("#login-cancel")
        page.fill("#question", "Hello")
        page.click(way)
        page.wait_for_selector("#login[open]")
        page.fill("#key", "sécret")
        page.press("#key", "Enter")
        until_ready(page)
        page.click("#send")
        wait_for(page, "document.querySelector('.answer')?.textContent.length > 20")
        page.keyboard.press("Escape")
        page.wait_for_selector(".timing")


def luminance(colour: list[float]) -> float:
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TEXT_ON = [
    *[(text, ground) for text in ("--ink", "--muted") for ground in ("--card", "--paper", "--lane", "--accent-soft")],
    *[(text, "--card") for text in ("--accent", "--bad")],
    ("--on-accent", "--accent"),
    *[("--on-tone", f"--tone-{tone}") for tone in range(6)],
    *[("--on-tone", f"--mine-{tone}") for tone in range(2)],
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(browser: Any, small_server: ServerProcess, scheme: str) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks of text (1.4.3)."""
    script = """names => Object.fromEntries(names.map(name => {
      document.body.style.color = `var(${name})`;
      const canvas = new OffscreenCanvas(1, 1).getContext("2d");
      canvas.fillStyle = getComputedStyle(document.body).color;
      canvas.fillRect(0, 0, 1, 1);
      return [name, [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)];
    }))"""
    with opened(browser, small_server, color_scheme=scheme) as page:
        until_ready(page)
        colours = page.evaluate(script, sorted({name for pair in TEXT_ON for name in pair}))
    shades = {name: luminance(colour) for name, colour in colours.items()}
    assert (shades["--paper"] < 0.1) == (scheme == "dark")
    for text, ground in TEXT_ON:
        lighter, darker = sorted((shades[text], shades[ground]), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_the_theme_follows_the_system_until_one_is_chosen(browser: Any, small_server: ServerProcess) -> None:
    is_dark = "getComputedStyle(document.body).colorScheme"
    with opened(browser, small_server, color_scheme="dark") as page:
        until_ready(page)
        assert page.evaluate(is_dark) == "light dark"
        for theme, scheme in (("Light", "light"), ("Dark", "dark")):
            page.click("#theme")
            assert page.inner_text("#theme-name") == theme
            assert page.evaluate(is_dark) == scheme
        page.reload()
        until_ready(page)
        assert page.evaluate(is_dark) == "dark"
        page.click("#theme")
        assert page.evaluate(is_dark) == "light dark"


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server, **PHONE) as page:
        until_ready(page)
        assert not scrolls_sideways(page)
        page.tap("#settings summary")
        page.fill("#question", "What is the capital of France?" * 3)
        page.tap("#send")
        page.wait_for_selector(".timing")
        page.tap("#race-send")
        page.wait_for_selector("#race-panels:not([hidden])")
        assert not scrolls_sideways(page)
        sizes = page.evaluate(
            "[...document.querySelectorAll('button, select')].filter(each => each.offsetParent)"
            ".map(each => [each.id || each.textContent, each.getBoundingClientRect().height])"
        )
        assert not [size for size in sizes if size[1] < 24]  # as WCAG 2.2 asks of targets (2.5.8)


def test_without_motion_everything_is_there(browser: Any, small_server: ServerProcess) -> None:
    with opened(browser, small_server, reduced_motion="reduce") as page:
        until_ready(page)
        frames = "new Promise(r => { const f = requestAnimationFrame; let n = 0;" + (
            "window.requestAnimationFrame = c => { n++; return f(c); }; setTimeout(() => r(n), 300); })"
        )
        assert page.evaluate(frames) == 0
        page.click("#race-send")
        page.wait_for_selector("#race-panels:not([hidden])")
        assert page.evaluate("document.getAnimations().length") == 0


def test_whatever_can_be_operated_has_a_name(browser: Any, small_server: ServerProcess) -> None:
    script = """[...document.querySelectorAll("button, input, textarea, select, canvas, svg[role], a, dialog")]
      .filter(each => !(each.ariaLabel || each.getAttribute("aria-labelledby") || each.labels?.length
                        || each.textContent.trim())).map(each => each.outerHTML)"""
    with opened(browser, small_server) as page:
        until_ready(page)
        assert page.evaluate(script) == []
        assert page.evaluate("document.documentElement.lang") == "en"
