"""The server, with clients that send bytes: one answer for each request, in order, and bounds."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from anyserve.errors import InvalidArgument
from anyserve.http.exchange import Exchange
from anyserve.http.parser import HttpLimits

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"


def post(path: str, body: bytes) -> bytes:
    return POST % (path.encode(), len(body), body)


def get(path: str) -> bytes:
    return GET % path.encode()


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.request.body, "text/plain")


async def settled() -> None:
    """Let everything happen that can."""
    for _ in range(3):
        await wait_all_tasks_blocked(0.005)


async def test_a_connection_is_kept_for_the_next_request(open_server: Any) -> None:
    async with open_server({"POST /echo": echo}) as live:
        client = await live.client()
        for body in (b"one", b"", b"x" * 300_000):
            answer = await client.ask(post("/echo", body))
            assert (answer.status, answer.body) == (200, body)
            assert answer.headers["content-type"] == "text/plain"
            assert "connection" not in answer.headers


async def test_requests_that_come_together_are_answered_in_their_order(
    open_server: Any, held: Any
) -> None:
    async with open_server({"GET /held": held, "POST /echo": echo}) as live:
        client = await live.client()
        await client.send(get("/held") + post("/echo", b"2") + get("/held") + post("/echo", b"4"))
        await held.until(1)
        await settled()
        assert len(held.exchanges) == 1
        held.exchanges[0].respond(200, b"1")
        assert (await client.answer()).body == b"1"
        assert (await client.answer()).body == b"2"
        await held.until(2)
        held.exchanges[1].respond(200, b"3")
        assert (await client.answer()).body == b"3"
        assert (await client.answer()).body == b"4"


async def test_a_thousand_requests_at_once_are_answered(open_server: Any) -> None:
    async with open_server({"POST /echo": echo}) as live:
        client = await live.client()
        async with trio.open_nursery() as nursery:
            data = b"".join(post("/echo", b"%d" % n) for n in range(1000))
            nursery.start_soon(client.send, data)
            for number in range(1000):
                assert (await client.answer()).body == b"%d" % number


async def test_an_answer_comes_in_pieces_one_chunk_for_each_burst(
    open_server: Any, held: Any
) -> None:
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        exchange = held.exchanges[0]
        exchange.start(200, "text/event-stream", (("cache-control", "no-store"),))
        exchange.send(b"a")
        exchange.send(b"b")
        head = await client.until(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert b"cache-control: no-store" in head
        assert await client.until(b"ab\r\n") == b"2\r\nab\r\n"
        exchange.send(b"c")
        exchange.end()
        assert await client.until(b"0\r\n\r\n") == b"1\r\nc\r\n0\r\n\r\n"
        assert not held.gone


async def test_http_1_0_gets_no_chunks_and_its_end_is_that_of_the_connection(
    open_server: Any,
) -> None:
    def pieces(exchange: Exchange) -> None:
        exchange.start(200, "text/plain")
        exchange.send(b"abc")
        exchange.end()

    async with open_server({"GET /": pieces, "POST /echo": echo}) as live:
        client = await live.client()
        answer = await client.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.body == b"abc"
        assert answer.headers["connection"] == "close"
        client = await live.client()
        data = b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"
        for _ in range(2):
            answer = await client.ask(data)
            assert (answer.headers["connection"], answer.body) == ("keep-alive", b"x")


async def test_a_client_that_waits_for_a_word_gets_it(open_server: Any) -> None:
    async with open_server({"POST /echo": echo}) as live:
        client = await live.client()
        await client.send(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert (await client.answer()).status == 100
        assert (await client.ask(b"ab")).body == b"ab"


async def test_head_has_the_head_of_get_alone(open_server: Any) -> None:
    async with open_server({"GET /a": lambda exchange: exchange.respond(200, b"abc")}) as live:
        client = await live.client()
        await client.send(b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer(head=True)
        assert answer.headers["content-length"] == "3"
        assert (await client.ask(get("/a"))).body == b"abc"


async def test_a_path_says_what_it_takes(open_server: Any) -> None:
    async with open_server({"GET /a": echo, "POST /a": echo}) as live:
        client = await live.client()
        answer = await client.ask(b"OPTIONS /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, answer.headers["allow"]) == (204, "GET, POST, HEAD, OPTIONS")
        answer = await client.ask(b"DELETE /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, HEAD")
        answer = await client.ask(get("/b"))
        assert answer.status == 404
        assert json.loads(answer.body) == {"error": "there is nothing at /b"}


async def test_words_of_a_path_are_parameters(open_server: Any) -> None:
    def tell(exchange: Exchange) -> None:
        exchange.respond(200, json.dumps(dict(exchange.request.parameters)).encode())

    routes = {"GET /v2/models/{name}/ready": tell, "GET /v1/models/{model*}": tell}
    async with open_server(routes) as live:
        client = await live.client()
        answer = await client.ask(get("/v2/models/a%20b/ready"))
        assert json.loads(answer.body) == {"name": "a b"}
        answer = await client.ask(get("/v1/models/org/model"))
        assert json.loads(answer.body) == {"model": "org/model"}
        assert (await client.ask(get("/v2/models/a/b"))).status == 404


# Handlers.


async def test_a_handler_may_be_a_task_and_its_error_is_the_answer(open_server: Any) -> None:
    async def slow(exchange: Exchange) -> None:
        await trio.lowlevel.checkpoint()
        exchange.respond(200, b"done")

    async def wrong(exchange: Exchange) -> None:
        raise InvalidArgument("no such thing")

    def wrong_at_once(exchange: Exchange) -> None:
        raise InvalidArgument("nor that")

    async def silent(exchange: Exchange) -> None:
        pass

    async with open_server(
        {"GET /slow": slow, "GET /a": wrong, "GET /b": wrong_at_once, "GET /silent": silent}
    ) as live:
        client = await live.client()
        assert (await client.ask(get("/slow"))).body == b"done"
        for path, message in (("/a", "no such thing"), ("/b", "nor that")):
            answer = await client.ask(get(path))
            assert (answer.status, json.loads(answer.body)) == (400, {"error": message})
        answer = await client.ask(get("/silent"))
        assert (answer.status, json.loads(answer.body)) == (500, {"error": "internal error"})


async def test_what_went_wrong_inside_is_logged_and_not_told(
    open_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(exchange: Exchange) -> None:
        raise ZeroDivisionError("secret")

    async with open_server({"GET /": broken}) as live:
        answer = await (await live.client()).ask(get("/"))
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "secret" in caplog.text


async def test_an_answer_that_fails_in_its_midst_breaks_off(open_server: Any) -> None:
    async def broken(exchange: Exchange) -> None:
        exchange.start(200, "text/plain")
        exchange.send(b"abc")
        await trio.lowlevel.checkpoint()
        raise InvalidArgument("too late")

    async with open_server({"GET /": broken}) as live:
        client = await live.client()
        await client.send(get("/"))
        data = await client.rest()
    assert not data.endswith(b"0\r\n\r\n")


# Clients that go, or read slowly.


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("leave", ["close", "reset", "half-close"])
async def test_a_client_that_goes_is_noticed_at_once(
    open_server: Any, held: Any, leave: str, started: bool
) -> None:
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        if started:
            held.exchanges[0].start(200, "text/plain")
        if leave == "half-close":
            await client.stream.send_eof()
        else:
            if leave == "reset":
                client.stream.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )
            client.stream.socket.close()
        await settled()
        assert held.gone == held.exchanges
        held.exchanges[0].send(b"nobody reads this")
        held.exchanges[0].end()
        assert live.server.details()["connections"] == 0 or leave == "half-close"


async def test_a_task_is_cancelled_when_its_client_goes(open_server: Any) -> None:
    ended = trio.Event()

    async def endless(exchange: Exchange) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with open_server({"GET /": endless}) as live:
        client = await live.client()
        await client.send(get("/"))
        await settled()
        await client.stream.aclose()
        await ended.wait()


async def test_what_is_answered_at_once_is_answered_also_on_a_half_closed_connection(
    open_server: Any,
) -> None:
    async with open_server({"POST /echo": echo}) as live:
        client = await live.client()
        await client.send(post("/echo", b"1") + post("/echo", b"2"))
        await client.stream.send_eof()
        assert (await client.answer()).body == b"1"
        assert (await client.answer()).body == b"2"
        assert await client.rest() == b""


async def test_who_reads_slowly_holds_the_handler(open_server: Any, held: Any) -> None:
    said: list[str] = []
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        exchange = held.exchanges[0]
        exchange.on_hold = lambda: said.append("hold")
        exchange.on_resume = lambda: said.append("resume")
        exchange.start(200, "text/plain")
        sent = 0
        while not said:
            exchange.send(b"x" * 65536)
            sent += 65536
            await trio.lowlevel.checkpoint()
            assert sent < 1 << 28
        assert said == ["hold"]
        await client.until(b"\r\n\r\n")
        received = 0
        while said != ["hold", "resume"]:
            received += len(await client.stream.receive_some(1 << 20))
            await trio.lowlevel.checkpoint()
        exchange.end()
        assert sent > received - 65536


async def test_a_client_that_reads_nothing_has_gone_after_a_while(
    open_server: Any, held: Any, autojump_clock: MockClock
) -> None:
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        held.exchanges[0].respond(200, b"x" * (1 << 24))
        await trio.sleep(50)
        assert live.server.details()["connections"] == 1
        await trio.sleep(20)
        assert live.server.details()["connections"] == 0


async def test_silence_in_an_answer_is_broken(
    open_server: Any, held: Any, autojump_clock: MockClock
) -> None:
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        exchange = held.exchanges[0]
        exchange.start(200, "text/event-stream", idle=b": \n\n")
        await client.until(b"\r\n\r\n")
        began = trio.current_time()
        await trio.sleep(10)
        exchange.send(b"data\n\n")
        await client.until(b"data\n\n\r\n")
        await client.until(b": \n\n\r\n")
        assert trio.current_time() == pytest.approx(began + 25)
        await client.until(b": \n\n\r\n")
        assert trio.current_time() == pytest.approx(began + 40)
        exchange.end()
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        await trio.sleep(20)
        assert len(live.server.timers) == 0


# Abuse.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n", 413),
        (b"GET /" + b"x" * 9000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, 431),
    ],
)
async def test_what_is_refused_is_answered_and_the_connection_closed(
    open_server: Any, data: bytes, status: int
) -> None:
    async with open_server({"GET /": echo}) as live:
        client = await live.client()
        await client.send(data)
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_who_sends_much_too_much_still_reads_why_not(open_server: Any) -> None:
    async with open_server({"POST /": echo}, HttpLimits(body=1000)) as live:
        client = await live.client()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n")
        await client.send(b"x" * 4_000_000)
        assert (await client.answer()).status == 413


@pytest.mark.parametrize(
    "begun", [b"GET / HT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"]
)
async def test_who_sends_too_slowly_is_told_so(
    open_server: Any, begun: bytes, autojump_clock: MockClock
) -> None:
    async with open_server({"GET /": echo}) as live:
        client = await live.client()
        began = trio.current_time()
        await client.send(begun)
        assert (await client.answer()).status == 408
        assert trio.current_time() - began < 21


async def test_who_asks_nothing_is_let_go(open_server: Any, autojump_clock: MockClock) -> None:
    async with open_server({"POST /": echo}) as live:
        client = await live.client()
        await client.ask(post("/", b"x"))
        await trio.sleep(70)
        await client.ask(post("/", b"x"))
        began = trio.current_time()
        assert await client.rest() == b""
        assert trio.current_time() - began == pytest.approx(75, abs=1)


async def test_a_long_answer_outlives_the_time_of_idle_connections(
    open_server: Any, held: Any, autojump_clock: MockClock
) -> None:
    async with open_server({"GET /": held}) as live:
        client = await live.client()
        await client.send(get("/"))
        await held.until(1)
        await trio.sleep(1000)
        held.exchanges[0].respond(200, b"late")
        assert (await client.answer()).body == b"late"
        assert not held.gone


async def test_one_connection_too_many_takes_the_place_of_the_idlest(
    open_server: Any, held: Any
) -> None:
    limits = HttpLimits(connections=3)
    async with open_server({"GET /": held, "POST /echo": echo}, limits) as live:
        first, second, third = [await live.client() for _ in range(3)]
        for client in (second, first, third):
            assert (await client.ask(post("/echo", b"x"))).status == 200
        fourth = await live.client()
        assert (await fourth.ask(post("/echo", b"x"))).status == 200
        assert await second.rest() == b""
        for count, client in enumerate((first, third, fourth), 1):
            await client.send(get("/"))
            await held.until(count)
        fifth = await live.client()
        assert (await fifth.answer()).status == 503
        for exchange in held.exchanges:
            exchange.respond(200, b"")
        for client in (first, third, fourth):
            assert (await client.answer()).status == 200


# The end.


async def test_a_server_that_drains_answers_what_is_in_flight(open_server: Any, held: Any) -> None:
    async with open_server({"GET /": held, "POST /echo": echo}) as live:
        idle, busy = await live.client(), await live.client()
        await idle.ask(post("/echo", b"x"))
        await busy.send(get("/"))
        await held.until(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.server.drain)
            assert await idle.rest() == b""
            with pytest.raises(OSError):
                await live.client()
            held.exchanges[0].respond(200, b"last")
            answer = await busy.answer()
            assert (answer.body, answer.headers["connection"]) == (b"last", "close")
            assert await busy.rest() == b""


async def test_who_has_just_connected_is_answered_though_the_server_leaves(
    open_server: Any,
) -> None:
    async with open_server({"POST /echo": echo}) as live:
        new, idle = await live.client(), await live.client()
        await idle.ask(post("/echo", b"x"))
        live.server.leave()
        assert await idle.rest() == b""
        answer = await new.ask(post("/echo", b"y"))
        assert (answer.body, answer.headers["connection"]) == (b"y", "close")
        assert await new.rest() == b""


async def test_a_server_that_stops_tells_those_who_wait(open_server: Any, held: Any) -> None:
    async with open_server({"GET /": held}) as live:
        clients = [await live.client() for _ in range(2)]
        for client in clients:
            await client.send(get("/"))
        await held.until(2)
        held.exchanges[1].start(200, "text/plain")
        live._clients.clear()
    assert len(held.gone) == 2
    assert (await clients[0].answer()).status == 503
    assert (await clients[1].rest()).endswith(b"\r\n\r\n")
    for client in clients:
        await client.stream.aclose()


# Other people's clients.


def with_http_client(port: int) -> list[bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    bodies = []
    for body in (b"x" * 100_000, iter([b"a", b"bc"])):
        connection.request("POST", "/echo", body, encode_chunked=True)
        bodies.append(connection.getresponse().read())
    connection.close()
    return [body[:3] for body in bodies]


def with_urllib(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/echo", b"abc", timeout=10) as answer:
        return bytes(answer.read())


def with_curl(port: int, *options: str) -> bytes:
    command = ["curl", "-sS", "-m", "10", *options, f"http://127.0.0.1:{port}/echo"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (with_http_client, [b"xxx", b"abc"]),
        (with_urllib, b"abc"),
        (lambda port: with_curl(port, "-d", "abc"), b"abc"),
        (lambda port: with_curl(port, "--http2", "-d", "abc"), b"abc"),
        (lambda port: with_curl(port, "--http1.0", "-d", "abc"), b"abc"),
        (lambda port: with_curl(port, "-H", "Transfer-Encoding: chunked", "-d", "abc"), b"abc"),
        (lambda port: with_curl(port, "-H", "Expect: 100-continue", "-d", "abc"), b"abc"),
    ],
)
async def test_clients_of_others_get_their_answers(
    open_server: Any, run: Callable[[int], object], expected: object
) -> None:
    async with open_server({"POST /echo": echo}) as live:
        assert await trio.to_thread.run_sync(partial(run, live.port)) == expected
