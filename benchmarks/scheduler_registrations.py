"""What registered replicas cost a scheduler: memory and CPU of 1,000 links, and how long they take.

python -m benchmarks.scheduler_registrations

The replicas are the product's own links, all in this process, which say that they offer eight
capabilities and report loads that are always different.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio
from anyserve_actors import ChildSpec, Policy, Supervisor, open_tree

from anyserve.capability import Capability
from anyserve.load import Load
from anyserve.offers import Offer
from anyserve.replica.reports import Standing
from anyserve.replica.scheduler_link import SchedulerLink
from anyserve.transport.address import Address, parse_address
from anyserve.transport.trio_client import open_channel
from benchmarks import proc
from benchmarks.errors import CannotMeasure
from benchmarks.servers import ROOT
from benchmarks.tables import number, table

REPLICAS = 1_000
_WARM = 50
"""Links before the memory that is compared with: what the first ones bring is not theirs."""
_SECONDS = 10
_OFFERS = {
    f"{name}.{kind}": Offer(Capability(f"{name}.{kind}", {"model": "m", "max_context": 4096}))
    for name in ("decode", "prefill", "embedding", "rank")
    for kind in ("a", "b")
}


def standing() -> Standing:
    """A replica that is busy, each time in another way."""
    loads = {name: Load(random.randrange(64), 0, 64, 0.0) for name in _OFFERS}
    return Standing(_OFFERS, loads, False)


async def _hold(numbers: range, address: Address, nursery: trio.Nursery) -> None:
    """Start links of so many replicas and wait until they are registered."""
    links = [
        SchedulerLink(
            f"replica-{number:04}",
            f"127.0.0.1:{10_000 + number}",
            standing,
            partial(open_channel, address),
        )
        for number in numbers
    ]
    children = [ChildSpec(link.replica_id, partial(_itself, link)) for link in links]

    async def run() -> None:
        async with open_tree("replicas", Supervisor(children, Policy(max_restarts=0))):
            await trio.sleep_forever()

    nursery.start_soon(run)
    with trio.fail_after(60):
        while not all(link.channel for link in links):  # noqa: ASYNC110 - the scheduler answers
            await trio.sleep(0.05)


def _itself(link: SchedulerLink) -> SchedulerLink:
    return link


async def _measure(pid: int, address: Address) -> None:
    async with trio.open_nursery() as nursery:
        await _hold(range(_WARM), address, nursery)
        before = proc.memory(pid).private
        began = time.monotonic(), proc.cpu_seconds(pid)
        await _hold(range(_WARM, _WARM + REPLICAS), address, nursery)
        seconds, cpu = time.monotonic() - began[0], proc.cpu_seconds(pid) - began[1]
        start = time.monotonic(), proc.cpu_seconds(pid)
        await trio.sleep(_SECONDS)
        share = (proc.cpu_seconds(pid) - start[1]) / (time.monotonic() - start[0])
        kib = (proc.memory(pid).private - before) / 1024 / REPLICAS
        rows = [
            ("memory of one link, KiB", number(kib)),
            (
                f"CPU of a registration, µs, and {REPLICAS:,} took {seconds:.1f} s",
                number(cpu / REPLICAS * 1e6),
            ),
            (f"CPU while {REPLICAS + _WARM:,} report, % of a core", number(share * 100)),
        ]
        print(table(("", ""), rows))
        nursery.cancel_scope.cancel()


@contextmanager
def _scheduler() -> Iterator[tuple[int, Address]]:
    """A scheduler in a process of its own: its id and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "anyserve_scheduler", "--port", "0", "--log-level", "warning"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "ready on" not in line:
            raise CannotMeasure("the scheduler did not start: see above")
        yield process.pid, parse_address(line.split()[-1])
    finally:
        process.terminate()
        process.wait(30)


def run() -> None:
    """Print the table."""
    with _scheduler() as (pid, address):
        trio.run(_measure, pid, address)


if __name__ == "__main__":
    run()
