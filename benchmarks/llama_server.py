"""llama.cpp's own HTTP server, from the wheel and with the settings of the built-in `decode`."""

from __future__ import annotations

import sys

import xllamacpp  # type: ignore[import-untyped]

from anyserve.engines.text.native import computing
from anyserve.engines.text.settings import TextSettings, find_model
from benchmarks.ports import free_port


def main() -> None:
    """Serve on a free port until the end of the input."""
    settings = TextSettings()
    parameters = computing(xllamacpp.CommonParams(), settings, find_model(settings))
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = free_port()
    server = xllamacpp.Server(parameters)
    print(f"ready on {server.listening_address.removeprefix('http://')}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
