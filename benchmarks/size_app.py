"""A handler that reads nothing of its tensor, so that what a call costs is the way to it."""

from anyserve import App, Context, Request, Response

app = App()


@app.capability("size")
async def size(request: Request, context: Context) -> Response:
    """How many bytes the input has."""
    return Response(outputs={"OUTPUT0": request["INPUT0"].nbytes})
