"""Tokens a second and time to first token of `decode`, beside what has the same engine in it.

By gRPC that is a bare loop, by OpenAI's API llama.cpp's own server, which is in the same wheel.
All compute with one thread, and may use both cores: the engine leaves one to everything else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from statistics import median
from typing import Any

import attrs
import trio

from anyserve.client import Client, open_client
from benchmarks import completions, proc, servers
from benchmarks.errors import CannotMeasure
from benchmarks.servers import Server
from benchmarks.tables import number, table
from benchmarks.texts import Order, Speed, Text, orders

TEXTS = {1: 4, 4: 8, 8: 16}
"""Texts of a block, by how many are in flight."""
BLOCKS = 2
"""Of a round: engines take turns often, since the machine's speed changes within seconds."""

Generate = Callable[[Sequence[Order], int], list[Text]]
"""Generates the texts, so many at once."""


@attrs.frozen(eq=False)
class Engine:
    """Something that generates texts."""

    name: str
    generate: Generate
    processes: Mapping[str, int]
    """Process ids by name."""

    def measure(self, orders: Sequence[Order], in_flight: int) -> Speed:
        """Have the texts generated, `in_flight` at once."""
        cpu, began = self._cpu_seconds(), time.monotonic()
        texts = self.generate(orders, in_flight)
        return Speed.of(texts, time.monotonic() - began, self._cpu_seconds() - cpu)

    def _cpu_seconds(self) -> float:
        return sum(map(proc.cpu_seconds, self.processes.values()))


Pairs = Mapping[str, tuple[Engine, Engine]]


def run(rounds: int) -> None:
    """Print the tables; all engines of a round are loaded at the same time, and work in turn."""
    speeds: dict[str, dict[tuple[int, str], list[Speed]]] = {}
    for turn in range(rounds):
        with _running() as pairs:
            for block in range(turn * BLOCKS, (turn + 1) * BLOCKS):
                print(f"block {block} of {rounds * BLOCKS}", file=sys.stderr)
                for api, in_flight, engine, speed in _block(pairs, block):
                    of_api = speeds.setdefault(api, {})
                    of_api.setdefault((in_flight, engine.name), []).append(speed)
    for of_api in speeds.values():
        _, other = sorted({name for _, name in of_api})  # AnyServe, and what it is held to
        rows = [
            [f"{in_flight} in flight", name, *speed_cells(runs, of_api[in_flight, other])]
            for (in_flight, name), runs in sorted(of_api.items())
        ]
        ratio = f"× {other}"
        heads = ["", "", "tokens/s", ratio, "CPU ms/token", ratio, "first token ms", "later"]
        print(table(heads, rows), end="\n\n")


@contextmanager
def _running() -> Iterator[Pairs]:
    """The engines of a round, by the API that they are asked by; the first of each is ours.

    Each round has new processes, since one may be some percent slower than another of the same
    program for all its life.
    """
    replica = servers.replica("--caps", "decode", "--http", "0", cores=servers.BOTH)
    with replica as server, _bare_loop() as bare, servers.llama() as llama:
        pairs = {
            "gRPC": (Engine(server.name, _through(server.address), server.processes), bare),
            "OpenAI": (_openai(server, server.http), _openai(llama, llama.address)),
        }
        for pair in pairs.values():
            for engine in pair:
                engine.generate(orders(2, seed=0), 1)
        yield pairs


def _block(pairs: Pairs, block: int) -> Iterator[tuple[str, int, Engine, Speed]]:
    """One turn of each: how fast it was, by API, texts in flight and engine."""
    for in_flight, count in TEXTS.items():
        for number_of_pair, (api, pair) in enumerate(pairs.items()):
            # Other prompts for each: the replica is in both, and remembers them.
            wanted = orders(count, seed=2 * block + number_of_pair + 1)
            for engine in pair if block % 2 else reversed(pair):
                yield api, in_flight, engine, engine.measure(wanted, in_flight)


def speed_cells(runs: Sequence[Speed], others: Sequence[Speed]) -> list[str]:
    """Medians, and those of the ratios to what the other one did in the same block."""
    both = list(zip(runs, others, strict=True))
    return [
        number(median(run.rate for run in runs)),
        f"{median(run.rate / other.rate for run, other in both):.3f}",
        number(median(run.cpu_ms for run in runs)),
        f"{median(run.cpu_ms / other.cpu_ms for run, other in both):.3f}",
        number(median(run.first_ms for run in runs)),
        number(median(run.first_ms - other.first_ms for run, other in both)),
    ]


def _openai(server: Server, address: str) -> Engine:
    """A server by OpenAI's API."""
    return Engine(server.name, partial(completions.generate, address, "decode"), server.processes)


def _through(address: str) -> Generate:
    """Through the replica at `address`, by one connection."""

    async def generate(orders: Sequence[Order], in_flight: int) -> list[Text]:
        texts: list[Text] = []
        left = iter(orders)
        async with open_client(address) as client, trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(_work, client, left, texts)
        return texts

    return lambda orders, in_flight: trio.run(generate, orders, in_flight)


async def _work(client: Client, left: Iterator[Order], texts: list[Text]) -> None:
    """Generate one text after the other until none is left."""
    for order in left:
        await trio.sleep(order.pause)
        values = {"stream": True, "max_tokens": order.max_tokens, "temperature": 0.0}
        began = time.monotonic()
        first: float | None = None
        tokens: Any = None
        responses = client.generate("decode", {"text_input": order.prompt}, values)
        async with aclosing(responses):
            async for response in responses:
                if first is None:
                    first = time.monotonic()
                tokens = response.outputs["num_output_tokens"]
        assert first is not None
        texts.append(Text(first - began, int(tokens[0])))


@contextmanager
def _bare_loop() -> Iterator[Engine]:
    """`benchmarks.bare_decode`."""
    with servers.child("-m", "benchmarks.bare_decode", cores=servers.BOTH) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def generate(orders: Sequence[Order], in_flight: int) -> list[Text]:
            fields = [attrs.astuple(order) for order in orders]
            questions.write(json.dumps([in_flight, *fields]) + "\n")
            questions.flush()
            return [Text(*values) for values in json.loads(answers.readline())]

        if answers.readline() != "ready\n":
            raise CannotMeasure("the bare loop did not start: see above")
        yield Engine("bare loop", generate, {"bare": process.pid})
