"""What a tensor costs between replica and worker, without gRPC: copies, counted by their time.

A larger tensor makes a call dearer by what handles its bytes. That price of a MiB over the price
of one copy into shared memory, `Arena.put` alone, is the number of copies on the way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from statistics import median

import numpy as np
import trio
from anyserve_protos import inference as pb

from anyserve.capability import Capability
from anyserve.objects.arena import Arena
from anyserve.objects.segments import new_prefix
from anyserve.replica.dispatcher import Dispatcher
from anyserve.replica.exchange import Call
from anyserve.replica.group import AppSpec
from anyserve.replica.replica import Replica, ReplicaConfig
from anyserve.replica.replies import Replies
from anyserve.replica.repository import Plan
from benchmarks import proc
from benchmarks.tables import number, table

SIZES = (1, 4, 16)
"""MiB."""
CALLS = 500

_MIB = 1 << 20


def run(rounds: int) -> None:
    """Print the table."""
    trio.run(_run, rounds)


async def _run(rounds: int) -> None:
    plan = Plan([AppSpec("size", "benchmarks.size_app:app", log_level="warning")], {}, None)
    replica = Replica(ReplicaConfig(plan, port=0))
    async with replica.running():
        with Arena(new_prefix()) as arena:
            ways: dict[tuple[int, str], Callable[[], Awaitable[None]]] = {}
            for size in SIZES:
                tensor = np.random.default_rng(7).bytes(size * _MIB)
                ways[size, "call"] = _Calls(replica.dispatcher, tensor)
                ways[size, "copy"] = _Copies(arena, tensor)
            costs: dict[tuple[int, str], list[float]] = {case: [] for case in ways}
            for turn in range(rounds + 1):
                print(f"round {turn} of {rounds}", file=sys.stderr)
                for case, way in ways.items():
                    cpu_us = await _cpu_us(way)
                    if turn:
                        costs[case].append(cpu_us)
    print_table({case: median(runs) for case, runs in costs.items()})


def print_table(costs: dict[tuple[int, str], float]) -> None:
    """A row for each size, and one for the MiB between the smallest and the largest."""
    rows = [
        [f"{size} MiB", number(costs[size, "call"]), number(costs[size, "copy"]), ""]
        for size in SIZES
    ]
    least, most = SIZES[0], SIZES[-1]
    call, copy = (
        (costs[most, way] - costs[least, way]) / (most - least) for way in ("call", "copy")
    )
    rows.append(["one MiB more", number(call), number(copy), number(call / copy)])
    print(table(["tensor", "call: CPU µs", "one copy alone: CPU µs", "copies"], rows))


class _Calls:
    """Calls to the worker, one after the other."""

    def __init__(self, dispatcher: Dispatcher, tensor: bytes) -> None:
        self._dispatcher = dispatcher
        self._call = Call(
            Capability("size"),
            bytes(
                pb.ModelInferRequest(
                    model_name="size",
                    inputs=[
                        pb.ModelInferRequestInferInputTensor(
                            name="INPUT0", datatype="UINT8", shape=[len(tensor)]
                        )
                    ],
                )
            ),
            [tensor],
        )

    async def __call__(self) -> None:
        for _ in range(CALLS):
            async with Replies(self._dispatcher, self._call) as execution:
                while (reply := await execution.receive()) is not None:
                    reply.release()


class _Copies:
    """The same tensor written into an arena, and nothing else."""

    def __init__(self, arena: Arena, tensor: bytes) -> None:
        self._arena = arena
        self._tensor = tensor

    async def __call__(self) -> None:
        for _ in range(CALLS):
            self._arena.put([self._tensor]).release()
            await trio.lowlevel.checkpoint()


async def _cpu_us(way: Callable[[], Awaitable[None]]) -> float:
    """CPU time of this process and its worker, microseconds a call."""
    before = _cpu_seconds()
    await way()
    return (_cpu_seconds() - before) / CALLS * 1e6


def _cpu_seconds() -> float:
    return sum(map(proc.cpu_seconds, proc.family(os.getpid()).values()))
