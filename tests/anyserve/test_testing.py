"""The test client: an app's handlers in process, as clients of a replica would see them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np
import pytest
import trio
import trio.testing

from anyserve import App, Context, Request, Response
from anyserve.errors import InvalidArgument, NotFound, PermissionDenied, Unimplemented
from anyserve.testing import open_test_client


@pytest.fixture
def app() -> App:
    """Some handlers, and in `app.events` what has become of them."""
    app = App()
    events: list[str] = []

    @app.lifespan
    async def life(app: App) -> AsyncIterator[None]:
        events.append("loaded")
        yield
        events.append("unloaded")

    @app.capability("double", inputs={"x": "INT32[-1]"}, outputs={"y": "INT32[-1]"})
    async def double(request: Request, context: Context) -> Response:
        return Response(outputs={"y": request["x"] * 2}, parameters=request.parameters)

    @app.capability("count")
    async def count(request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            number = 0
            while True:
                yield Response(outputs={"n": number})
                number += 1
        finally:
            events.append(f"counted to {number}")

    @app.capability("plain")
    def plain(request: Request, context: Context) -> Response:
        raise PermissionDenied("not for you")

    @app.capability("remaining")
    async def remaining(request: Request, context: Context) -> Response:
        return Response(outputs={"seconds": context.deadline - trio.current_time()})

    @app.capability("hold", concurrency=1)
    async def hold(request: Request, context: Context) -> Response:
        events.append("held")
        try:
            await trio.sleep_forever()
        finally:
            events.append("let go")
        return Response()

    app.events = events  # type: ignore[attr-defined]
    return app


async def test_a_handler_answers_within_its_apps_lifespan(app: App) -> None:
    async with open_test_client(app) as client:
        response = await client.infer("double", {"x": np.array([1, 2], np.int32)}, {"a": "b"})
        assert np.asarray(response.outputs["y"]).tolist() == [2, 4]
        assert response.parameters["a"] == "b"
        assert app.events == ["loaded"]  # type: ignore[attr-defined]
    assert app.events == ["loaded", "unloaded"]  # type: ignore[attr-defined]


async def test_the_checks_and_errors_are_those_of_a_replica(app: App) -> None:
    async with open_test_client(app) as client:
        with pytest.raises(InvalidArgument, match="'x'"):
            await client.infer("double", {"x": np.array([1.0, 2.0], np.float32)})
        with pytest.raises(InvalidArgument, match="'x' is missing"):
            await client.infer("double", {})
        with pytest.raises(PermissionDenied, match="not for you"):
            await client.infer("plain", {})
        with pytest.raises(NotFound, match="double"):
            await client.infer("triple", {})


async def test_responses_come_one_by_one_and_leaving_early_cancels_the_handler(app: App) -> None:
    async with open_test_client(app) as client:
        async with aclosing(client.generate("count", {})) as responses:
            seen = [np.asarray((await anext(responses)).outputs["n"]).item() for _ in range(200)]
        assert seen == list(range(200))
        await trio.testing.wait_all_tasks_blocked()
        _, counted = app.events  # type: ignore[attr-defined]
        # As far as its credit let it run ahead, and no further.
        assert (
            199 <= int(counted.removeprefix("counted to ")) <= 199 + 65
        )  # the next one is made, and waits


async def test_one_response_is_asked_for_where_there_are_none_or_several(app: App) -> None:
    @app.capability("none", decoupled=True)
    async def none(request: Request, context: Context) -> AsyncIterator[Response]:
        for _ in ():
            yield Response()

    async with open_test_client(app) as client:
        with pytest.raises(Unimplemented, match="0 responses"):
            await client.infer("none", {})


async def test_the_callers_scope_is_the_handlers_deadline_and_cancels_it(
    app: App, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_test_client(app) as client:
        with trio.fail_after(5):
            response = await client.infer("remaining", {})
        assert response.outputs["seconds"] == pytest.approx(5)
        for _ in range(2):  # its only slot is free again
            with trio.move_on_after(1) as scope:
                await client.infer("hold", {})
            assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
    assert app.events[1:-1] == ["held", "let go"] * 2  # type: ignore[attr-defined]
