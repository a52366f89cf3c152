"""The channel against servers that are gone, strange or in the way."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import RequestReceived, SettingsAcknowledged, StreamEnded
from h2.settings import SettingCodes

from anyserve.errors import (
    AnyServeError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)
from anyserve.transport.address import TcpAddress
from anyserve.transport.rpc import Limits

OK = [(":status", "200"), ("content-type", "application/grpc")]


async def test_a_refused_connection_names_the_address(wire: Any):
    async with wire.open_channel("127.0.0.1:1") as channel:
        with pytest.raises(Unavailable, match=r"cannot connect to 127\.0\.0\.1:1: "):
            await channel.unary("/a/b", b"", bytes)


async def test_a_missing_unix_socket_names_the_address(wire: Any):
    async with wire.open_channel("unix:/no/such.sock") as channel:
        with pytest.raises(Unavailable, match=r"cannot connect to unix:/no/such\.sock: No such"):
            await channel.unary("/a/b", b"", bytes)


async def test_an_unknown_host_is_unavailable(wire: Any):
    async with wire.open_channel("no.such.host.invalid:80") as channel:
        with pytest.raises(Unavailable, match=r"cannot connect to no\.such\.host\.invalid:80"):
            await channel.unary("/a/b", b"", bytes)


async def test_a_bad_address_is_refused_before_anything_opens(wire: Any):
    with pytest.raises(InvalidArgument):
        async with wire.open_channel("nonsense"):
            pass


async def test_a_cancelled_scope_sends_nothing(live: Any):
    async with live.open_channel() as channel:
        with trio.CancelScope() as scope:
            scope.cancel()
            await channel.unary("/test.Probe/Echo", b"", bytes)
        assert scope.cancelled_caught
        assert live.server.statistics().connections == 0


async def test_a_lost_connection_is_unavailable_and_the_next_call_connects_again(
    live: Any, nursery: trio.Nursery
):
    async with live.open_channel() as channel:
        failures: list[AnyServeError] = []

        async def hang() -> None:
            try:
                await channel.unary("/test.Probe/Hang", b"", bytes)
            except AnyServeError as error:
                failures.append(error)

        async with trio.open_nursery() as calls:
            calls.start_soon(hang)
            await live.probe.started.wait()
            for connection in tuple(live.server.connections):
                live.wire.socket_of(connection).shutdown(socket.SHUT_RDWR)
        assert [type(error) for error in failures] == [Unavailable]
        assert await channel.unary("/test.Probe/Echo", b"again", bytes) == b"again"


async def test_leaving_a_stream_early_resets_the_call(live: Any):
    async with live.open_channel() as channel:
        async with channel.stream("/test.Probe/Repeat", bytes, bytes) as stream:
            await stream.send(b"1000,1000000", end=True)
            assert await stream.recv() == b"m" * 1000
        await live.probe.until_ended()
        assert live.probe.ended == ["cancelled"]
        assert await channel.unary("/test.Probe/Echo", b"next", bytes) == b"next"


async def test_leaving_the_channel_ends_its_calls(live: Any):
    async with trio.open_nursery() as nursery:
        failures: list[AnyServeError] = []

        async def hang(channel: Any) -> None:
            try:
                await channel.unary("/test.Probe/Hang", b"", bytes)
            except AnyServeError as error:
                failures.append(error)

        async with live.open_channel() as channel:
            nursery.start_soon(hang, channel)
            await live.probe.started.wait()
    assert [type(error) for error in failures] == [Unavailable]
    await live.probe.until_ended()


async def test_a_sender_that_the_server_answers_early_gets_the_answer(wire: Any, live: Any):
    class Strict:
        def __mapping__(self) -> dict[str, Any]:
            from grpclib.const import Cardinality, Handler

            return {"/s/s": Handler(self.refuse, Cardinality.STREAM_UNARY, bytes, bytes)}

        async def refuse(self, stream: Any) -> None:
            await stream.recv_message()
            raise NotFound("not after the first")

    async with trio.open_nursery() as nursery:
        server = await nursery.start(wire.serve, [Strict()], TcpAddress("127.0.0.1", 0))
        async with (
            wire.open_channel(server.address) as channel,
            channel.stream("/s/s", bytes, bytes) as stream,
        ):

            async def send_for_ever() -> None:
                with trio.fail_after(5):
                    while True:
                        await stream.send(bytes(100_000))

            with pytest.raises(NotFound, match="not after the first"):
                await send_for_ever()
            with pytest.raises(NotFound, match="not after the first"):
                await stream.recv()
        nursery.cancel_scope.cancel()


async def test_a_reply_over_the_channels_limit_is_refused(live: Any):
    async with live.open_channel(limits=Limits(max_message_bytes=1000)) as channel:
        with pytest.raises(ResourceExhausted, match="1001 bytes is over the limit of 1000"):
            await channel.unary("/test.Probe/Echo", bytes(1001), bytes)
        assert await channel.unary("/test.Probe/Echo", bytes(1000), bytes) == bytes(1000)


async def test_calls_wait_for_room_where_the_server_allows_few(wire: Any):
    async with trio.open_nursery() as nursery:
        running = most = 0

        class Narrow:
            def __mapping__(self) -> dict[str, Any]:
                from grpclib.const import Cardinality, Handler

                return {"/n/n": Handler(self.work, Cardinality.UNARY_UNARY, bytes, bytes)}

            async def work(self, stream: Any) -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                message = await stream.recv_message()
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                running -= 1
                await stream.send_message(message)

        limits = Limits(max_streams=3)
        server = await nursery.start(
            lambda task_status: wire.serve(
                [Narrow()], TcpAddress("127.0.0.1", 0), limits=limits, task_status=task_status
            )
        )
        async with wire.open_channel(server.address) as channel:
            await channel.unary("/n/n", b"", bytes)
            await trio.testing.wait_all_tasks_blocked()
            answers: list[bytes] = []

            async def one(number: int) -> None:
                answers.append(await channel.unary("/n/n", b"%d" % number, bytes))

            with trio.fail_after(10):
                async with trio.open_nursery() as calls:
                    for number in range(30):
                        calls.start_soon(one, number)
            assert len(answers) == 30
            assert most == 3
        nursery.cancel_scope.cancel()


async def scripted(listener: trio.SocketListener, answer: Any) -> None:
    """A server that answers each call by `answer(h2, stream_id)`."""
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(scripted_connection, await listener.accept(), answer)


async def scripted_connection(stream: trio.SocketStream, answer: Any) -> None:
    async with stream:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        h2.initiate_connection()
        while True:
            await stream.send_all(h2.data_to_send())
            data = await stream.receive_some(65536)
            if not data:
                return
            if h2.state_machine.state is ConnectionState.CLOSED:
                continue
            for event in h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    answer(h2, event.stream_id)


@pytest.mark.parametrize(
    "answer, error, message",
    [
        (
            lambda h2, i: h2.send_headers(i, [(":status", "404")], end_stream=True),
            Unimplemented,
            "HTTP status 404",
        ),
        (
            lambda h2, i: h2.send_headers(
                i, [(":status", "200"), ("content-type", "text/html")], end_stream=True
            ),
            Unknown,
            "content-type 'text/html'",
        ),
        (lambda h2, i: h2.send_headers(i, OK, end_stream=True), Internal, "without a status"),
        (lambda h2, i: h2.reset_stream(i, 7), Unavailable, "did not take the call"),
        (lambda h2, i: h2.reset_stream(i, 2), Internal, "error 2"),
        (
            lambda h2, i: h2.send_headers(i, [*OK, ("grpc-status", "99")], end_stream=True),
            Unknown,
            "^$",
        ),
        (lambda h2, i: h2.close_connection(0, last_stream_id=0), Unavailable, "did not take"),
        (lambda h2, i: h2.close_connection(11), Unavailable, "lost"),
        (
            lambda h2, i: (h2.send_headers(i, OK), h2.send_data(i, b"\0\0\0\0\5ab", True)),
            InvalidArgument,
            "ends 3 bytes before",
        ),
    ],
)
async def test_strange_answers_are_errors_of_ours(
    wire: Any, answer: Any, error: type, message: str
):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted, listeners[0], answer)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5), pytest.raises(error, match=message):
                await channel.unary("/a/b", b"x", bytes)
        nursery.cancel_scope.cancel()
    await listeners[0].aclose()


async def test_a_lively_server_is_not_taken_for_a_flood(wire: Any):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    def answer(h2: H2Connection, stream_id: int) -> None:
        for _ in range(3_000):
            h2.ping(b"12345678")
        h2.send_headers(stream_id, [*OK, ("grpc-status", "5")], end_stream=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted, listeners[0], answer)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5), pytest.raises(NotFound):
                await channel.unary("/a/b", b"x", bytes)
        nursery.cancel_scope.cancel()
    await listeners[0].aclose()


async def test_a_raised_stream_limit_lets_waiting_calls_go(wire: Any):
    """The server first allows no call at all, then one."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def narrow() -> None:
        stream = await listeners[0].accept()
        async with stream:
            h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            h2.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 0
            h2.local_settings.acknowledge()
            h2.initiate_connection()
            opened = False
            while True:
                await stream.send_all(h2.data_to_send())
                data = await stream.receive_some(65536)
                if not data:
                    return
                for event in h2.receive_data(data):
                    if isinstance(event, SettingsAcknowledged) and not opened:
                        opened = True
                        h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
                    if isinstance(event, RequestReceived):
                        h2.send_headers(
                            event.stream_id, [*OK, ("grpc-status", "5")], end_stream=True
                        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(narrow)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5):
                for _ in range(3):
                    with pytest.raises(NotFound):
                        await channel.unary("/a/b", b"x", bytes)
        nursery.cancel_scope.cancel()
    await listeners[0].aclose()


async def test_a_call_that_the_server_did_not_take_is_made_again(wire: Any):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    seen: list[int] = []

    def answer(h2: H2Connection, stream_id: int) -> None:
        seen.append(stream_id)
        if len(seen) == 1:
            h2.reset_stream(stream_id, 7)
        else:
            h2.send_headers(stream_id, OK)
            h2.send_data(stream_id, b"\0\0\0\0\2ok")
            h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scripted, listeners[0], answer)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5):
                assert await channel.unary("/a/b", b"x", bytes) == b"ok"
        nursery.cancel_scope.cancel()
    assert seen == [1, 3]
    await listeners[0].aclose()


async def test_no_unary_call_is_lost_when_a_server_goes_away(wire: Any):
    """The first connection takes three calls of ten and says GOAWAY, the second takes the rest."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    taken: list[list[int]] = []

    async def serve_one(stream: trio.SocketStream, allowed: int) -> None:
        mine: list[int] = []
        taken.append(mine)
        async with stream:
            h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
            h2.initiate_connection()
            waiting: list[int] = []
            while True:
                await stream.send_all(h2.data_to_send())
                data = await stream.receive_some(65536)
                if not data:
                    return
                ended = [event for event in h2.receive_data(data) if isinstance(event, StreamEnded)]
                waiting += [event.stream_id for event in ended]
                if allowed < 10 and len(waiting) == 10:
                    last = sorted(waiting)[allowed - 1]
                    await stream.send_all(
                        h2.data_to_send()
                        + b"\0\0\x08\x07\0\0\0\0\0"
                        + last.to_bytes(4, "big")
                        + bytes(4)
                    )
                if allowed == 10 or len(waiting) == 10:
                    for stream_id in sorted(waiting)[:allowed]:
                        mine.append(stream_id)
                        h2.send_headers(stream_id, OK)
                        h2.send_data(stream_id, b"\0\0\0\0\2ok")
                        h2.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
                    waiting.clear()

    async def serve_all() -> None:
        async with trio.open_nursery() as nursery:
            for allowed in (3, 10):
                nursery.start_soon(serve_one, await listeners[0].accept(), allowed)

    answers: list[bytes] = []

    async def one(channel: Any) -> None:
        answers.append(await channel.unary("/a/b", b"x", bytes))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_all)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5):
                async with trio.open_nursery() as calls:
                    for _ in range(10):
                        calls.start_soon(one, channel)
        nursery.cancel_scope.cancel()
    assert answers == [b"ok"] * 10
    assert [len(streams) for streams in taken] == [3, 7]
    await listeners[0].aclose()


async def test_a_server_that_takes_connections_and_closes_them_is_unavailable(wire: Any):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def slam() -> None:
        while True:
            await (await listeners[0].accept()).aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slam)
        async with wire.open_channel(f"127.0.0.1:{port}") as channel:
            with trio.fail_after(5), pytest.raises(Unavailable):
                await channel.unary("/a/b", b"x", bytes)
        nursery.cancel_scope.cancel()
    await listeners[0].aclose()


async def test_an_error_in_the_block_leaves_the_channel_as_it_is(live: Any):
    async def fail() -> None:
        async with live.open_channel() as channel:
            await channel.unary("/test.Probe/Echo", b"", bytes)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
