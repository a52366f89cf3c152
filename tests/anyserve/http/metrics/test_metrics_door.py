"""The door that a Prometheus scrapes, in the test's own loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from anyserve.histogram import Histogram
from anyserve.http.metrics.door import Metrics
from anyserve.http.metrics.families import counter, gauge, histogram, single


def families() -> Iterable[Metric]:
    fast, slow = Histogram(), Histogram()
    fast.observe(0.0002)
    slow.observe(1000)
    yield counter("taken", "Taken", {("a", 'b"\n'): 3}, ("x", "y"))
    yield gauge("level", "Level", single(-1.5))
    yield histogram("took_seconds", "Took", {"both": [fast, slow], "one": [fast]}, "which")


def request(*headers: str) -> bytes:
    lines = ["GET /metrics HTTP/1.1", "host: x", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def samples(text: str, parser: Any = parse) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *dict(sorted(sample.labels.items())).values()): sample.value
        for family in parser(text)
        for sample in family.samples
    }


async def test_what_is_counted_is_told_in_both_forms(open_server: Any) -> None:
    async with open_server({"GET /metrics": Metrics(families).scrape}) as live:
        client = await live.client()
        plain = await client.ask(request())
        accept = "accept: application/openmetrics-text;version=9,text/plain;version=0.0.4;q=0.5"
        opened = await client.ask(request(accept))
        head_only = request().replace(b"GET", b"HEAD", 1)
        await client.send(head_only)
        head = await client.answer(head=True)
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert opened.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert head.headers["content-length"] != "0"
    for found in (samples(plain.body.decode()), samples(opened.body.decode(), parse_open)):
        assert found["taken_total", "a", 'b"\n'] == 3
        assert found["level",] == -1.5
        assert found["took_seconds_bucket", "0.0001", "both"] == 0
        assert found["took_seconds_bucket", "0.00025", "both"] == 1
        assert found["took_seconds_bucket", "100.0", "both"] == 1
        assert found["took_seconds_bucket", "+Inf", "both"] == 2
        assert found["took_seconds_count", "both"] == 2
        assert found["took_seconds_sum", "both"] == 1000.0002
        assert found["took_seconds_count", "one"] == 1
        assert found["process_start_time_seconds",] > 0


async def test_scrapes_at_the_same_time_are_all_answered(open_server: Any) -> None:
    answers = []

    async def scrape(live: Any) -> None:
        client = await live.client()
        answers.append(await client.ask(request()))

    async with open_server({"GET /metrics": Metrics(families).scrape}) as live:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(scrape, live)
    assert len(answers) == 20
    for answer in answers:
        assert (answer.status, samples(answer.body.decode())["level",]) == (200, -1.5)
