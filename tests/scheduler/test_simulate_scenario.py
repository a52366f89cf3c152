"""Scenarios: strict, and their errors name the field."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import attrs
import pytest
from anyserve_scheduler.simulate import Scenario, ScenarioError, load, parse
from anyserve_scheduler.simulate.arrivals import arrivals

SCENARIOS = Path(__file__).parents[2] / "examples" / "scenarios"
GOOD = """
name = "good"
[[replicas]]
name = "d"
[[replicas.offers]]
capability = "decode"
[[traffic]]
capability = "decode"
kind = "poisson"
rate = 50
"""


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_scenarios(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('name = "good"', "", "name: missing"),
        ('name = "good"', 'name = "good"\ncolour = 1', "colour: there is no such field"),
        ('name = "good"', 'name = "good"\nseed = true', "seed: True is not a whole number"),
        ('name = "good"', 'name = "good"\nrequests = 0', "requests: 0 is not from 1"),
        ('name = "good"', 'name = "good"\nnetwork = 1', "network: 1 is not a table"),
        ('name = "good"', 'name = "good"\nlease.lease = 1', "lease: a lease is longer"),
        ('name = "d"', 'name = "d"\ncount = 0', r"replicas\[0\].count: 0 is not from 1"),
        ('name = "d"', 'name = "d"\nslots = 1', r"replicas\[0\].slots: there is no such"),
        ("rate = 50", "", r"traffic\[0\].rate: missing"),
        ("rate = 50", "rate = nan", r"traffic\[0\].rate: nan is not from"),
        ("rate = 50", "rate = 50\ndirect = 2", r"traffic\[0\].direct: 2.0 is not from 0 to 1"),
        ('"poisson"', '"gauss"', r"traffic\[0\].kind: 'gauss' is none of poisson"),
        ('"poisson"', '"file"', r"traffic\[0\].file: missing"),
        ('"poisson"', '"diurnal"\nfactor = 3', r"traffic\[0\].factor: 3; a day's peak"),
        (
            'capability = "decode"\nkind',
            'capability = "a b"\nkind',
            r"traffic\[0\].capability: model name 'a b'",
        ),
    ],
)
def test_what_makes_no_sense_is_named(old: str, new: str, error: str) -> None:
    assert old in GOOD
    with pytest.raises(ScenarioError, match=f"^{error}"):
        parse(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ('kind = "crash"\nat = 1', "duration: missing"),
        ('kind = "crash"\nat = 1\nduration = 1\nreplica = "x"', "replica: there is no 'x'"),
        ('kind = "unload"\nat = 1\nduration = 1', "capability: missing"),
        ('kind = "crash"\nat = 1\nduration = 2\nevery = 1', "every: not longer"),
    ],
)
def test_a_fault_that_makes_no_sense_is_named(fault: str, error: str) -> None:
    with pytest.raises(ScenarioError, match=rf"^faults\[0\]\.{error}"):
        parse(f"{GOOD}[[faults]]\n{fault}")


@pytest.mark.parametrize("text", ["1,x\n", "2\n1\n", "-1\n", "1,2,3\n", "inf\n"])
def test_a_trace_that_makes_no_sense_is_named_by_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    scenario = parse(GOOD.replace('"poisson"\nrate = 50', '"file"\nfile = "t.csv"'), tmp_path)
    with pytest.raises(ScenarioError, match=r"t\.csv, line"):
        list(arrivals(scenario))


def of_kind(kind: str, **changes: float) -> Scenario:
    scenario = parse(GOOD.replace("poisson", kind))
    traffic = attrs.evolve(scenario.traffic[0], **changes)
    return attrs.evolve(scenario, traffic=(traffic,), requests=20_000)


@pytest.mark.parametrize(("kind", "factor"), [("poisson", 1.0), ("bursts", 4.0), ("diurnal", 2.0)])
def test_a_trace_has_the_mean_rate_that_it_says(kind: str, factor: float) -> None:
    times = [arrival.at for arrival in arrivals(of_kind(kind, factor=factor, period=10.0))]
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(50, rel=0.05)


def test_bursts_come_in_the_first_part_of_their_period() -> None:
    scenario = of_kind("bursts", factor=4.0, period=10.0)
    assert all(arrival.at % 10 <= 2.5 for arrival in arrivals(scenario))


def test_each_turn_of_a_conversation_begins_with_the_one_before() -> None:
    scenario = of_kind("conversations", turns=3)
    scenario = attrs.evolve(scenario, traffic=(attrs.evolve(scenario.traffic[0], sticky=True),))
    last: dict[str, tuple[bytes, ...]] = {}
    for arrival in islice(arrivals(scenario), 500):
        assert arrival.session is not None
        before = last.get(arrival.session, ())
        assert arrival.blocks[: len(before)] == before
        assert len(arrival.blocks) > len(before)
        last[arrival.session] = arrival.blocks
