"""Many clients at once that misbehave in every way, and one beside them that notices nothing."""

from __future__ import annotations

import gc
import random
import socket
from contextlib import suppress
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from anyserve.http.connection import Connection
from anyserve.http.exchange import Exchange

CLIENTS = 300
PIECES = (
    b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"GET /nothing HTTP/1.0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nshort",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    b"\x16\x03\x01\x00\x05hello",
    b"nonsense\r\n\r\n",
)
RESET = b"\1\0\0\0\0\0\0\0"


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.request.body)


def stream(exchange: Exchange) -> None:
    exchange.start(200, "text/plain")
    for _ in range(20):
        exchange.send(b"x" * 5000)
    exchange.end()


async def slow(exchange: Exchange) -> None:
    await trio.sleep(0.02)
    exchange.respond(200, b"late")


async def misbehave(live: Any, number: int) -> None:
    chance = random.Random(number)
    data = b"".join(chance.choices(PIECES, k=chance.randint(1, 5)))
    client = await live.client()
    with suppress(trio.BrokenResourceError):
        while data:
            cut = chance.randint(1, len(data))
            await client.send(data[:cut])
            data = data[cut:]
            if chance.random() < 0.3:
                await trio.lowlevel.checkpoint()
        if chance.random() < 0.3:
            with trio.move_on_after(0.05):
                await client.rest()
        if chance.random() < 0.3:
            client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    await client.stream.aclose()


def connections() -> int:
    return sum(type(each) is Connection for each in gc.get_objects())


async def test_a_storm_leaves_nothing_behind_and_disturbs_nobody(open_server: Any) -> None:
    handlers = {"POST /echo": echo, "GET /stream": stream, "POST /slow": slow}
    async with open_server(handlers) as live:
        bystander = await live.client()
        gc.collect()
        gc.disable()
        try:
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    nursery.start_soon(misbehave, live, number)
                for _ in range(100):
                    line = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
                    answer = await bystander.ask(line)
                    assert (answer.status, answer.body) == (200, b"hi")
            for _ in range(500):  # who was refused has a second to read why
                if live.server.details()["connections"] == 1:
                    break
                await wait_all_tasks_blocked(0.02)
            assert live.server.details()["connections"] == 1
            assert live.server.details()["in_flight"] == 0
            assert connections() == 1, "what is closed waits for the garbage collector"
        finally:
            gc.enable()
