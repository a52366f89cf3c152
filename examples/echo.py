"""Echo: whatever comes in goes out. The smallest app there is.

anyserve replica --app examples.echo:app
anyserve infer 127.0.0.1:8001 echo INPUT0=hello
"""

from anyserve import App, Context, Request, Response

app = App()


@app.capability("echo", idempotent=True)
async def echo(request: Request, context: Context) -> Response:
    """Each input comes back as an output: `INPUT0` as `OUTPUT0`, any other under its own name."""
    return Response(outputs={name.replace("INPUT", "OUTPUT"): request[name] for name in request})
