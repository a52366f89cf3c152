"""A scenario as values, read from TOML: every field is checked, and errors name it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from anyserve.capability import Attribute, Capability
from anyserve.errors import InvalidArgument
from anyserve_scheduler.demand import DemandTerms
from anyserve_scheduler.registration import LeaseTerms

T = TypeVar("T")


class ScenarioError(ValueError):
    """What a scenario says makes no sense; the message names the field."""


@attrs.frozen
class OfferSpec:
    """One capability that each replica of a group serves. Times in seconds."""

    capability: Capability
    slots: int = 8
    queue: int = 64
    block_time: float = 0.0
    """That each block of a prompt takes which is not in the replica's cache."""
    cache: int = 4096
    """Blocks that the cache holds."""
    speed: float = 1.0
    """How many times faster than the requests' own service times say."""
    on_demand: bool = False
    """Not loaded at first; the scheduler may ask for it, and for it to go."""
    load_time: float = 5.0
    """That loading it takes."""
    resumable: bool = False
    """What is lost in its midst may go on at another replica."""


@attrs.frozen
class GroupSpec:
    """Replicas that are alike: `name-0`, `name-1` and so on."""

    name: str
    count: int
    offers: tuple[OfferSpec, ...]

    @property
    def ids(self) -> list[str]:
        """Of its replicas."""
        return [f"{self.name}-{number}" for number in range(self.count)]


TRACES = ("poisson", "bursts", "diurnal", "conversations", "file")


@attrs.frozen
class TrafficSpec:
    """Requests for one capability. Times in seconds."""

    need: Capability
    kind: str
    """One of `TRACES`."""
    rate: float = 0.0
    """Requests a second on the average; conversations begun a second for `conversations`."""
    service: float = 0.1
    """Mean time that a request holds its slot, without its prompt's blocks."""
    answers: int = 1
    """Messages that each request is answered with, over 1 by a stream."""
    spread: str = "exponential"
    """Of the service times, or `constant`."""
    deadline: float = math.inf
    start: float = 0.0
    direct: float = 0.0
    """Fraction that is sent to a replica at random, not to the scheduler."""
    cancelled: float = 0.0
    """Fraction whose client gives up, at some moment before twice the service time."""
    period: float = 60.0
    """Of bursts, or of a day."""
    factor: float = 4.0
    """How many times the mean rate the peak has."""
    turns: int = 5
    """Requests of a conversation."""
    think: float = 5.0
    """Mean time between them."""
    blocks: int = 8
    """That each turn adds to the prompt."""
    systems: int = 4
    """Prompts that conversations begin with, each shared by many."""
    system_blocks: int = 16
    """Of each of those."""
    sticky: bool = False
    """Whether the requests of a conversation name their session."""
    file: Path | None = None
    """Of `file`: lines of arrival time and, after a comma, service time."""


FAULTS = (
    "crash",
    "drain",
    "hang",
    "partition",
    "slow",
    "unload",
    "drop",
    "duplicate",
    "late",
    "scheduler",
)


@attrs.frozen
class FaultSpec:
    """Something that happens to one replica, its link, or the scheduler. Times in seconds."""

    kind: str
    """One of `FAULTS`."""
    replica: str
    """Its id, or `*`: one at random. Of no meaning for `scheduler`."""
    at: float
    duration: float
    factor: float = 5.0
    """How much slower (`slow`), or how much later (`late`, seconds)."""
    probability: float = 0.2
    """Of each report, for `drop`, `duplicate` and `late`."""
    capability: str = ""
    """What is not served meanwhile, for `unload`."""
    every: float = 0.0
    """Over 0: again and again, so many seconds apart."""


@attrs.frozen
class Scenario:
    """All that a run is made from. The same scenario gives the same run."""

    name: str
    groups: tuple[GroupSpec, ...]
    traffic: tuple[TrafficSpec, ...]
    faults: tuple[FaultSpec, ...] = ()
    seed: int = 1
    requests: int = 1000
    """In all."""
    latency: float = 0.0005
    """Seconds that a message takes."""
    jitter: float = 0.5
    """It takes up to this fraction longer, at random."""
    terms: LeaseTerms = attrs.field(factory=LeaseTerms)
    demand: DemandTerms = attrs.field(factory=DemandTerms)


def load(path: Path) -> Scenario:
    """The scenario in a file; raises `ScenarioError`, also for a file that can't be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path} can't be read: {error}") from None
    return parse(text, path.parent)


def parse(text: str, folder: Path = Path()) -> Scenario:
    """The scenario that `text` says. folder: where the files lie that it names."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"not TOML: {error}") from None
    table = _Table("", values)
    network, lease = table.table("network"), table.table("lease")
    scenario = Scenario(
        name=table.text("name"),
        seed=table.whole("seed", 1),
        requests=table.whole("requests", 1000, least=1, most=10_000_000),
        groups=tuple(_group(each) for each in table.tables("replicas")),
        traffic=tuple(_traffic(each, folder) for each in table.tables("traffic")),
        faults=tuple(_fault(each) for each in table.tables("faults")),
        latency=network.number("latency", 0.0005, most=10.0),
        jitter=network.number("jitter", 0.5, most=100.0),
        terms=_terms(lease),
        demand=_demand(table.table("demand")),
    )
    for each in (network, lease, table):
        each.done()
    _check(scenario)
    return scenario


def _check(scenario: Scenario) -> None:
    """What no field shows by itself."""
    if not scenario.groups:
        raise ScenarioError("replicas: there are none")
    if not scenario.traffic:
        raise ScenarioError("traffic: there is none")
    ids = [id for group in scenario.groups for id in group.ids]
    if len(set(ids)) < len(ids):
        raise ScenarioError("replicas: two have one name")
    for number, fault in enumerate(scenario.faults):
        if fault.replica != "*" and fault.replica not in ids:
            raise ScenarioError(f"faults[{number}].replica: there is no {fault.replica!r}")
        if fault.kind == "unload" and not fault.capability:
            raise ScenarioError(f"faults[{number}].capability: missing")
        if fault.every and fault.every <= fault.duration:
            raise ScenarioError(f"faults[{number}].every: not longer than its duration")


def _group(table: _Table) -> GroupSpec:
    offers = tuple(_offer(each) for each in table.tables("offers"))
    group = GroupSpec(table.text("name"), table.whole("count", 1, least=1, most=10_000), offers)
    if not offers:
        raise ScenarioError(f"{table.path}offers: there are none")
    if len({offer.capability.name for offer in offers}) < len(offers):
        raise ScenarioError(f"{table.path}offers: two of one capability")
    table.done()
    return group


def _offer(table: _Table) -> OfferSpec:
    offer = OfferSpec(
        capability=table.capability("capability"),
        slots=table.whole("slots", 8, least=1, most=100_000),
        queue=table.whole("queue", 64, most=1_000_000),
        block_time=table.number("block_time", 0.0),
        cache=table.whole("cache", 4096, most=10_000_000),
        speed=table.number("speed", 1.0, least=1e-6),
        on_demand=table.flag("on_demand", False),
        load_time=table.number("load_time", 5.0),
        resumable=table.flag("resumable", False),
    )
    table.done()
    return offer


def _traffic(table: _Table, folder: Path) -> TrafficSpec:
    kind = table.one_of("kind", TRACES)
    traffic = TrafficSpec(
        need=table.capability("capability"),
        kind=kind,
        rate=0.0 if kind == "file" else table.number("rate", least=1e-6),
        service=table.number("service", 0.1, least=1e-9),
        answers=table.whole("answers", 1, least=1, most=10_000),
        spread=table.one_of("spread", ("exponential", "constant"), "exponential"),
        deadline=table.number("deadline", math.inf, least=1e-6),
        start=table.number("start", 0.0),
        direct=table.number("direct", 0.0, most=1.0),
        cancelled=table.number("cancelled", 0.0, most=1.0),
        period=table.number("period", 60.0, least=1e-3),
        factor=table.number("factor", 2.0 if kind == "diurnal" else 4.0, least=1.0),
        turns=table.whole("turns", 5, least=1, most=10_000),
        think=table.number("think", 5.0),
        blocks=table.whole("blocks", 8, most=1024),
        systems=table.whole("systems", 4, least=1),
        system_blocks=table.whole("system_blocks", 16, most=1024),
        sticky=table.flag("sticky", False),
        file=folder / table.text("file") if kind == "file" else None,
    )
    if kind == "diurnal" and traffic.factor > 2:
        raise ScenarioError(f"{table.path}factor: {traffic.factor:g}; a day's peak is at most 2")
    table.done()
    return traffic


def _fault(table: _Table) -> FaultSpec:
    kind = table.one_of("kind", FAULTS)
    fault = FaultSpec(
        kind=kind,
        replica=table.text("replica", "*"),
        at=table.number("at"),
        duration=table.number("duration", least=1e-6),
        factor=table.number("factor", 5.0),
        probability=table.number("probability", 0.2, most=1.0),
        capability=table.text("capability", ""),
        every=table.number("every", 0.0),
    )
    table.done()
    return fault


def _terms(table: _Table) -> LeaseTerms:
    default = LeaseTerms()
    lease = table.number("lease", default.lease, least=0.01)
    interval = table.number("interval", default.interval, least=0.01)
    grace = table.number("grace", default.grace)
    try:
        return LeaseTerms(lease, interval, grace)
    except ValueError as error:
        raise ScenarioError(f"{table.path[:-1]}: {error}") from None


def _demand(table: _Table) -> DemandTerms:
    default = DemandTerms()
    demand = DemandTerms(
        starved=table.number("starved", default.starved),
        patience=table.number("patience", default.patience),
        wanted=table.number("wanted", default.wanted),
        idle=table.number("idle", default.idle),
        cooldown=table.number("cooldown", default.cooldown),
        room=table.whole("room", default.room),
    )
    table.done()
    return demand


_REQUIRED: Any = object()


class _Table:
    """A TOML table whose fields are taken one by one; what is left in the end is a mistake."""

    def __init__(self, path: str, values: Mapping[str, Any]) -> None:
        """path: what its fields' names begin with in errors, such as `lease.`."""
        self.path = path
        self._left = dict(values)

    def done(self) -> None:
        """All that is known has been taken."""
        for name in self._left:
            raise ScenarioError(f"{self.path}{name}: there is no such field")

    def text(self, name: str, default: str = _REQUIRED) -> str:
        return self._take(name, str, "text", default)

    def flag(self, name: str, default: bool) -> bool:
        return self._take(name, bool, "true or false", default)

    def whole(self, name: str, default: int, *, least: int = 0, most: int = 1 << 32) -> int:
        value = self._take(name, int, "a whole number", default)
        return self._within(name, value, least, most)

    def number(
        self, name: str, default: float = _REQUIRED, *, least: float = 0.0, most: float = 1e9
    ) -> float:
        if name not in self._left and default is not _REQUIRED:
            return default
        value = float(self._take(name, (int, float), "a number", default))
        return self._within(name, value, least, most)

    def one_of(self, name: str, choices: tuple[str, ...], default: str = _REQUIRED) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise ScenarioError(f"{self.path}{name}: {value!r} is none of {', '.join(choices)}")
        return value

    def capability(self, name: str) -> Capability:
        """`decode`, or `{name = "decode", max_context = 8192}`."""
        value = self._take(name, (str, dict), "a name, or a table with one", _REQUIRED)
        fields: dict[str, Attribute] = {"name": value} if isinstance(value, str) else dict(value)
        try:
            return Capability(str(fields.pop("name", "")), fields)
        except InvalidArgument as error:
            raise ScenarioError(f"{self.path}{name}: {error.message}") from None

    def table(self, name: str) -> _Table:
        return _Table(f"{self.path}{name}.", self._take(name, dict, "a table", {}))

    def tables(self, name: str) -> list[_Table]:
        values: list[Any] = self._take(name, list, "a list of tables", [])
        if not all(isinstance(value, dict) for value in values):
            raise ScenarioError(f"{self.path}{name}: not a list of tables")
        return [_Table(f"{self.path}{name}[{i}].", value) for i, value in enumerate(values)]

    def _take(self, name: str, kind: Any, words: str, default: T) -> T:
        value: T = self._left.pop(name, default)
        if value is _REQUIRED:
            raise ScenarioError(f"{self.path}{name}: missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ScenarioError(f"{self.path}{name}: {value!r} is not {words}")
        return value

    def _within(self, name: str, value: T, least: float, most: float) -> T:
        if not least <= value <= most:  # type: ignore[operator]
            raise ScenarioError(f"{self.path}{name}: {value} is not from {least:g} to {most:g}")
        return value
