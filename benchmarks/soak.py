"""`python -m benchmarks.soak`: a million calls of all kinds, after which a replica is as it was.

Laps of small and large echoes, streams, calls left and calls timed out, and a connection that
breaks with its calls in flight. After each lap the replica must have nothing left of them; what its
processes then take is printed, and must not have grown since they had warmed up.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import attrs
import trio
from anyserve_protos.anyserve import v1 as admin_pb

from anyserve.admin.socket_path import socket_path
from anyserve.errors import DeadlineExceeded
from anyserve.transport.trio_client import open_channel
from benchmarks import h2load, proc, servers
from benchmarks.errors import CannotMeasure
from benchmarks.h2load import Load
from benchmarks.messages import check_echo, check_stream, echo_request, stream_request
from benchmarks.pacing import Stream
from benchmarks.prepared import STREAM_INFER
from benchmarks.servers import Server
from benchmarks.tables import number, table

LAPS = 20
WARM_UP = 5
"""Laps in which caches, pools and heaps may still grow."""
MOST_GROWTH = 4 << 20
"""Bytes that a process's memory may grow after that, from its first laps' median to its last's."""

_MIB = 1 << 20
_SMALL, _LARGE = 25, 65_536
"""FP32 values: 100 bytes, which go along with their message, and 256 KiB, which go by lease."""
_MESSAGES = 16
"""Messages of a stream that is read to its end."""
_ENDLESS = Stream(1_000_000, gap=0.01)
_PATIENCE = 0.05
"""Seconds until a call times out that is to."""
_AT_ONCE = 32
_MOST_LEFT = 500
"""Calls of a connection; one that leaves a thousand within a second is closed as a flood."""
_IN_FLIGHT = 64
_IDLE = 10.0
"""Seconds for a replica to be rid of calls that have ended."""


@attrs.frozen
class Lap:
    """Calls of each kind."""

    small: int
    large: int
    streams: int
    left: int
    timed_out: int

    @classmethod
    def of(cls, calls: int) -> Lap:
        """Most are small; the rest is no less than one of each."""
        large, streams, left, timed_out = (
            max(1, calls * part // 1000) for part in (20, 40, 30, 10)
        )
        small = max(1, calls - large - streams - left - timed_out)
        return cls(small, large, streams, left, timed_out)

    @property
    def calls(self) -> int:
        """All of them, and those of the connection that breaks."""
        return self.small + self.large + self.streams + self.left + self.timed_out + _IN_FLIGHT


@attrs.frozen
class Loads:
    """What h2load sends in a lap, with the size of the replies to one call."""

    finished: Sequence[tuple[Load, int]]
    broken: Load
    """Whose connection breaks."""


@attrs.frozen
class Taken:
    """What a process takes while it has nothing to do."""

    pss: int
    private: int
    descriptors: int
    threads: int


@attrs.frozen
class Sample:
    """The replica after a lap."""

    calls: int
    rate: float
    """Small echoes a second."""
    processes: Mapping[str, Taken]
    """By name."""
    actors: int
    shared_memory: int
    """Bytes of its segments."""


def main() -> int:
    """Run the soak; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Send calls of all kinds to a replica with one worker; fail if it grows.",
    )
    parser.add_argument("--calls", type=int, default=1_000_000, help="how many (1,000,000)")
    options = parser.parse_args()
    try:
        h2load.check_installed()
        servers.take_load_core()
        with servers.replica(*servers.WORK) as server:
            samples = run(server, Lap.of(options.calls // LAPS))
    except CannotMeasure as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print_table(samples)
    grown = growth(samples)
    for line in grown:
        print(f"benchmarks: {line}", file=sys.stderr)
    return 1 if grown else 0


def run(server: Server, lap: Lap) -> list[Sample]:
    """All laps; raises `CannotMeasure` where a call is answered wrongly, or never ends."""
    small, large = echo_request(_SMALL), echo_request(_LARGE)
    stream, endless = stream_request(Stream(_MESSAGES)), stream_request(_ENDLESS)
    stream_size = check_stream(server.address, stream, _MESSAGES)
    loads = Loads(
        [
            (Load(small, _IN_FLIGHT, lap.small), check_echo(server.address, small)),
            (Load(large, 4, lap.large), check_echo(server.address, large)),
            (Load(stream, _AT_ONCE, lap.streams, STREAM_INFER, _MESSAGES), stream_size),
        ],
        Load(endless, _IN_FLIGHT, _IN_FLIGHT, STREAM_INFER),
    )
    samples: list[Sample] = []
    for turn in range(1, LAPS + 1):
        began = time.monotonic()
        rates = [h2load.run(server, load, size).rate for load, size in loads.finished]
        trio.run(_leave, server.address, endless, lap)
        with h2load.sending(server, loads.broken):
            trio.run(_until, server, partial(_has, in_flight=_IN_FLIGHT))
        tree = trio.run(_until, server, partial(_has, in_flight=0))
        samples.append(_sample(server, tree, lap.calls * turn, rates[0]))
        print(f"lap {turn} of {LAPS}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return samples


def growth(samples: Sequence[Sample]) -> list[str]:
    """What has grown since the processes had warmed up, a line for each; none: all is flat."""
    counts: dict[str, list[int]] = {"actors": [sample.actors for sample in samples]}
    sizes = {"shared memory": [sample.shared_memory for sample in samples]}
    for name in samples[0].processes:
        taken = [sample.processes[name] for sample in samples]
        counts[f"descriptors of the {name}"] = [each.descriptors for each in taken]
        counts[f"threads of the {name}"] = [each.threads for each in taken]
        sizes[f"memory of the {name}"] = [each.private for each in taken]
    grown = []
    for what, values in counts.items():
        most = max(values[:WARM_UP])
        if values[-1] > most:
            grown.append(f"{what}: {most} once warm, {values[-1]} at the end")
    for what, values in sizes.items():
        before, after = (
            statistics.median(part) for part in (values[WARM_UP : 2 * WARM_UP], values[-WARM_UP:])
        )
        if after - before > MOST_GROWTH:
            grown.append(
                f"{what}: {before / _MIB:.1f} MiB once warm, {after / _MIB:.1f} at the end"
            )
    return grown


def print_table(samples: Sequence[Sample]) -> None:
    """A row for each lap."""
    names = list(samples[0].processes)
    heads = ["calls", "echoes/s"]
    for name in names:
        heads += [f"{name}: PSS MiB", "private MiB", "descriptors", "threads"]
    rows = []
    for sample in samples:
        row = [f"{sample.calls:,}", number(sample.rate)]
        for taken in sample.processes.values():
            row += [f"{taken.pss / _MIB:.1f}", f"{taken.private / _MIB:.1f}"]
            row += [str(taken.descriptors), str(taken.threads)]
        rows.append([*row, str(sample.actors), f"{sample.shared_memory / _MIB:.1f}"])
    print(table([*heads, "actors", "shared memory MiB"], rows))


async def _leave(address: str, request: bytes, lap: Lap) -> None:
    """Make the calls that are left after a message or time out, some at once, until all end."""
    patiences = iter([math.inf] * lap.left + [_PATIENCE] * lap.timed_out)
    ended_by_server = 0

    async def one(patience: float) -> None:
        nonlocal ended_by_server
        async with channel.stream(STREAM_INFER, bytes, bytes) as stream:
            await stream.send(request)
            while await stream.recv() is not None:
                if patience == math.inf:
                    return
        ended_by_server += 1

    async def caller() -> None:
        for patience in calls:
            # Whichever of the two clocks comes first.
            with suppress(DeadlineExceeded), trio.move_on_after(patience):
                await one(patience)

    while left := list(islice(patiences, _MOST_LEFT)):
        calls = iter(left)
        async with open_channel(address) as channel, trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(caller)
    if ended_by_server:
        raise CannotMeasure(f"{address} ended {ended_by_server} streams that have no end")


async def _until(
    server: Server, condition: Callable[[Mapping[str, admin_pb.Node]], bool]
) -> Mapping[str, admin_pb.Node]:
    """The actors by name, as soon as `condition` holds; looks often, for at most 10 seconds."""
    path = socket_path(int(server.address.rpartition(":")[2]))
    deadline = trio.current_time() + _IDLE
    while trio.current_time() < deadline:
        async with open_channel(f"unix:{path}") as channel:
            request = admin_pb.TreeRequest()
            reply = await channel.unary("/anyserve.v1.Admin/Tree", request, admin_pb.TreeReply)
        actors: dict[str, admin_pb.Node] = {}
        pending = [reply.root]
        while pending:
            node = pending.pop()
            if node is not None:
                actors[node.name] = node
                pending += node.children
        if condition(actors):
            return actors
        await trio.sleep(0.02)
    details = ", ".join(f"{name} {node.details}" for name, node in actors.items() if node.details)
    raise CannotMeasure(f"after {_IDLE:.0f} s the replica still has: {details}")


def _has(actors: Mapping[str, admin_pb.Node], in_flight: int) -> bool:
    """Whether so many calls are in flight; for none, neither has any part of it anything left."""
    if actors["dispatcher"].details["in_flight"] != str(in_flight):
        return False
    left = [
        actors["ingress"].details["connections"],
        actors["ingress"].details["calls"],
        actors["objects"].details["leases"],
        *(node.details["running"] for node in actors.values() if "running" in node.details),
    ]
    return bool(in_flight) or set(left) == {"0"}


def _sample(server: Server, actors: Mapping[str, admin_pb.Node], calls: int, rate: float) -> Sample:
    processes = {}
    for name, pid in server.processes.items():
        memory = proc.memory(pid)
        folder = Path(f"/proc/{pid}")
        processes[name] = Taken(
            memory.pss,
            memory.private,
            len(list((folder / "fd").iterdir())),
            len(list((folder / "task").iterdir())),
        )
    replica = next(iter(server.processes.values()))
    segments = Path("/dev/shm").glob(f"anyserve-{replica}-*")
    shared_memory = sum(segment.stat().st_blocks * 512 for segment in segments)
    return Sample(calls, rate, processes, len(actors), shared_memory)


if __name__ == "__main__":
    sys.exit(main())
