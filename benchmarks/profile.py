"""Where CPU time goes, by component and process: of an echo, a message, a chat and a token."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from benchmarks import echo, h2load, openai, proc, servers, streams
from benchmarks.components import by_component
from benchmarks.h2load import Load
from benchmarks.messages import check_echo, echo_request
from benchmarks.rounds import Case
from benchmarks.servers import Server
from benchmarks.tables import number, table

CALLS = {"back to back": 800, "5 ms, in step": 192}
"""Streams, by their kind."""
ECHOES, IN_FLIGHT = 50_000, 64
CHATS = (8, 6, 16)
"""Times as many as `openai` has in a round: of chats, streamed ones, and streams of tokens."""

_SAMPLED = "benchmarks.sampled_replica"
_APP = ("--app", "benchmarks.sampled_app:app")
_LEAST = 0.5
"""Microseconds under which a component has no row, in whatever column."""


@attrs.frozen
class Profile:
    """What one process did for one kind of work."""

    cpu_us: float
    """CPU time, microseconds a reply."""
    kernel_us: float
    """The kernel's part of it."""
    samples: Counter[str]
    """By component."""

    def part_us(self, component: str) -> float:
        """A component's part of the CPU time."""
        return self.samples[component] / self.samples.total() * self.cpu_us


def run() -> None:
    """Print a table of gRPC, and one of the OpenAI door.

    Sampling itself makes all processes a few percent slower.
    """
    h2load.check_installed()
    with servers.replica(*_APP, module=_SAMPLED) as server:
        profiles = _profiles(_cases(server), {"sampled_replica": "replica"})
    with servers.in_process(*_APP, module=_SAMPLED) as server:
        profiles |= _profiles(_cases(server), {"sampled_replica": "in process"})
    _print(profiles)
    print()
    with openai.replica(module=_SAMPLED) as server:
        _print(_profiles(_chats(openai.Gateway(server)), {"sampled_replica": "replica"}))


def _print(profiles: Mapping[str, Profile]) -> None:
    components = set[str]().union(*(profile.samples for profile in profiles.values()))
    most = {name: max(p.part_us(name) for p in profiles.values()) for name in components}
    rows = [
        [name, *(number(profile.part_us(name)) for profile in profiles.values())]
        for name in sorted(most, key=lambda name: -most[name])
        if most[name] >= _LEAST
    ]
    rows.append(["in all", *(number(profile.cpu_us) for profile in profiles.values())])
    rows.append(["of it the kernel", *(number(p.kernel_us) for p in profiles.values())])
    print(table(["CPU µs", *profiles], rows))


def _profiles(cases: Sequence[Case], words: Mapping[str, str]) -> dict[str, Profile]:
    """Of each kind of work and each process; words: what processes are called in the table."""
    return {
        f"{case.what}: {words.get(process, process)}": profile
        for case in cases
        for process, profile in _profile(case).items()
    }


def _cases(server: Server) -> list[Case]:
    request = echo_request(echo.FLOATS)
    echoes = Load(request, IN_FLIGHT, ECHOES)
    return [
        Case("echo", server, echoes, check_echo(server.address, request)),
        *(streams.case(what, server, calls) for what, calls in CALLS.items()),
    ]


def _chats(door: openai.Gateway) -> list[Case]:
    cases = [door.chats(64, stream=False), door.chats(64, stream=True), door.tokens()]
    return [
        attrs.evolve(case, load=attrs.evolve(case.load, calls=case.load.calls * times))
        for case, times in zip(cases, CHATS, strict=True)
    ]


def _profile(case: Case) -> dict[str, Profile]:
    """Run the load; what each process did meanwhile."""
    server, processes = case.server, case.server.processes
    for pid in processes.values():
        os.kill(pid, signal.SIGUSR1)
    before = {name: proc.kernel_seconds(pid) for name, pid in processes.items()}
    figures = h2load.run(server, case.load, case.reply_size)
    replies = case.load.calls * case.load.replies
    profiles = {}
    for name, pid in processes.items():
        kernel = proc.kernel_seconds(pid) - before[name]
        # The worker's standard output is the replica's.
        os.kill(pid, signal.SIGUSR1)
        samples = by_component(json.loads(server.read_line("{")))
        profiles[name] = Profile(figures.cpu_us[name], kernel / replies * 1e6, samples)
    return profiles
