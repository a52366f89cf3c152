"""Capabilities on demand: replicas that could serve more than they have loaded.

anyserve scheduler --port 8000
anyserve replica --port 8001 --scheduler 127.0.0.1:8000 \
    --app examples.on_demand:upper --app examples.on_demand:lower --on-demand upper,lower
anyserve fleet 127.0.0.1:8000
anyserve infer 127.0.0.1:8000 upper text=hello
anyserve fleet 127.0.0.1:8000

The first request for `upper` waits while the replica loads it. Each is an app of its own, since an
app is loaded as a whole.
"""

from collections.abc import AsyncIterator, Callable

import trio

from anyserve import App, Context, Request, Response

LOAD_SECONDS = 0.5


def changing(name: str, change: Callable[[str], str]) -> App:
    """An app that serves `name`, which changes texts, once its model has loaded."""
    app = App()

    @app.lifespan
    async def load(app: App) -> AsyncIterator[None]:
        await trio.sleep(LOAD_SECONDS)
        yield

    @app.capability(name, inputs={"text": "BYTES[-1]"}, outputs={"text": "BYTES[-1]"})
    async def serve(request: Request, context: Context) -> Response:
        return Response(outputs={"text": [change(text.decode()) for text in request["text"]]})

    return app


upper, lower, title = (
    changing(change.__name__, change) for change in (str.upper, str.lower, str.title)
)
