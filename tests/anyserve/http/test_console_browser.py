"""The console in a real browser: Debian's chromium, where it is installed."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Page, expect

WAITING = json.dumps({"pieces": ["one"], "after": "wait"})
"""A prompt whose answer does not end."""
NARROW = {"width": 400, "height": 800}

OpenConsole = Callable[..., Page]


@contextmanager
def streaming(address: str, prompt: str, request_id: str) -> Iterator[http.client.HTTPResponse]:
    """A chat that another client has begun."""
    body = {"model": "decode", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    headers = {"x-request-id": request_id, "x-request-timeout": "60"}
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        with connection.getresponse() as answer:
            yield answer


def test_it_shows_the_replica_its_capabilities_and_its_actors(
    scripted_replica: Any, open_console: OpenConsole
) -> None:
    page = open_console(scripted_replica.http)
    expect(page.locator("#status")).to_have_text("live")
    expect(page.locator("#who")).to_contain_text(scripted_replica.address)
    expect(page.locator(".replica h3")).to_have_text("replica")
    names = page.locator(".capability .name")
    expect(names).to_have_count(2)
    expect(names.first).to_contain_text("decode")
    expect(page.locator(".capability .load").first).to_have_text("0 of 32 running")
    expect(page.locator("#tree")).to_contain_text("dispatcher")
    expect(page.locator("#tree b").first).to_have_text("replica")


def test_a_prompt_is_answered_as_it_comes(scripted_replica: Any, open_console: OpenConsole) -> None:
    page = open_console(scripted_replica.http)
    expect(page.locator("#model")).to_have_value("scripted")
    page.get_by_label("Message").fill("these words <b>come</b> back")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer")).to_have_text("these words <b>come</b> back")
    expect(page.locator("#answer-note")).to_have_text(re.compile(r"^4 tokens in .* the first"))
    assert page.locator("#answer b").count() == 0


def test_a_prompt_is_stopped_and_its_request_ends(
    scripted_replica: Any, open_console: OpenConsole
) -> None:
    page = open_console(scripted_replica.http)
    page.get_by_label("Message").fill(WAITING)
    page.get_by_label("Message").press("Control+Enter")
    expect(page.locator("#answer")).to_have_text("one")
    expect(page.locator("#requests li")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#answer-note")).to_have_text("Stopped.")
    expect(page.locator("#requests li")).to_have_count(0)


def test_a_running_request_is_cancelled_by_the_keyboard(
    scripted_replica: Any, open_console: OpenConsole
) -> None:
    page = open_console(scripted_replica.http)
    with streaming(scripted_replica.http, WAITING, "<i>mine</i>") as answer:
        row = page.locator("#requests li")
        expect(row).to_have_count(1)
        expect(row).to_contain_text("decode <i>mine</i>")
        expect(row.locator(".state")).to_have_text("running")
        expect(row.locator(".when")).to_have_text(re.compile(r"old, 5\d s left"))
        page.get_by_role("button", name="Cancel decode <i>mine</i>").focus()
        page.keyboard.press("Enter")
        events = answer.read().decode()
    assert "cancelled at the console" in events
    assert "[DONE]" not in events
    expect(row).to_have_count(0)
    expect(page.locator("#in-flight")).to_have_text("0")


def test_it_asks_for_the_key_once(start_replica: Any, open_console: OpenConsole) -> None:
    options = ("--app", "scripted:create_app", "--http", "0", "--api-key", "secret")
    page = open_console(start_replica(*options).http, expected="401")
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_contain_text("the key is not known")
    page.get_by_label("API key").fill("secret")
    page.get_by_label("API key").press("Enter")
    expect(page.locator("#status")).to_have_text("live")
    page.reload()
    expect(page.locator("#status")).to_have_text("live")
    page.get_by_label("Message").fill("with a key")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer")).to_have_text("with a key")
    assert page.evaluate("document.cookie + localStorage.length") == "0"


def test_it_says_when_the_replica_has_gone(start_replica: Any, open_console: OpenConsole) -> None:
    live = start_replica("--app", "scripted:create_app", "--http", "0")
    page = open_console(live.http, expected="ERR_")
    expect(page.locator("#status")).to_have_text("live")
    began = time.monotonic()
    assert live.stop() == 0
    assert time.monotonic() - began < 10, "a page that looked on held the drain"
    expect(page.locator("#status")).to_have_text("not connected")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_400_pixels(
    http_replica: Any, open_console: OpenConsole, scheme: Any
) -> None:
    page = open_console(http_replica.http)
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    expect(page.locator("#status")).to_have_text("live")
    expect(page.locator(".capability").first).to_be_visible()
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('body *')]"
        ".map((node) => node.getBoundingClientRect().right))"
    )
    assert widest <= NARROW["width"]
