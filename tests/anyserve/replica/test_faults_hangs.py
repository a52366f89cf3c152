"""Handlers that hang: named in the log, and their workers replaced once patience is at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio

from anyserve.errors import AnyServeError, Unavailable


def worker(replica: Any) -> Any:
    """The first worker's node in the actor tree."""
    root = replica.snapshot(trio.current_time())
    workers = next(node for node in root.children if node.name == "workers")
    return workers.children[0]


async def fails(call: Any, into: list[AnyServeError]) -> None:
    """Await a call that fails, and keep its error."""
    with pytest.raises(AnyServeError) as caught:
        await call
    into.append(caught.value)


async def test_a_blocked_event_loop_is_named_in_the_log_and_its_worker_replaced(
    replica_here: Any, eventually_here: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with replica_here(unresponsive=2.5) as (replica, client):
        before = worker(replica).details["pid"]
        errors: list[AnyServeError] = []
        await fails(client.infer("block_loop", {"seconds": 3600.0}), errors)
        reason = str(errors[0])
        assert isinstance(errors[0], Unavailable)
        assert reason.startswith("worker behaviours-0 did not answer for ")
        assert reason.endswith(" while it ran 'block_loop'")
        await eventually_here(lambda: worker(replica).restarts == 1)
        assert reason in worker(replica).last_error
        await eventually_here(lambda: replica.dispatcher.pool("about").serving)
        response = await client.infer("about", {})
        assert response.outputs["pid"] != before
    log = capfd.readouterr().err
    assert "the handler of 'block_loop' has blocked the event loop for 1." in log
    assert "behaviours.py:" in log


async def test_a_handler_that_ignores_its_cancel_has_its_worker_replaced_when_the_others_have_ended(
    replica_here: Any, eventually_here: Any, tmp_path: Path
) -> None:
    file, threads = tmp_path / "runs", tmp_path / "threads"
    async with replica_here(cancelled=0.2) as (replica, client), trio.open_nursery() as nursery:
        nursery.start_soon(client.infer, "until", {"file": str(file)})
        scope = trio.CancelScope()
        nursery.start_soon(
            _infer_in, scope, client, "stubborn", {"file": str(threads), "seconds": 3600.0}
        )
        await eventually_here(lambda: file.exists() and threads.exists())
        scope.cancel()
        errors: list[AnyServeError] = []
        await eventually_here(lambda: not replica.dispatcher.pool("echo").serving)
        await fails(client.infer("echo", {"INPUT": [1]}), errors)
        assert isinstance(errors[0], Unavailable)
        assert "the handler of 'stubborn' goes on 0.2 s after its request was cancelled" in str(
            errors[0]
        )
        assert worker(replica).restarts == 0
        file.unlink()  # the other request, which ends well: else the nursery would say so
        await eventually_here(lambda: worker(replica).restarts == 1)
        assert "a handler ignored its cancellation" in worker(replica).last_error
        await eventually_here(lambda: replica.dispatcher.pool("echo").serving)
        await client.infer("echo", {"INPUT": [1]})


async def _infer_in(scope: trio.CancelScope, client: Any, *request: Any) -> None:
    with scope:
        await client.infer(*request)


async def test_the_others_of_a_worker_that_is_to_be_replaced_have_only_so_long(
    replica_here: Any, eventually_here: Any, tmp_path: Path
) -> None:
    file, threads = tmp_path / "runs", tmp_path / "threads"
    async with (
        replica_here(cancelled=0.2, retiring=0.5) as (_replica, client),
        trio.open_nursery() as nursery,
    ):
        errors: list[AnyServeError] = []
        nursery.start_soon(fails, client.infer("hold", {"file": str(file)}), errors)
        scope = trio.CancelScope()
        nursery.start_soon(
            _infer_in, scope, client, "stubborn", {"file": str(threads), "seconds": 3600.0}
        )
        await eventually_here(lambda: file.exists() and threads.exists())
        scope.cancel()
        await eventually_here(lambda: errors)
        assert isinstance(errors[0], Unavailable)
        assert "a handler ignored its cancellation" in str(errors[0])


async def test_a_replica_that_stood_still_itself_does_not_blame_its_workers(
    replica_here: Any, eventually_here: Any
) -> None:
    async with replica_here(unresponsive=1.5) as (replica, client):
        before = await client.infer("about", {})
        time.sleep(3)  # noqa: ASYNC251 - as after a suspend, or SIGSTOP
        after = await client.infer("about", {})
        assert after.outputs["pid"] == before.outputs["pid"]
        assert worker(replica).restarts == 0
