# /// script
# requires-python = "==3.11.*"
# dependencies = ["kserve==0.21.0", "grpcio==1.85.1", "protobuf==6.33.6"]
# ///
"""KServe's own server with the echo: `python -m benchmarks.peers.kserve PORT`.

Set up to cost as little as it can: without its log of calls. Its gRPC service has no streams.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from kserve import Model, ModelServer  # type: ignore[import-not-found]
from kserve.protocol.infer_type import (  # type: ignore[import-not-found]
    InferOutput,
    InferResponse,
)


class Echo(Model):  # type: ignore[misc]
    """Each input comes back as an output."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.ready = True

    async def predict(self, payload: Any, *args: Any, **options: Any) -> Any:
        return InferResponse(payload.id, "echo", [_echo(tensor) for tensor in payload.inputs])


def _echo(tensor: Any) -> Any:
    name = tensor.name.replace("INPUT", "OUTPUT")
    output = InferOutput(name, list(tensor.shape), tensor.datatype)
    output.set_data_from_numpy(tensor.as_numpy())
    return output


if __name__ == "__main__":
    server = ModelServer(http_port=0, grpc_port=int(sys.argv[1]), enable_latency_logging=False)
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server.start([Echo()])
