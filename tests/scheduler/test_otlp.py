"""Spans of requests at an OpenTelemetry collector, which is a small one of the test's own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """What has come, by service and span."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    told = attributes(resource.resource)
                    for scope in resource.scope_spans:
                        spans.extend((told["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, service: str, trace: str = TRACE) -> dict[str, Any]:
        """The spans of a service in a trace, by name."""
        return {
            span.name: span
            for name, span in tuple(self.spans)
            if name == service and span.trace_id.hex() == trace
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


ECHO = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [7]}]}


@pytest.fixture
def infer(ask_http: Any) -> Callable[..., int]:
    """Asks a capability by HTTP within a trace; gives the status."""

    def ask(live: Any, name: str, traceparent: str) -> int:
        path = f"/v2/models/{name}/infer"
        status: int = ask_http(live.http, path, ECHO, traceparent=traceparent)[0]
        return status

    return ask


def attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_one_trace_goes_through_scheduler_and_replica(
    collector: Collector, start_scheduler: Any, start_replica: Any, infer: Any, eventually: Any
) -> None:
    scheduler = start_scheduler(0, "--http", "0", "--otlp", collector.url)
    options = ("--app", "behaviours:app", "--http", "0", "--otlp", f"{collector.url}/")
    replica = start_replica(*options, "--scheduler", scheduler.address, "--replica-id", "a")
    sampled, unsampled = f"00-{TRACE}-{PARENT}-01", f"00-{'1' * 32}-{PARENT}-00"
    eventually(lambda: infer(scheduler, "echo", unsampled) == 200)
    assert infer(scheduler, "echo", sampled) == 200
    assert infer(replica, "liar", f"00-{'2' * 32}-{PARENT}-01") == 500

    # What waits is sent before a process ends.
    assert replica.stop() == 0
    scheduler.process.terminate()
    assert scheduler.process.wait(20) == 0
    front = collector.of("anyserve-scheduler")
    door, send = front["front door"], front["send to a"]
    (served,) = collector.of("anyserve-replica").values()
    assert door.parent_span_id.hex() == PARENT
    assert send.parent_span_id == door.span_id
    assert served.parent_span_id == send.span_id
    assert door.start_time_unix_nano <= send.start_time_unix_nano <= send.end_time_unix_nano
    assert abs(door.start_time_unix_nano / 1e9 - time.time()) < 60
    assert attributes(door).items() >= {
        ("anyserve.capability", "echo"),
        ("anyserve.outcome", "answered"),
        ("anyserve.replica", "a"),
    }
    expected = {("anyserve.capability", "echo"), ("anyserve.outcome", "answered")}
    assert attributes(served).items() >= expected
    (failed,) = collector.of("anyserve-replica", "2" * 32).values()
    assert (failed.status.code, failed.status.message) == (2, "failed")
    assert failed.parent_span_id.hex() == PARENT
    assert not collector.of("anyserve-scheduler", "1" * 32)
    assert not collector.of("anyserve-replica", "1" * 32)


def test_a_collector_that_says_nothing_holds_nobody(start_replica: Any, infer: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        live = start_replica("--app", "behaviours:app", "--http", "0", "--otlp", url)
        for _ in range(3):
            assert infer(live, "echo", f"00-{TRACE}-{PARENT}-01") == 200
        began = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - began < 10


def test_a_url_that_is_none_is_refused_in_a_line(start_replica: Any) -> None:
    with pytest.raises(AssertionError, match="is no URL: it looks like http"):
        start_replica("--app", "behaviours:app", "--otlp", "127.0.0.1:4318")
