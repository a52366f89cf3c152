"""`anyserve explain` and its RPC: where a request would go, in words."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.capability import Capability
from anyserve.errors import InvalidArgument
from anyserve.load import Load
from anyserve.offers import Offer
from anyserve.replica.reports import Standing

EXPLAIN = "/anyserve.v1.Scheduler/Explain"


async def explained(desk, **fields) -> pb.ExplainReply:
    return await desk.unary(EXPLAIN, pb.ExplainRequest(**fields), pb.ExplainReply)


async def test_a_need_that_a_replica_serves_names_it_and_why(desk, join, autojump_clock) -> None:
    join("one", "decode.heavy")
    await trio.sleep(1)

    reply = await explained(desk, name="decode", budget_seconds=5.0, session="mine")

    assert (reply.replica_id, reply.capability) == ("one", "decode.heavy version 1")
    assert reply.reasons[0].startswith("decode goes to one for decode.heavy version 1: ")
    assert json.loads(reply.json)["outcome"]["replica"] == "one"


async def test_a_need_may_have_a_version(desk, join, autojump_clock) -> None:
    for id, version in (("one", "1"), ("two", "2")):
        capability = Capability("decode", {}, version)
        standing = Standing({"decode": Offer(capability)}, {"decode": Load(0, 0, 4, 0.0)}, False)
        join(id, "decode").standing = standing
    await trio.sleep(1)

    for id, version in (("one", "1"), ("two", "2")):
        reply = await explained(desk, name="decode", version=version)
        assert (reply.replica_id, reply.capability) == (id, f"decode version {version}")
        assert reply.reasons[0].startswith(f"decode version {version} goes to {id} ")
    reply = await explained(desk, name="decode", version="3")
    assert (reply.replica_id, "version 3" in reply.reasons[0]) == ("", True)
    with pytest.raises(InvalidArgument, match="version 'newest'"):
        await explained(desk, name="decode", version="newest")


async def test_a_need_that_nothing_serves_says_what_there_is(desk, join, autojump_clock) -> None:
    join("one", "embedding")
    await trio.sleep(1)

    reply = await explained(
        desk, name="embedding", attributes={"model": pb.Attribute(text="other")}
    )

    assert reply.replica_id == ""
    assert "NOT_FOUND" in reply.reasons[0]
    assert "embedding has no model" in reply.reasons[0]


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf")])
async def test_a_budget_that_is_no_time_is_refused(desk, budget: float) -> None:
    with pytest.raises(InvalidArgument, match="budget_seconds"):
        await explained(desk, name="decode", budget_seconds=budget)


async def test_a_need_that_can_not_be_is_refused(desk) -> None:
    with pytest.raises(InvalidArgument):
        await explained(desk, name="no such name")


def run_explain(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anyserve", "explain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_command_prints_where_a_request_would_go_and_ends_with_1_where_nowhere(
    start_scheduler,
) -> None:
    scheduler = start_scheduler()

    done = run_explain(scheduler.address, "decode", "--within", "2", "max_context=4096")

    assert done.returncode == 1
    assert done.stdout.startswith("decode[max_context=4096] goes nowhere (NOT_FOUND): ")

    done = run_explain(scheduler.address, "decode", "--version", "7")

    assert done.returncode == 1
    assert done.stdout.startswith("decode version 7 goes nowhere (NOT_FOUND): ")


def test_the_command_refuses_what_is_no_attribute() -> None:
    done = run_explain("127.0.0.1:1", "decode", "nonsense")

    assert done.returncode == 2
    assert "'nonsense' is not NAME=VALUE" in done.stderr
