"""Handlers that say which W3C trace context they have, in one app or in two of a fleet."""

from __future__ import annotations

import logging

from anyserve import App, Context, Request, Response

app, front, back = App(), App(), App()


@app.capability("outer")
@front.capability("outer")
async def outer(request: Request, context: Context) -> Response:
    """Its own trace context, and that of `inner`, which it calls."""
    called = await context.call("inner", {"x": request["x"]})
    return Response(outputs={"outer": context.traceparent or "", "inner": called["inner"]})


@app.capability("inner")
@back.capability("inner")
async def inner(request: Request, context: Context) -> Response:
    """Its trace context and state, which it logs too."""
    context.logger.warning("here")
    state = context.metadata.get("tracestate", "")
    return Response(outputs={"inner": context.traceparent or "", "state": state})


logging.getLogger("anyserve.handler").setLevel(logging.WARNING)
