# /// script
# requires-python = "==3.11.*"
# dependencies = ["mlserver==1.7.1", "grpcio==1.85.1", "protobuf==6.33.6"]
# ///
"""MLServer with the echo and the streams: `python -m benchmarks.peers.mlserver PORT`.

Set up to cost as little as it can: in one process, without metrics and access log.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceResponse  # type: ignore[import-not-found]

from benchmarks.pacing import Stream


class Echo(MLModel):  # type: ignore[misc]
    """Each input comes back as an output."""

    async def predict(self, payload: Any) -> Any:
        outputs = [
            NumpyCodec.encode_output(
                tensor.name.replace("INPUT", "OUTPUT"), NumpyCodec.decode_input(tensor)
            )
            for tensor in payload.inputs
        ]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)


class Counter(MLModel):  # type: ignore[misc]
    """The number of each message."""

    async def predict_stream(self, payloads: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for payload in payloads:
            wanted = Stream.parse(NumpyCodec.decode_input(payload.inputs[0]))
            for number, due in enumerate(wanted.due(time.monotonic())):
                if wanted.gap:
                    await asyncio.sleep(due - time.monotonic())
                output = NumpyCodec.encode_output("OUTPUT0", np.array([number], np.int32))
                yield InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


async def _serve(port: int) -> None:
    settings = Settings(
        host="127.0.0.1",
        grpc_port=port,
        http_port=0,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        grpc_max_message_length=1 << 26,
    )
    models = [
        ModelSettings(name="echo", implementation=Echo),
        ModelSettings(name="stream", implementation=Counter),
    ]
    await MLServer(settings).start(models)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
