"""Keys and origins: who is let in, and what pages of other sites may read."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from typing import Any

import pytest

from anyserve.http.access import Access, is_loopback
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


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("here.localhost", True),
        ("localhost.", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_loopback_is_known_by_its_name(name: str, is_so: bool) -> None:
    assert is_loopback(name) is is_so


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", None),
        ("localhost", None),
        ("LOCALHOST:80", None),
        ("[::1]:8080", None),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("192.168.0.1:8080", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_on_this_machine_alone_no_name_that_could_be_anothers_will_do(
    host: str, status: int | None
) -> None:
    # The page's origin is then the same as the host, as the browser sees it.
    request = asked(host=host, origin=f"http://{host}" if host != "[::1" else "null")
    assert refused(Access(is_local=True), request) == status
    assert refused(Access(), asked("GET", host=host)) is None


def test_http_1_0_asks_without_a_name() -> None:
    assert refused(Access(is_local=True), HttpRequest("GET", "/")) is None


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


def answer_of(address: str, path: str, host: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of what curl would be answered with `-H 'Host: ...'`."""
    port = int(address.rpartition(":")[2])
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"host": host})
        with connection.getresponse() as answer:
            return answer.status, answer.read()


def test_a_port_on_loopback_without_a_key_answers_to_no_other_name(http_replica: Any) -> None:
    chat = {"model": "decode", "messages": [{"role": "user", "content": "x"}]}
    for path, body in (
        ("/v1/models", None),
        ("/v1/chat/completions", chat),
        ("/v2", None),
        ("/v2/models/echo/generate", {}),
        ("/metrics", None),
        ("/nothing", None),
        ("/console", None),
    ):
        status, answer = answer_of(http_replica.http, path, "evil.example", body)
        assert status == 403, path
        error = json.loads(answer)["error"]
        message = error["message"] if path.startswith("/v1") else error
        assert "not at 'evil.example'" in message
    for path in ("/health", "/ready"):
        assert answer_of(http_replica.http, path, "evil.example")[0] == 200
    for host in ("127.0.0.1:1", "localhost", "localhost:99", "[::1]:8080", http_replica.http):
        for path in ("/v1/models", "/v2", "/metrics", "/health", "/ready", "/console"):
            assert answer_of(http_replica.http, path, host)[0] == 200


def test_a_client_of_http_1_0_needs_to_name_nothing(http_replica: Any) -> None:
    host, _, port = http_replica.http.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as answer:
            assert b" 200 " in answer.readline()


@pytest.mark.parametrize(
    "options", [("--http-host", "0.0.0.0"), ("--api-key", "secret")], ids=["elsewhere", "a key"]
)
def test_behind_a_proxy_it_answers_to_the_name_that_the_proxy_has(
    start_replica: Any, options: tuple[str, ...]
) -> None:
    address = start_replica("--app", "behaviours:app", "--http", "0", *options).http
    status, _ = answer_of(address, "/v2", "models.example.com")
    assert status == (401 if "secret" in options else 200)
