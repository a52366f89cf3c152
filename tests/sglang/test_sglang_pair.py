"""A pair of real SGLang servers, which pass their caches by TCP: texts, cancels, deaths.

It needs what `environment.py --pairs` adds; two servers take two cores and 3 GB.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig

from anyserve.client import open_client
from anyserve.engines.sglang.owned import free_port
from anyserve.errors import AnyServeError, Unavailable

pytestmark = pytest.mark.timeout(900)

HALVES = {
    "prefill": "--disaggregation-mode prefill --disaggregation-bootstrap-port {port}",
    "decode": "--disaggregation-mode decode --disaggregation-decode-retraction-backup cpu_tensor",
}
TRANSFER = "--disaggregation-transfer-backend mooncake_tcp"
CAPITAL = "The capital of France is"
LONG = "word " * 300
"""Takes a second or two to be computed."""


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, interpreter: str, own: Callable[..., Any]
) -> dict[str, Any]:
    """Both halves, each owned by a replica that no scheduler knows."""
    if "ANYSERVE_SGLANG_PAIRS" not in os.environ:
        pytest.skip("no pairs: export what tests/sglang/environment.py --pairs prints")
    command = [interpreter, "-c", "import mooncake.engine"]
    tried = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no pairs: see tests/sglang/environment.py: {tried.stderr.splitlines()[-1]}")
    python = tmp_path_factory.mktemp("pair") / "python"
    unpinned = Path(__file__).parent / "unpinned"
    python.write_text(f"#!/bin/sh\nPYTHONPATH='{unpinned}' exec '{interpreter}' \"$@\"\n")
    python.chmod(0o755)
    port = free_port()
    halves = {half: f"{args.format(port=port)} {TRANSFER}" for half, args in HALVES.items()}
    return {half: own(str(python), args) for half, args in halves.items()}


@attrs.define(eq=False)
class Fleet:
    """A scheduler here, and a replica attached to each half."""

    scheduler: Scheduler
    servers: dict[str, Any]
    replicas: dict[str, Any]

    async def say(self, pieces: list[str], prompt: str, max_tokens: int = 200, **more: Any) -> None:
        asked = {"max_tokens": max_tokens, "ignore_eos": True, "stream": True, **more}
        async with (
            open_client(str(self.scheduler.address)) as client,
            aclosing(client.generate("decode", {"text_input": prompt}, asked)) as said,
        ):
            async for result in said:
                pieces += [result["text_output"][0].decode()]

    async def until_it_serves(self, within: float) -> None:
        """Ask for a text until there is one."""
        pieces: list[str] = []
        with trio.fail_after(within):
            while "Paris" not in "".join(pieces):
                await trio.sleep(0.1)
                pieces.clear()
                with suppress(AnyServeError), trio.move_on_after(20):
                    await self.say(pieces, CAPITAL, 6, ignore_eos=False)

    async def until_idle(self, *halves: str, within: float) -> None:
        """Wait for the servers to have nothing to do."""
        began, now = time.monotonic(), time.time()
        for half in halves or self.servers:
            server = self.servers[half]
            await trio.to_thread.run_sync(server.until, partial(server.idle, now), within)
        assert time.monotonic() - began < within


@pytest.fixture
async def fleet(servers: dict[str, Any], start_replica: Any) -> AsyncIterator[Fleet]:
    scheduler = Scheduler(SchedulerConfig(port=0, terms=LeaseTerms()))
    async with scheduler.running():
        replicas = {}
        for half, server in servers.items():
            app = f"anyserve.engines.sglang.app:attached?url=http://{server.address}"
            to = ("--scheduler", str(scheduler.address), "--replica-id", half, "--http", "0")
            start = partial(start_replica, "--app", app, *to)
            replicas[half] = await trio.to_thread.run_sync(start)
        fleet = Fleet(scheduler, servers, replicas)
        await fleet.until_it_serves(within=60)
        yield fleet
        assert scheduler.ways.in_flight == 0


async def test_a_pair_gives_the_text_that_greedy_decoding_gives(fleet: Fleet, server: Any) -> None:
    pieces: list[str] = []
    await fleet.say(pieces, CAPITAL, 8, ignore_eos=False)
    assert "".join(pieces) == await trio.to_thread.run_sync(server.greedy, CAPITAL, 8)


@pytest.mark.parametrize("begun", [False, True], ids=["before the first token", "begun"])
async def test_a_client_that_goes_leaves_both_servers_idle(
    fleet: Fleet, eventually_here: Any, begun: bool
) -> None:
    pieces: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.say, pieces, "Once" if begun else LONG)
        if begun:
            await eventually_here(lambda: len(pieces) > 2)
        else:
            # It waits for the prompt's cache. The one that computes that says nothing meanwhile.
            decode = fleet.servers["decode"]
            await trio.to_thread.run_sync(decode.until, decode.busy, 20)
            assert not pieces
        nursery.cancel_scope.cancel()
    # Two where nothing else runs; a prompt that is being computed is not broken off.
    await fleet.until_idle(within=15)


@pytest.mark.parametrize("killed", ["prefill", "decode"])
async def test_a_half_that_is_killed_ends_what_needs_it_and_comes_back(
    fleet: Fleet, running: Callable[[Any], int], eventually_here: Any, killed: str
) -> None:
    server, [other] = fleet.servers[killed], fleet.servers.keys() - {killed}
    before = server.processes()
    begun: list[str] = []
    waiting: list[str] = []

    async def lost(pieces: list[str], prompt: str) -> None:
        with pytest.raises(Unavailable, match=r"SGLang at .* (is lost|can't be reached)"):
            await fleet.say(pieces, prompt, 40)

    def runs(count: int) -> bool:
        return running(fleet.replicas[killed]) == count

    # A text that has its prompt's cache needs the prefill half no more.
    survives = killed == "prefill"
    first = partial(fleet.say, max_tokens=40) if survives else lost
    try:
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first, begun, "Once")
                await eventually_here(lambda: len(begun) > 2 and runs(not survives))
                os.kill(server.scheduler(), signal.SIGSTOP)  # so that nothing more begins
                nursery.start_soon(lost, waiting, CAPITAL)
                await eventually_here(lambda: runs(1 + (not survives)))
                os.kill(before[0], signal.SIGKILL)
    finally:
        for pid in server.alive(before):
            os.kill(pid, signal.SIGCONT)
    assert waiting == []
    assert (len(begun) == 40) == survives
    await fleet.until_idle(other, within=20)
    await fleet.until_it_serves(within=300)
    assert server.alive(before) == []
    for replica in fleet.replicas.values():
        assert replica.log_text().count("ready in process") == 1
    await fleet.until_idle(within=5)
