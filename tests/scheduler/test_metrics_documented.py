"""What is written of metrics, and the dashboard, against real scrapes of a fleet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parents[2] / "docs"
NAME = re.compile(r"\b(?:anyserve|process|python)_\w+")
SELECTED = re.compile(r"([a-zA-Z_:][\w:]*)\{")


def names_in(text: str) -> set[str]:
    """The names of families and of their samples."""
    return {
        name
        for family in text_string_to_metric_families(text)
        for name in (family.name, *(sample.name for sample in family.samples))
    }


@pytest.fixture
def names(start_scheduler: Any, start_replica: Any, ask_http: Any, eventually: Any) -> set[str]:
    def scrape(address: str) -> str:
        status, text = ask_http(address, "/metrics")
        assert status == 200
        return str(text)

    scheduler = start_scheduler(0, "--http", "0")
    options = ("--app", "behaviours:app", "--http", "0", "--scheduler", scheduler.address)
    replica = start_replica(*options)
    eventually(lambda: "anyserve_scheduler_replica_slots{" in scrape(scheduler.http))
    return names_in(scrape(scheduler.http)) | names_in(scrape(replica.http))


def expressions(node: Any) -> Iterator[str]:
    """All of the dashboard's."""
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_and_the_table_know_the_metrics_that_there_are(names: set[str]) -> None:
    dashboard = json.loads((DOCS / "grafana" / "anyserve.json").read_text())
    shown = set()
    for expression in expressions(dashboard):
        selected = SELECTED.findall(expression)
        assert selected, expression
        assert set(selected) == set(NAME.findall(expression)), expression
        shown.update(selected)
    assert shown - names == set()
    assert len(shown) > 30
    instances = dashboard["templating"]["list"][1]["query"]["query"]
    assert set(NAME.findall(instances)) - names == set()

    text = (DOCS / "metrics.md").read_text()
    told = {name for name in NAME.findall(text) if not name.endswith("_")}
    assert told - names == set()
    ours = {name for name in names if name.startswith("anyserve_")}
    parts = re.compile("_(bucket|count|sum)$")
    untold = {name for name in ours if not parts.search(name)} - told
    # A counter is a family whose one sample has `_total` behind its name.
    assert {name for name in untold if f"{name}_total" not in told} == set()
