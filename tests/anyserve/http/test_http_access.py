"""Keys and origins: who is let in, and what pages of other sites may read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from anyserve.http.access import Access
from anyserve.http.exchange import Exchange
from anyserve.http.request import HttpRequest, Refusal

SITE = "https://site.example"


def asked(method: str = "POST", **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest(method, "/", headers={"host": "here:1", **named})


def refused(access: Access, request: HttpRequest) -> int | None:
    refusal = access.refusal(request)
    assert refusal is None or isinstance(refusal, Refusal)
    return None if refusal is None else refusal.status


def test_without_keys_everybody_is_let_in() -> None:
    assert refused(Access(), asked()) is None


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer one", None),
        ("bearer two ", None),
        ("Bearer three", 401),
        ("Bearer on", 401),
        ("Bearer ", 401),
        ("Bearer \udcff", 401),
        ("Basic one", 401),
        ("one", 401),
        ("", 401),
    ],
)
def test_with_keys_one_of_them_is_needed(authorization: str, status: int | None) -> None:
    access = Access(keys=("one", "two"))
    assert refused(access, asked(authorization=authorization)) == status


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Access(keys=("secret",)))


@pytest.mark.parametrize(
    ("origins", "origin", "method", "status"),
    [
        ((), SITE, "POST", 403),
        ((), "null", "POST", 403),
        ((), SITE, "GET", None),
        ((), "http://here:1", "POST", None),
        ((SITE,), SITE, "POST", None),
        ((SITE,), "https://other.example", "POST", 403),
        (("*",), SITE, "POST", None),
    ],
)
def test_pages_of_other_sites_may_ask_only_where_they_are_named(
    origins: tuple[str, ...], origin: str, method: str, status: int | None
) -> None:
    assert refused(Access(origins=origins), asked(method, origin=origin)) == status


def test_a_named_page_may_read_the_answer_and_others_may_not() -> None:
    access = Access(origins=(SITE,))
    allowed = ("access-control-allow-origin", SITE)
    assert allowed in access.fields(asked(origin=SITE))
    assert access.fields(asked(origin="https://other.example")) == (("vary", "origin"),)
    assert Access().fields(asked(origin=SITE)) == ()
    assert ("access-control-allow-origin", "*") in Access(origins=("*",)).fields(asked())


def hello(exchange: Exchange) -> None:
    exchange.respond(200, b"hello", "text/plain")


async def test_a_server_asks_for_the_key_but_where_it_is_open(open_server: Any) -> None:
    access = Access(keys=("key",), origins=(SITE,))
    async with open_server({"GET /open": hello, "GET /a": hello}, access=access) as live:
        live.routes.add_errors("/v1/", lambda status, message: b'{"of": "v1"}')
        client = await live.client()
        line = b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n"
        assert (await client.ask(line % (b"/open", b""))).status == 200
        answer = await client.ask(line % (b"/a", b""))
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "key" in json.loads(answer.body)["error"]
        answer = await client.ask(line % (b"/v1/models", b""))
        assert (answer.status, answer.body) == (401, b'{"of": "v1"}')
        answer = await client.ask(line % (b"/v1/models", b"Authorization: Bearer key\r\n"))
        assert (answer.status, answer.body) == (404, b'{"of": "v1"}')
        answer = await client.ask(line % (b"/a", b"Authorization: Bearer key\r\n"))
        assert answer.body == b"hello"


async def test_a_browser_that_asks_first_is_answered_without_a_key(open_server: Any) -> None:
    access = Access(keys=("key",), origins=(SITE,))
    preflight = (
        b"OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: https://site.example\r\n"
        b"Access-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: authorization, content-type\r\n\r\n"
    )
    async with open_server({"POST /a": hello}, access=access) as live:
        answer = await (await live.client()).ask(preflight)
        assert answer.status == 204
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"]
    async with open_server({"POST /a": hello}) as live:
        answer = await (await live.client()).ask(preflight)
        assert "access-control-allow-origin" not in answer.headers
