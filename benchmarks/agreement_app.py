"""The app of `benchmarks.agreement`: requests that hold their slot as long as they say."""

from __future__ import annotations

import time

import numpy as np
import trio

from anyserve import App, Context, Request, Response

SLOTS = 1
QUEUE = 16
app = App()


@app.capability(
    "work",
    inputs={"SECONDS": "FP64[1]"},
    outputs={"BEGAN": "FP64[1]", "ENDED": "FP64[1]"},
    concurrency=SLOTS,
    queue=QUEUE,
)
async def work(request: Request, context: Context) -> Response:
    """Sleep for `SECONDS`; when that began and ended, on the machine's monotonic clock."""
    began = time.monotonic()
    await trio.sleep(float(request["SECONDS"][0]))
    return Response(
        outputs={"BEGAN": np.array([began]), "ENDED": np.array([time.monotonic()])},
    )
