"""An app whose handlers call other capabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import trio

from anyserve import App, Context, Request, Response
from anyserve.errors import PermissionDenied

app = App()
events: list[str] = []
"""What has become of `hold`."""


@app.capability("relay")
async def relay(request: Request, context: Context) -> Response:
    """Call the capability named by the parameter `to`, with the same inputs."""
    parameters: dict[str, Any] = dict(request.parameters)
    to, version = parameters.pop("to"), parameters.pop("version", "")
    answer = await context.call(to, request.inputs, parameters, version=version)
    ids = {"callers_id": context.request_id}
    return Response(outputs=answer.outputs, parameters={**answer.parameters, **ids})


@app.capability("relay_stream")
async def relay_stream(request: Request, context: Context) -> AsyncIterator[Response]:
    """The same for any number of responses."""
    parameters: dict[str, Any] = dict(request.parameters)
    to, version = parameters.pop("to"), parameters.pop("version", "")
    async with aclosing(context.stream(to, request.inputs, version=version)) as responses:
        async for response in responses:
            yield Response(outputs=response.outputs)


@app.capability("aged", version="2")
async def aged(request: Request, context: Context) -> Response:
    return Response(outputs={"version": ["2"]})


@app.capability("blocking")
def blocking(request: Request, context: Context) -> Response:
    """Call `echo` from a thread."""
    answer = trio.from_thread.run(context.call, "echo", request.inputs)
    return Response(outputs=answer.outputs)


kept: list[Any] = []
"""Streams that were never closed."""


@app.capability("careless")
async def careless(request: Request, context: Context) -> Response:
    """Leave a stream open."""
    kept.append(context.stream("endless", {}))
    await anext(kept[-1])
    return Response()


@app.capability("endless")
async def endless(request: Request, context: Context) -> AsyncIterator[Response]:
    try:
        while True:
            yield Response(outputs={"n": [1]})
    finally:
        events.append("endless ended")


@app.capability("again")
async def again(request: Request, context: Context) -> Response:
    """Call itself without end."""
    events.append("again")
    answer = await context.call("again", request.inputs)
    return Response(outputs=answer.outputs)


@app.capability("alone", concurrency=1)
async def alone(request: Request, context: Context) -> Response:
    """Call itself, which has no slot left."""
    answer = await context.call("alone", request.inputs)
    return Response(outputs=answer.outputs)


@app.capability("echo")
async def echo(request: Request, context: Context) -> Response:
    return Response(outputs=request.inputs, parameters={"id": context.request_id})


@app.capability("remaining")
async def remaining(request: Request, context: Context) -> Response:
    return Response(outputs={"seconds": context.deadline - trio.current_time()})


@app.capability("refuse")
async def refuse(request: Request, context: Context) -> Response:
    raise PermissionDenied("not for you")


@app.capability("numbers")
async def numbers(request: Request, context: Context) -> AsyncIterator[Response]:
    for number in range(int(request["n"][0])):
        yield Response(outputs={"n": [number]})


@app.capability("total")
async def total(request: Request, context: Context) -> Response:
    """The sum of what `numbers` gives, of the first `most` where that is asked."""
    most = request.parameters.get("most")
    taken = []
    async with aclosing(context.stream("numbers", request.inputs)) as responses:
        async for response in responses:
            taken.append(int(response["n"][0]))
            if len(taken) == most:
                break
    return Response(outputs={"sum": [sum(taken)], "taken": [len(taken)]})


@app.capability("hold")
async def hold(request: Request, context: Context) -> Response:
    events.append("held")
    try:
        await trio.sleep_forever()
    finally:
        events.append("let go")
    return Response()


arrived: list[trio.Event] = []
"""One event for each `meet` that waits, set when enough are there."""


@app.capability("meet", concurrency=128)
async def meet(request: Request, context: Context) -> Response:
    """Wait until `n` are here."""
    arrived.append(trio.Event())
    if len(arrived) == int(request["n"][0]):
        for event in arrived:
            event.set()
    await arrived[-1].wait()
    return Response()


@app.capability("crowd")
async def crowd(request: Request, context: Context) -> Response:
    """Have `n` calls of `meet` open at once."""
    arrived.clear()
    async with trio.open_nursery() as nursery:
        for _ in range(int(request["n"][0])):
            nursery.start_soon(context.call, "meet", request.inputs)
    return Response()


@app.capability("often")
async def often(request: Request, context: Context) -> Response:
    """Call `echo` `n` times, once after the other, and leave a stream of `endless` each time."""
    for _ in range(int(request["n"][0])):
        await context.call("echo", {"x": [1]})
        async with aclosing(context.stream("endless", {})) as responses:
            await anext(responses)
    return Response()


@app.capability("events")
async def tell(request: Request, context: Context) -> Response:
    return Response(outputs={"events": list(events) or [""]})
