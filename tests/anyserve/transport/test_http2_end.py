"""The end of an HTTP/2 connection, at the client: what was read with it still counts."""

from __future__ import annotations

from anyserve.transport.http2 import DataReceived, GoAwayReceived, Http2

REQUEST = ((":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "a"))


def pass_on(source: Http2, target: Http2) -> list[object]:
    """Let one end read all that the other has to say, at once."""
    data = b""
    while more := source.output():
        data += more
    return list(target.feed(memoryview(data)))


def test_an_answer_that_came_with_the_servers_last_goaway_is_read_like_any_other() -> None:
    client, server = Http2(client=True, max_streams=8), Http2(client=False, max_streams=8)
    pass_on(client, server)
    pass_on(server, client)
    stream = client.request(REQUEST)
    client.end(stream)
    pass_on(client, server)
    server.respond(stream, ((":status", "200"),))
    server.send_data(stream, b"hello")
    server.send_trailers(stream, (("grpc-status", "0"),))
    server.go_away()

    events = pass_on(server, client)

    assert any(isinstance(event, GoAwayReceived) for event in events)
    assert [event.data for event in events if isinstance(event, DataReceived)] == [b"hello"]
    client.consume(stream, 5)
    client.reset(stream, 8)
    assert not client.window_leaks
    assert not client.wants_output
