"""A pipeline of three capabilities, each of which may be on another replica.

anyserve replica --app examples.pipeline:app
anyserve infer 127.0.0.1:8001 describe "text=the cat saw the dog"

Or on two replicas with a scheduler, where `describe` calls what its own replica lacks:

anyserve scheduler --port 8000
anyserve replica --port 8001 --scheduler 127.0.0.1:8000 --app examples.pipeline:front
anyserve replica --port 8002 --scheduler 127.0.0.1:8000 --app examples.pipeline:back
anyserve infer 127.0.0.1:8001 describe "text=the cat saw the dog"
"""

from collections.abc import AsyncIterator
from contextlib import aclosing

from anyserve import App, Context, Request, Response

app, front, back = App(), App(), App()


@app.capability("describe", inputs={"text": "BYTES[1]"}, outputs={"summary": "BYTES[1]"})
@front.capability("describe", inputs={"text": "BYTES[1]"}, outputs={"summary": "BYTES[1]"})
async def describe(request: Request, context: Context) -> Response:
    """Split the text, and count each word as it comes."""
    found = []
    async with aclosing(context.stream("split", {"text": request["text"]})) as words:
        async for word in words:
            counted = await context.call("count", {"text": request["text"], "word": word["word"]})
            found.append(f"{word['word'][0].decode()} {counted['count'][0]}")
    return Response(outputs={"summary": ", ".join(found)})


@app.capability("split", inputs={"text": "BYTES[1]"}, outputs={"word": "BYTES[1]"})
@back.capability("split", inputs={"text": "BYTES[1]"}, outputs={"word": "BYTES[1]"})
async def split(request: Request, context: Context) -> AsyncIterator[Response]:
    """Each word of the text once."""
    for word in dict.fromkeys(request["text"][0].split()):
        yield Response(outputs={"word": word})


@app.capability(
    "count", inputs={"text": "BYTES[1]", "word": "BYTES[1]"}, outputs={"count": "INT32[1]"}
)
@back.capability(
    "count", inputs={"text": "BYTES[1]", "word": "BYTES[1]"}, outputs={"count": "INT32[1]"}
)
async def count(request: Request, context: Context) -> Response:
    """How often the word is in the text."""
    words = request["text"][0].split()
    return Response(outputs={"count": [words.count(request["word"][0])]})
