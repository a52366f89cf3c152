"""The gap in streams whose replica is killed with -9, and that go on at another one.

python -m benchmarks resume
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import sys
from contextlib import ExitStack, aclosing

import attrs
import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.client import open_client
from anyserve.messages import OutputValue
from anyserve.transport.trio_client import open_channel
from benchmarks import servers
from benchmarks.errors import CannotMeasure
from benchmarks.mock_engine import GAP, TOKENS
from benchmarks.tables import number, table

IN_FLIGHT = (1, 8, 16)
_BEFORE = 0.5
"""Seconds until a replica is killed."""
_JOIN_TIMEOUT = 20.0
_ENGINE = ("--app", "benchmarks.mock_engine:app", "--in-process", "--replica-id")


def run(rounds: int) -> None:
    """Print the table."""
    with ExitStack() as running:
        door = running.enter_context(servers.scheduler()).address
        starts = itertools.count(1)
        _join(running, door, next(starts))
        rows = []
        for in_flight in IN_FLIGHT:
            gaps: list[float] = []
            for turn in range(rounds + 1):
                print(f"{in_flight} in flight, round {turn} of {rounds}", file=sys.stderr)
                _join(running, door, next(starts))
                found = trio.run(_kill_one, door, in_flight)
                gaps += found if turn else []
            times = [statistics.median(gaps) * 1e3, max(gaps) * 1e3]
            rows.append([str(in_flight), str(len(gaps)), *map(number, times)])
    print(table(["in flight", "resumed", "gap p50 ms", "longest"], rows))
    print(f"{TOKENS} tokens, one each {GAP * 1e3:g} ms; all came, once and in order.")


@attrs.define
class _Text:
    """What one client has of its text."""

    arrived: list[float] = attrs.field(factory=list)
    said_by: list[int] = attrs.field(factory=list)
    """Process ids, of the replica that has said each token."""

    async def read(self, door: str) -> None:
        """Ask for it; raises `CannotMeasure` where it is not whole."""
        inputs: dict[str, OutputValue] = {"text_input": "a prompt", "stream": True}
        async with (
            open_client(door) as client,
            aclosing(client.generate("decode", inputs)) as responses,
        ):
            async for response in responses:
                self.arrived.append(trio.current_time())
                self.said_by.append(int(response.outputs["text_output"][0]))
                if int(response.outputs["num_output_tokens"][0]) != len(self.arrived):
                    raise CannotMeasure("a token came twice, or not at all")
        if len(self.arrived) != TOKENS:
            raise CannotMeasure(f"{len(self.arrived)} tokens came, not {TOKENS}")

    @property
    def gap(self) -> float | None:
        """Seconds between the last token of one replica and the first of another."""
        for index in range(1, TOKENS):
            if self.said_by[index] != self.said_by[index - 1]:
                return self.arrived[index] - self.arrived[index - 1]
        return None


async def _kill_one(door: str, in_flight: int) -> list[float]:
    """Kill a replica in the midst of its streams, and give the gap of each of them."""
    texts = [_Text() for _ in range(in_flight)]
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(text.read, door)
        await trio.sleep(_BEFORE)
        os.kill(texts[0].said_by[-1], signal.SIGKILL)
    return [text.gap for text in texts if text.gap is not None]


def _join(running: ExitStack, door: str, count: int) -> None:
    """A replica that the scheduler knows; it ends with `running`."""
    options = (*_ENGINE, str(count), "--scheduler", door)
    trio.run(_wait_for, door, running.enter_context(servers.replica(*options)).address)


async def _wait_for(door: str, address: str) -> None:
    with trio.move_on_after(_JOIN_TIMEOUT):
        async with open_channel(door) as channel:
            while True:
                fleet: pb.FleetReply = await channel.unary(
                    "/anyserve.v1.Scheduler/Fleet", pb.FleetRequest(), pb.FleetReply
                )
                if any(each.address == address for each in fleet.replicas):
                    return
                await trio.sleep(0.05)
    raise CannotMeasure("the replica did not join the scheduler")
