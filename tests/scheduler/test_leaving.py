"""Replicas that are told to stop while requests are on their way to them, in real processes."""

from __future__ import annotations

import math
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig

from anyserve.client import open_client

OPTIONS = ("--app", "twins:app", "--in-process")
REPLICAS = "abcdefgh"
AT_ONCE = 48
"""Requests, on as many connections."""


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(SchedulerConfig(port=0, terms=LeaseTerms(lease=100, interval=50)))
    async with scheduler.running():
        scheduler.ways.complete_at = -math.inf  # there is no replica that may come back
        yield scheduler
        assert scheduler.ways.in_flight == 0
        assert len(scheduler.ways.deadlines) == 0


async def test_each_request_is_answered_once_whoever_is_told_to_stop(
    scheduler: Scheduler, start_replica: Any, eventually_here: Any
) -> None:
    asked: list[int] = []
    answered: list[str] = []
    stopping = trio.Event()

    async def ask_on() -> None:
        async with open_client(str(scheduler.address)) as client:
            while not stopping.is_set():
                asked.append(1)
                answer = await client.infer("who", {})
                answered.append(answer["pid"][0].decode())

    def known() -> int:
        return len(scheduler.registry.fleet().replicas)

    live = []
    for id in REPLICAS:
        to = ("--scheduler", str(scheduler.address), "--replica-id", id)
        live.append(await trio.to_thread.run_sync(start_replica, *OPTIONS, *to))
        await eventually_here(lambda id=id: scheduler.links.get(id) is not None)
    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(ask_on)
        for replica in live[:-1]:
            enough, fewer = len(answered) + 200, known() - 1
            await eventually_here(lambda enough=enough: len(answered) >= enough)
            replica.process.send_signal(signal.SIGTERM)
            await eventually_here(lambda fewer=fewer: known() == fewer)
        stopping.set()
    assert len(asked) == len(answered)
    assert set(answered) == {str(replica.process.pid) for replica in live}
