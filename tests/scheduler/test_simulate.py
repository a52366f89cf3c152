"""The fleet in simulation: the product's own parts under a clock that jumps."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest
from anyserve_scheduler.fleet import ReplicaState
from anyserve_scheduler.routing import POLICIES, Policy, Router
from anyserve_scheduler.simulate import Result, Scenario, load, parse, run
from anyserve_scheduler.simulate.__main__ import main
from anyserve_scheduler.simulate.attachment import Attachment
from anyserve_scheduler.simulate.ledger import Ledger
from anyserve_scheduler.simulate.network import Network
from anyserve_scheduler.simulate.policies import policy_of
from anyserve_scheduler.simulate.process import Process

from anyserve.errors import AnyServeError, Unavailable
from anyserve.transport.rpc import Metadata

SCENARIOS = Path(__file__).parents[2] / "examples" / "scenarios"

QUIET = """
name = "quiet"
requests = 400
[[replicas]]
name = "d"
count = 3
[[replicas.offers]]
capability = "decode"
slots = 2
queue = 2
[[traffic]]
capability = "decode"
kind = "poisson"
rate = 10
deadline = 5
"""


def quiet(more: str = "", **changes: object) -> Scenario:
    return attrs.evolve(parse(QUIET + more), **changes)


def total(result: Result) -> int:
    return sum(result.outcomes.values())


def test_a_fleet_without_faults_answers_all_requests() -> None:
    result = run(quiet())
    assert result.outcomes == {"answered": 400}
    assert not result.violations
    assert result.wait_p50 < 0.01


def test_the_same_scenario_gives_the_same_run_and_another_seed_another() -> None:
    scenario = attrs.evolve(load(SCENARIOS / "faults.toml"), requests=1500)
    first = run(scenario)
    assert run(scenario).digest == first.digest
    assert run(attrs.evolve(scenario, seed=2)).digest != first.digest


@pytest.mark.parametrize("policy", ["prefix", "least_wait", "power_of_two"])
def test_under_every_fault_each_request_has_one_outcome(policy: str) -> None:
    result = run(attrs.evolve(load(SCENARIOS / "faults.toml"), requests=4000), policy)
    assert not result.violations
    assert total(result) == 4000
    assert result.delegated > 0
    assert result.outcomes["answered"] > 3000


def test_requests_for_a_full_replica_are_delegated() -> None:
    scenario = quiet()
    (traffic,) = scenario.traffic
    crowded = attrs.evolve(traffic, direct=1.0, rate=45.0)
    result = run(attrs.evolve(scenario, traffic=(crowded,)))
    assert result.delegated > 0
    assert not result.violations


def test_conversations_go_where_their_prompts_are_cached() -> None:
    scenario = attrs.evolve(load(SCENARIOS / "conversations.toml"), requests=3000)
    affine, blind = run(scenario, "prefix"), run(scenario, "least_wait")
    assert affine.hit_rate > blind.hit_rate + 0.1
    assert affine.time_p50 < blind.time_p50


def test_a_hung_replica_lets_no_deadline_pass_at_the_scheduler() -> None:
    fault = '[[faults]]\nkind = "hang"\nreplica = "d-0"\nat = 5\nduration = 20\n'
    result = run(quiet(fault))
    assert not result.violations
    assert result.outcomes["deadline_exceeded"] > 0


def test_what_a_hung_replica_has_ends_with_its_lease() -> None:
    fault = '[[faults]]\nkind = "hang"\nreplica = "d-0"\nat = 5\nduration = 60\n'
    (traffic,) = quiet().traffic
    endless = attrs.evolve(traffic, deadline=math.inf)
    result = run(quiet(fault, traffic=(endless,), requests=200))
    assert not result.violations
    assert result.outcomes["unavailable"] > 0
    assert result.duration < 30


def test_a_crash_ends_what_ran_there_as_unavailable_and_nothing_else() -> None:
    fault = '[[faults]]\nkind = "crash"\nat = 1\nduration = 1\nevery = 2\n'
    (traffic,) = quiet().traffic
    result = run(quiet(fault, traffic=(attrs.evolve(traffic, service=0.2),)))
    assert not result.violations
    assert result.outcomes["unavailable"] > 0
    assert total(result) == 400


def test_a_scheduler_that_is_killed_lets_down_what_it_has_and_no_direct_request() -> None:
    fault = '[[faults]]\nkind = "scheduler"\nat = 3\nduration = 4\nevery = 12\n'
    (traffic,) = quiet().traffic
    busy = attrs.evolve(traffic, service=0.3)
    direct = run(quiet(fault, traffic=(attrs.evolve(busy, direct=1.0, rate=5.0),)))
    assert not direct.violations
    assert "unavailable" not in direct.outcomes
    through = run(quiet(fault, traffic=(busy,)))
    assert not through.violations
    assert through.outcomes["unavailable"] > 0
    assert through.outcomes["answered"] > 0.4 * 400


def test_a_relayed_request_ends_when_the_scheduler_is_killed() -> None:
    fault = '[[faults]]\nkind = "scheduler"\nat = 3\nduration = 1\nevery = 4\n'
    (traffic,) = quiet().traffic
    crowded = attrs.evolve(traffic, direct=1.0, rate=20.0, service=0.3)
    result = run(quiet(fault, traffic=(crowded,)))
    assert not result.violations
    assert result.delegated > 0
    assert result.outcomes["unavailable"] > 0


def test_a_replica_that_does_not_come_back_to_a_new_scheduler_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Attachment, "_again", lambda self: None)
    fault = '[[faults]]\nkind = "scheduler"\nat = 3\nduration = 1\n'
    result = run(quiet(fault))
    assert any("was not heard in the first lease" in what for what in result.violations)


def test_a_fault_in_the_midst_of_a_stream_ends_it_once_and_it_is_not_resumed() -> None:
    fault = '[[faults]]\nkind = "crash"\nat = 1\nduration = 1\nevery = 2\n'
    (traffic,) = quiet().traffic
    streams = attrs.evolve(traffic, answers=20, service=0.4, direct=0.3)
    result = run(quiet(fault, traffic=(streams,)))
    assert not result.violations
    assert result.outcomes["unavailable"] > 0
    assert result.outcomes["answered"] > 200


def test_a_stream_that_is_resumed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyserve_scheduler.gateway.forwarding import Forwarding

    def on_end(self: Forwarding, error: AnyServeError | None, metadata: Metadata) -> None:
        if isinstance(error, Unavailable):
            self._go_on(error.message)
        else:
            self._end(error)

    monkeypatch.setattr(Forwarding, "on_end", on_end)
    monkeypatch.setattr(Forwarding, "on_messages", lambda self, m: self._client.on_messages(m))
    fault = '[[faults]]\nkind = "crash"\nat = 1\nduration = 1\nevery = 2\n'
    (traffic,) = quiet().traffic
    result = run(quiet(fault, traffic=(attrs.evolve(traffic, answers=20, service=0.4),)))
    assert any("was begun twice" in what for what in result.violations)
    assert any("was given message 0 after" in what for what in result.violations)


def resumable(**changes: object) -> Scenario:
    """Streams of 20 tokens, and a crash every other second."""
    fault = '[[faults]]\nkind = "crash"\nat = 1\nduration = 1\nevery = 2\n'
    scenario = quiet(fault)
    (traffic,), (group,) = scenario.traffic, scenario.groups
    (offer,) = group.offers
    group = attrs.evolve(group, offers=(attrs.evolve(offer, resumable=True, slots=8),))
    traffic = attrs.evolve(traffic, **{"answers": 20, "service": 0.4, **changes})
    return attrs.evolve(scenario, groups=(group,), traffic=(traffic,))


@pytest.mark.parametrize("answers", [20, 1])
def test_what_is_resumable_survives_every_crash(answers: int) -> None:
    result = run(resumable(answers=answers))
    assert result.outcomes == {"answered": 400}
    assert result.resumed > 10
    assert not result.violations


def test_what_was_delegated_does_not_survive_and_has_one_outcome() -> None:
    result = run(resumable(direct=1.0, rate=60.0))
    assert not result.violations
    assert total(result) == 400
    assert result.delegated > 0
    assert result.outcomes["unavailable"] > 0


def test_a_token_that_comes_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyserve_scheduler.gateway import resuming

    def short(messages: list[bytes]) -> list[int]:
        return list(range(len(messages) - 1))

    monkeypatch.setattr(resuming, "_token_ids", short)
    assert any("was given message" in what for what in run(resumable()).violations)


def test_replicas_that_drain_in_turn_fail_no_request() -> None:
    faults = "".join(
        f'[[faults]]\nkind = "drain"\nreplica = "d-{turn}"\n'
        f"at = {3 + 4 * turn}\nduration = 2\nevery = 12\n"
        for turn in range(3)
    )
    (traffic,) = quiet().traffic
    result = run(quiet(faults, traffic=(attrs.evolve(traffic, answers=4, service=0.2),)))
    assert result.outcomes == {"answered": 400}
    assert not result.violations


def test_a_request_for_a_replica_that_drains_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyserve_scheduler import registry

    monkeypatch.setattr(registry, "_state", lambda draining: ReplicaState.LIVE)
    fault = '[[faults]]\nkind = "drain"\nreplica = "d-0"\nat = 3\nduration = 1\n'
    (traffic,) = quiet().traffic
    result = run(quiet(fault, traffic=(attrs.evolve(traffic, service=3.0, rate=2.0),)))
    assert any("which said that it drains" in what for what in result.violations)


def test_a_replica_that_drains_and_leaves_too_soon_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(self: Process) -> None:
        self.replica.crash()

    monkeypatch.setattr(Process, "drain", crash)
    monkeypatch.setattr(Ledger, "lose", lambda self, body: None)
    fault = '[[faults]]\nkind = "drain"\nat = 1\nduration = 1\nevery = 2\n'
    (traffic,) = quiet().traffic
    result = run(quiet(fault, traffic=(attrs.evolve(traffic, service=0.4),)))
    assert any("was begun and became unavailable" in what for what in result.violations)


def test_lost_late_and_repeated_reports_cost_no_request() -> None:
    faults = "".join(
        f'[[faults]]\nkind = "{kind}"\nreplica = "d-0"\nat = 0\nduration = 30\n'
        for kind in ("drop", "duplicate", "late")
    )
    result = run(quiet(faults))
    assert result.outcomes == {"answered": 400}
    assert not result.violations


def test_capabilities_on_demand_are_loaded_and_moved_as_they_are_wanted() -> None:
    result = run(load(SCENARIOS / "on_demand.toml"))
    assert not result.violations
    assert result.outcomes["answered"] > 0.9 * result.requests
    assert result.unloads > 0
    assert result.loads <= 3 + 8, "they flap: three replicas, and four turns of two at most"


def test_a_slot_that_is_not_given_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "ended", lambda self, sent, now, *, served: None)
    monkeypatch.setattr(
        "anyserve_scheduler.simulate.measured.MeasuredRouter.ended",
        lambda self, sent, now, *, served: None,
    )
    result = run(quiet(requests=5))
    assert any("in its router's book" in what for what in result.violations)


def test_a_second_delegation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyserve_scheduler.delegation.Permit.consume", lambda self, handback: None)
    scenario = attrs.evolve(load(SCENARIOS / "faults.toml"), requests=3000)
    assert any("delegated more than once" in what for what in run(scenario).violations)


def test_an_answer_that_comes_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyserve_scheduler.gateway.forwarding import Forwarding

    end = Forwarding._end

    def twice(self: Forwarding, error: object) -> None:
        end(self, error)  # type: ignore[arg-type]
        self._client.on_end(None)

    monkeypatch.setattr(Forwarding, "_end", twice)
    assert any("ended twice" in what for what in run(quiet(requests=5)).violations)


def test_a_message_from_replica_to_replica_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Network.send

    def astray(self: Network, source: str, target: str, *values: object, **more: float) -> None:
        if target == "the scheduler":
            send(self, source, "d-0", lambda *_: None)
        send(self, source, target, *values, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "send", astray)
    result = run(quiet(requests=5))
    assert any("d-1 sent a message to d-0" in what for what in result.violations)


def test_a_trace_file_is_followed_to_the_letter(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("# at, service\n0.5,0.2\n0.75,0.1\n3\n")
    text = QUIET.replace('kind = "poisson"\nrate = 10', 'kind = "file"\nfile = "trace.csv"')
    result = run(parse(text, tmp_path))
    assert result.outcomes == {"answered": 3}
    assert result.duration > 3


def test_the_command_line_compares_policies_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    scenario = tmp_path / "quiet.toml"
    scenario.write_text(QUIET)
    assert main([str(scenario), "--policy", "prefix,least_wait", "--html", str(page)]) == 0
    head = capsys.readouterr().out.splitlines()[2]
    assert head.split() == ["prefix", "least_wait"]
    text = page.read_text()
    assert text.count("<polyline") == 4
    assert "http" not in text


def test_a_policy_may_have_values_of_its_own() -> None:
    assert policy_of("prefix") == POLICIES["prefix"]
    assert policy_of("least_wait:session_factor=3") == attrs.evolve(
        POLICIES["least_wait"], session_factor=3.0
    )
    assert policy_of("prefix:fresh=inf:load_weight=0.5") == Policy(fresh=math.inf, load_weight=0.5)


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ("random", "'random' is none of least_wait"),
        ("prefix:colour=1", "'colour' is none of fresh"),
        ("prefix:fresh", "fresh: '' is not a number"),
        ("prefix:fresh=-1", "fresh: '-1' is not a number"),
        ("prefix:fresh=nan", "fresh: 'nan' is not a number"),
    ],
)
def test_a_policy_that_makes_no_sense_is_named(
    policy: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["some.toml", "--policy", f"prefix,{policy}"])
    assert error in capsys.readouterr().err


def test_a_scenario_that_makes_no_sense_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text(QUIET.replace("slots = 2", 'slots = "two"'))
    assert main([str(scenario)]) == 2
    error = capsys.readouterr().err
    assert "replicas[0].offers[0].slots: 'two' is not a whole number" in error
    assert error.count("\n") == 1
