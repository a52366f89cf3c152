"""The same work on grpcio with 32 threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]

from benchmarks import google_work as work

_THREADS = 32


def _infer(request: Any, context: Any) -> Any:
    return work.echo(request)


def _stream_infer(requests: Iterator[Any], context: Any) -> Iterator[Any]:
    for request in requests:
        wanted = work.wanted(request)
        for number, due in enumerate(wanted.due(time.monotonic())):
            if wanted.gap:
                time.sleep(max(0.0, due - time.monotonic()))
            yield work.message(request, number)


def main() -> None:
    """Serve until terminated."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=work.OPTIONS)
    server.add_generic_rpc_handlers((work.service(_infer, _stream_infer),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
