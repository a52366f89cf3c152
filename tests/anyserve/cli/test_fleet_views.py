"""What `anyserve fleet` shows of a fleet."""

from __future__ import annotations

import json

import pytest
from anyserve_protos.anyserve import v1 as pb

from anyserve.cli.fleet_views import as_json, table

FLEET = pb.FleetReply(
    version="0.1",
    replicas=[
        pb.FleetReplica(
            replica_id="box-8001",
            epoch=7,
            address="192.168.100.200:8001",
            state="live",
            attached=True,
            silent_seconds=0.42,
            offers=[
                pb.Offer(
                    name="decode.heavy",
                    attributes={
                        "model": pb.Attribute(text="a-model-with-quite-a-long-name-70b-instruct"),
                        "max_context": pb.Attribute(integer=65536),
                        "temperature_range": pb.Attribute(text="from nothing to everything"),
                    },
                    usage=pb.Load(
                        running=12,
                        queued=1024,
                        slots=64,
                        expected_wait_seconds=0.25,
                        tokens_per_second=1234.5,
                    ),
                ),
                pb.Offer(name="embedding", usage=pb.Load(slots=64), loadable=True),
            ],
            delegations=31,
            last_error="cannot connect to 192.168.100.200:8001: " + "connection refused, " * 30,
        ),
        pb.FleetReplica(replica_id="box-8002", address="b:1", state="suspect", silent_seconds=3),
    ],
)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_the_terminal_whatever_is_in_it(width: int) -> None:
    assert max(map(len, table(FLEET, width))) <= width


def test_each_replica_has_its_offers_and_their_load_below_it() -> None:
    text = table(FLEET, 100)
    assert text[0] == "anyserve 0.1, 2 replicas"
    assert text[1].split() == ["running", "queued", "slots", "wait", "tokens/s"]
    assert text[2] == ("box-8001: live, at 192.168.100.200:8001, heard 0.4 s ago, handed back 31")
    assert text[3].startswith("  decode.heavy[max_context=65536, model=a-model-")
    assert text[3].split()[-6:] == ["12", "1024", "64", "250", "ms", "1234.5"]
    assert text[4].startswith("  embedding (not loaded) ")
    assert text[5].startswith("  last error: cannot connect to 192.168.100.200:8001: connection")
    assert text[7].endswith(" …")
    assert text[8:] == ["box-8002: suspect, no link, at b:1, heard 3.0 s ago", "  offers nothing"]


def test_figures_of_all_replicas_stand_under_one_another() -> None:
    lines = table(FLEET, 100)
    ends = {line.rindex("64") for line in lines[3:5]}
    assert len(ends) == 1
    assert lines[1].index("slots") + len("slots") == ends.pop() + len("64")


def test_a_wide_terminal_shows_names_whole() -> None:
    assert "temperature_range=from nothing to everything]" in "\n".join(table(FLEET, 200))


def test_a_long_wait_is_told_in_seconds() -> None:
    offer = pb.Offer(name="decode", usage=pb.Load(expected_wait_seconds=3600.0))
    replica = pb.FleetReplica(replica_id="a", offers=[offer])
    assert "  3600 s" in table(pb.FleetReply(replicas=[replica]), 100)[3]


def test_what_is_on_demand_says_how_far_it_is() -> None:
    offers = [
        pb.Offer(name="rank", on_demand=True),
        pb.Offer(name="sum", on_demand=True, loadable=True, loading=True),
        pb.Offer(name="vote", on_demand=True, loadable=True, failures=2, failure="no memory"),
    ]
    lines = table(pb.FleetReply(replicas=[pb.FleetReplica(offers=offers)]), 100)
    assert [line.split("  ")[1] for line in lines[3:6]] == [
        "rank",
        "sum (loading)",
        "vote (not loaded)",
    ]
    assert lines[6] == "  vote could not be loaded: no memory"


def test_registrations_that_were_refused_come_last() -> None:
    fleet = pb.FleetReply(refused=3, last_refusal="b: it is over")
    assert table(fleet, 100)[-1] == "3 registrations refused, the last one of b: it is over"


def test_json_has_all_of_it_with_plain_values() -> None:
    read = json.loads(json.dumps(as_json(FLEET)))
    first, second = read["replicas"]
    assert (first["epoch"], first["delegations"], first["attached"]) == (7, 31, True)
    assert first["offers"][0]["attributes"]["max_context"] == 65536
    assert first["offers"][0]["tokens_per_second"] == 1234.5
    assert first["offers"][1]["loadable"]
    assert second["offers"] == []
