"""The streams in Triton's Python backend."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # type: ignore[import-not-found]

from benchmarks.pacing import Stream


class TritonPythonModel:
    """What the backend looks for."""

    async def execute(self, requests: list[Any]) -> None:
        """Answer the requests that have gathered, at the same time."""
        await asyncio.gather(*map(_answer, requests))


async def _answer(request: Any) -> None:
    sender = request.get_response_sender()
    wanted = Stream.parse(pb.get_input_tensor_by_name(request, "INPUT0").as_numpy())
    for number, due in enumerate(wanted.due(time.monotonic())):
        if wanted.gap:
            await asyncio.sleep(due - time.monotonic())
        output = pb.Tensor("OUTPUT0", np.array([number], np.int32))
        sender.send(pb.InferenceResponse([output]))
    sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
