"""Handlers that behave, and misbehave, in every way that the tests of a live replica need."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import trio

from anyserve import App, Context, Request, Response
from anyserve.errors import FailedPrecondition, PermissionDenied

app = App()
running: dict[str, int] = {}
"""How many requests of each tag the handler `hold` runs now, in this worker."""
totals: dict[int | str, int] = {}
"""What `accumulate` has summed up, by sequence."""


@app.capability("echo", idempotent=True)
async def echo(request: Request, context: Context) -> Response:
    """Inputs come back under their names, `INPUT` become `OUTPUT`; so do the parameters."""
    outputs = {name.replace("INPUT", "OUTPUT"): request[name] for name in request}
    return Response(outputs=outputs, parameters=request.parameters)


@app.capability("fragile")
async def fragile(request: Request, context: Context) -> Response:
    """As echo, but never run twice."""
    return Response(outputs={name: request[name] for name in request})


@app.capability(
    "add",
    inputs={"A": "FP32[-1,2]", "B": "FP32[-1,2]", "scale": "FP32[1]?"},
    outputs={"SUM": "FP32[-1,2]", "DIFFERENCE": "FP32[-1,2]"},
    version="3",
    max_context=2048,
    model="adder",
)
async def add(request: Request, context: Context) -> Response:
    """Two declared outputs of two declared inputs."""
    scale = request.get("scale", np.ones(1, np.float32))[0]
    a, b = request["A"], request["B"]
    return Response(outputs={"SUM": (a + b) * scale, "DIFFERENCE": (a - b) * scale})


@app.capability("add.heavy", max_context=65536, model="adder")
async def add_heavy(request: Request, context: Context) -> Response:
    """Stronger than `add`."""
    return Response(outputs={"who": "heavy"})


@app.capability("batched", inputs={"x": "INT32[2]"}, outputs={"y": "INT32[2]"}, max_batch_size=4)
async def batched(request: Request, context: Context) -> Response:
    """Every tensor has a leading batch dimension."""
    return Response(outputs={"y": request["x"] * 2})


@app.capability("repeat", inputs={"IN": "INT32[-1]", "pause": "FP32[1]?"})
async def repeat(request: Request, context: Context) -> AsyncIterator[Response]:
    """One response an element, `pause` seconds apart."""
    pause = float(request.get("pause", [0.0])[0])
    for index, value in enumerate(request["IN"]):
        if index and pause:
            await trio.sleep(pause)
        yield Response(outputs={"OUT": np.array([value], np.int32)})


@app.capability("speak")
async def speak(request: Request, context: Context) -> AsyncIterator[Response]:
    """A response of 7 tokens each 20 ms, without end."""
    while True:
        yield Response(outputs={"text": "seven tokens"}, tokens=7)
        await trio.sleep(0.02)


@app.capability("flood")
async def flood(request: Request, context: Context) -> AsyncIterator[Response]:
    """Responses of `size` bytes without end; how many were given is written to `file`."""
    path, size = Path(request["file"][0].decode()), int(request["size"][0])
    for number in range(1_000_000):
        path.write_text(str(number))
        yield Response(outputs={"DATA": np.zeros(size, np.uint8)})


@app.capability("accumulate", sequence=True, sequence_idle=30.0)
async def accumulate(request: Request, context: Context) -> Response:
    """The running sum of a sequence, and which worker holds it."""
    assert context.sequence is not None
    identity = context.sequence.id
    if context.sequence.start:
        totals[identity] = 0
    totals[identity] += int(request["INPUT"][0])
    total = totals[identity]
    if context.sequence.end:
        del totals[identity]
    return Response(outputs={"OUTPUT": np.array([total], np.int32), "pid": os.getpid()})


@app.capability("hold", concurrency=2, queue=4)
async def hold(request: Request, context: Context) -> AsyncIterator[Response]:
    """Says that it runs by making `file`, then waits for ever; `file` is gone when it has ended.

    `first`: give one response before waiting.
    """
    path = Path(request["file"][0].decode())
    path.write_text(str(os.getpid()))
    try:
        if "first" in request:
            yield Response(outputs={"started": True})
        await trio.sleep_forever()
    finally:
        path.unlink()


@app.capability("sleep", concurrency=64)
async def sleep(request: Request, context: Context) -> Response:
    """Sleep for `seconds`."""
    await trio.sleep(float(request["seconds"][0]))
    return Response(outputs={"slept": request["seconds"]})


@app.capability("blocking", concurrency=2)
def blocking(request: Request, context: Context) -> Response:
    """A plain function: runs in a thread."""
    return Response(outputs={"thread": threading.current_thread() is not threading.main_thread()})


@app.capability("blocking_stream")
def blocking_stream(request: Request, context: Context) -> Iterator[Response]:
    """A plain generator."""
    for number in range(int(request["n"][0])):
        yield Response(outputs={"number": number})


@app.capability("block_loop", concurrency=1)
async def block_loop(request: Request, context: Context) -> Response:
    """What no handler should do."""
    time.sleep(float(request["seconds"][0]))  # noqa: ASYNC251 - on purpose
    return Response(outputs={"done": True})


@app.capability("stubborn", concurrency=1)
def stubborn(request: Request, context: Context) -> Response:
    """A thread that does not look whether its request was cancelled; makes `file` once it runs."""
    Path(request["file"][0].decode()).touch()
    time.sleep(float(request["seconds"][0]))
    return Response(outputs={"done": True})


@app.capability("crash")
async def crash(request: Request, context: Context) -> Response:
    """The worker dies."""
    os.kill(os.getpid(), signal.SIGKILL)
    return Response()


@app.capability("fail")
async def fail(request: Request, context: Context) -> Response:
    """Raises what `kind` says."""
    kind = request["kind"][0].decode()
    if kind == "declared":
        raise PermissionDenied("not for you")
    if kind == "grouped":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refuse)
    if kind == "exit":
        raise SystemExit(3)
    if kind == "grouped exit":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_leave)
    if kind == "no response":
        return None  # type: ignore[return-value]
    raise KeyError("secret/path" if kind == "unexpected" else kind)


async def _leave() -> None:
    raise SystemExit(3)


async def _refuse() -> None:
    raise FailedPrecondition("refused inside a nursery")


@app.capability("about")
async def about(request: Request, context: Context) -> Response:
    """What the handler was told of the request."""
    return Response(
        outputs={
            "pid": os.getpid(),
            "id": context.request_id,
            "metadata": context.metadata.get("x-test", ""),
            "remaining": context.deadline - trio.current_time(),
            "writeable": any(request[name].flags.writeable for name in request),
            "aligned": all(request[name].flags.aligned for name in request),
        }
    )


@app.capability("liar", outputs={"x": "FP32[1]"})
async def liar(request: Request, context: Context) -> Response:
    """Gives what it did not declare."""
    return Response(outputs={"y": np.zeros(1, np.float32)})


@app.capability("lengths", inputs={"text": "BYTES[-1]"}, outputs={"bytes": "INT64[-1]"})
async def lengths(request: Request, context: Context) -> Response:
    """How long each string is."""
    return Response(outputs={"bytes": [len(text) for text in request["text"]]})


@app.capability("hold_one", concurrency=1, queue=4)
async def hold_one(request: Request, context: Context) -> AsyncIterator[Response]:
    """As `hold`, one request at a time; `file` becomes `file.ended` when it has ended."""
    path = Path(request["file"][0].decode())
    path.write_text(str(os.getpid()))
    try:
        if "first" in request:
            yield Response(outputs={"started": True})
        await trio.sleep_forever()
    finally:
        path.rename(f"{path}.ended")


app.capability("hold_queued", concurrency=1, queue=4)(hold_one)


@app.capability("wait", concurrency=64)
async def wait(request: Request, context: Context) -> Response:
    """Done when `file` is gone."""
    path = Path(request["file"][0].decode())
    while path.exists():  # noqa: ASYNC110 - another process removes it
        await trio.sleep(0.01)
    return Response(outputs={"done": True})


app.capability("wait_again", concurrency=64, idempotent=True)(wait)


@app.capability("until")
async def until(request: Request, context: Context) -> Response:
    """Says that it runs by making `file`, then as `wait`."""
    Path(request["file"][0].decode()).write_text(str(os.getpid()))
    return await wait(request, context)


@app.capability("environment")
async def environment(request: Request, context: Context) -> Response:
    """Where the worker's interpreter has its packages."""
    return Response(outputs={"prefix": sys.prefix})
