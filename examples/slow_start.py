"""A factory with a slow start: a model that loads in the lifespan, before the worker is ready.

    anyserve replica --app examples.slow_start:create_app
    anyserve infer 127.0.0.1:8001 classify text='what a lovely day'

The replica answers ServerLive at once and ServerReady when the model is there.
"""

from collections.abc import AsyncIterator

import trio

from anyserve import App, Context, Request, Response

_POSITIVE = {"good", "great", "happy", "lovely", "nice", "wonderful"}
_NEGATIVE = {"awful", "bad", "horrible", "sad", "terrible", "ugly"}


class Classifier:
    """Stands for a model: it takes its time to load, and is plain, blocking code."""

    def __init__(self, labels: tuple[str, str]) -> None:
        self.labels = labels

    def __call__(self, text: str) -> str:
        """The label of a text."""
        words = set(text.lower().split())
        return self.labels[len(words & _POSITIVE) < len(words & _NEGATIVE)]


def create_app(load_seconds: str = "1") -> App:
    """The app; a factory takes its options as keyword arguments."""
    app = App()
    loaded: list[Classifier] = []

    @app.lifespan
    async def lifespan(app: App) -> AsyncIterator[None]:
        await trio.sleep(float(load_seconds))
        loaded.append(Classifier(("positive", "negative")))
        app.describe("classify", labels=2)
        yield
        loaded.clear()

    @app.capability(
        "classify",
        inputs={"text": "BYTES[-1]"},
        outputs={"label": "BYTES[-1]"},
        concurrency=4,
    )
    def classify(request: Request, context: Context) -> Response:
        """A plain function runs in a thread, so it may block."""
        texts = [text.decode() for text in request["text"]]
        return Response(outputs={"label": [loaded[0](text) for text in texts]})

    return app
