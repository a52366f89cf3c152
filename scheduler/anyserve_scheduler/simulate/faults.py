"""Faults as events: what begins and what ends each."""

from __future__ import annotations

from random import Random

import attrs

from anyserve.replica.pool import State
from anyserve_scheduler.simulate.loop import Loop
from anyserve_scheduler.simulate.network import SCHEDULER, Network
from anyserve_scheduler.simulate.replica import Replica
from anyserve_scheduler.simulate.scenario import FaultSpec
from anyserve_scheduler.simulate.scheduler import Scheduler


@attrs.define(eq=False)
class Faults:
    """Those of a run. After `stop`, none begins; those that have begun end in their time."""

    loop: Loop
    network: Network
    scheduler: Scheduler
    replicas: dict[str, Replica]
    rng: Random
    active: dict[tuple[str, str], int] = attrs.field(factory=dict)
    """Faults that have begun and not ended, by replica and kind: they may overlap."""
    stopped: bool = False

    def plan(self, faults: tuple[FaultSpec, ...]) -> None:
        """Have them happen."""
        for fault in faults:
            self.loop.at(fault.at, self._begin, fault)

    def stop(self) -> None:
        """Let no other one begin."""
        self.stopped = True

    def _begin(self, fault: FaultSpec) -> None:
        if self.stopped:
            return
        if fault.every:
            self.loop.after(fault.every, self._begin, fault)
        drawn = self.rng.randrange(len(self.replicas))
        replica = self.replicas.get(fault.replica) or list(self.replicas.values())[drawn]
        key = _key(replica, fault)
        self.active[key] = self.active.get(key, 0) + 1
        self._set(replica, fault, True)
        self.loop.after(fault.duration, self._end, replica, fault)

    def _end(self, replica: Replica, fault: FaultSpec) -> None:
        key = _key(replica, fault)
        self.active[key] -= 1
        if not self.active[key]:
            del self.active[key]
            self._set(replica, fault, False)

    def _set(self, replica: Replica, fault: FaultSpec, on: bool) -> None:
        """Begin a fault, or end it."""
        process = replica.process
        match fault.kind:
            case "scheduler" if on:
                self.scheduler.crash()
            case "scheduler":
                self.scheduler.start()
            case "crash" if on:
                replica.crash()
            case "drain" if on:
                replica.drain()
            case "crash" | "drain":
                if not {(replica.id, "crash"), (replica.id, "drain")} & self.active.keys():
                    replica.bring_up()
            case "hang" if on:
                if process is not None:
                    replica.hang()
            case "hang":
                replica.go_on()
            case "partition" if on:
                until = max(self.loop.now + fault.duration, self.network.parted.get(replica.id, 0))
                self.network.parted[replica.id] = until
            case "slow" if process is not None:
                process.worker.slowness = fault.factor if on else 1.0
            case "unload" if process is not None:
                self._load(replica, fault.capability, not on)
            case "drop" | "duplicate" | "late" if process is not None:
                setattr(process.attachment, fault.kind, fault.probability if on else 0.0)
                process.attachment.lateness = fault.factor
            case _:
                pass  # its process is down, or its link comes back by itself

    def _load(self, replica: Replica, name: str, loaded: bool) -> None:
        process = replica.process
        assert process is not None
        if process.dispatcher.knows(name) and process.dispatcher.pool(name).seats:
            state = State.READY if loaded else State.UNAVAILABLE
            process.dispatcher.set_state(name, state, "" if loaded else "it was unloaded")
            process.attachment.changed()
            process.alarm.check()


def _key(replica: Replica, fault: FaultSpec) -> tuple[str, str]:
    return SCHEDULER if fault.kind == "scheduler" else replica.id, fault.kind
