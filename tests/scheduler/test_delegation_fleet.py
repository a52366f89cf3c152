"""Delegation between real replicas: a scheduler in this process, whose reports are slow to come."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from anyserve_protos import codec
from anyserve_protos import inference as pb
from anyserve_protos.anyserve import v1 as admin_pb
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig

from anyserve.admin.socket_path import socket_path
from anyserve.client import decode_response, encode_request
from anyserve.errors import (
    AnyServeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from anyserve.transport.trio_client import open_channel

SERVICE = "/inference.GRPCInferenceService/"


@attrs.define(eq=False)
class Twin:
    """One replica of the fleet."""

    live: Any
    id: str

    @property
    def pid(self) -> str:
        return str(self.live.process.pid)


@attrs.define(eq=False)
class Fleet:
    """A scheduler here, and its replicas."""

    scheduler: Scheduler
    start_replica: Any
    eventually_here: Any
    nursery: trio.Nursery
    tmp: Path
    twins: dict[str, Twin] = attrs.field(factory=dict)

    @property
    def door(self) -> str:
        return str(self.scheduler.address)

    async def start(self, id: str, *options: str) -> Twin:
        """Start a replica, and wait until the scheduler knows it."""
        options = options or ("--app", "twins:app", "--in-process")
        to = ("--scheduler", self.door, "--replica-id", id, "--drain-timeout", "5")
        live = self.start_replica(*options, *to)
        await self.eventually_here(lambda: self.scheduler.links.get(id) is not None)
        twin = self.twins[id] = Twin(live, id)
        return twin

    def delegations(self, id: str) -> int:
        link = self.scheduler.links.get(id)
        assert link is not None
        return link.delegations

    async def occupy(self, twin: Twin, capability: str = "narrow") -> Path:
        """Take a replica's only slot, asking it directly; the file is there while that lasts."""
        file = self.tmp / f"{twin.id}-{capability}"
        inputs = {"file": str(file), "seconds": "60", "n": "1000", "pause": "1"}
        method = stream if capability == "count" else unary

        async def run() -> None:
            with suppress(AnyServeError):  # the replica may be killed by the test
                await method(twin.live.address, capability, inputs)

        self.nursery.start_soon(run)
        await self.eventually_here(file.exists)
        return file


async def counts(twin: Twin) -> dict[str, int]:
    """What a replica has counted of delegations, by its actor tree."""
    async with open_channel(f"unix:{socket_path(twin.live.port)}") as channel:
        reply = await channel.unary(
            "/anyserve.v1.Admin/Tree", admin_pb.TreeRequest(), admin_pb.TreeReply
        )
    assert reply.root is not None
    (link,) = [node for node in reply.root.children if node.name == "scheduler-link"]
    return {key: int(link.details[key]) for key in ("handed_back", "relayed")}


def texts(message: bytes) -> dict[str, str]:
    result = decode_response(codec.decode(pb.ModelInferResponse, message))
    return {name: value[0].decode() for name, value in result.outputs.items()}


async def unary(
    address: str,
    capability: str,
    inputs: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
    metadata: Any = (),
    timeout: float = 20,  # noqa: ASYNC109
) -> dict[str, str]:
    body = encode_request(capability, inputs or {"x": "1"}, values or {})
    async with open_channel(address) as channel:
        with trio.fail_after(timeout):
            return texts(
                await channel.unary(SERVICE + "ModelInfer", body, bytes, metadata=metadata)
            )


async def stream(address: str, capability: str, inputs: dict[str, Any]) -> list[dict[str, str]]:
    """The answers to one request of a stream; raises `Unavailable` with its error message."""
    answers = []
    async with (
        open_channel(address) as channel,
        channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call,
    ):
        await call.send(encode_request(capability, inputs, {}), end=True)
        async for message in call:
            reply = codec.decode(pb.ModelStreamInferResponse, message)
            if reply.error_message:
                raise Unavailable(reply.error_message)
            assert reply.infer_response is not None
            answers.append(texts(bytes(reply.infer_response)))
    return answers


@asynccontextmanager
async def running_fleet(
    tmp_path: Path, start_replica: Any, eventually_here: Any
) -> AsyncIterator[Fleet]:
    terms = LeaseTerms(lease=100, interval=50)
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(SchedulerConfig(port=0, terms=terms))
        async with scheduler.running():
            scheduler.ways.complete_at = -math.inf  # there is no replica that may come back
            yield Fleet(scheduler, start_replica, eventually_here, nursery, tmp_path)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def fleet(tmp_path: Path, start_replica: Any, eventually_here: Any) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, start_replica, eventually_here) as fleet:
        yield fleet


async def test_what_a_replica_does_not_have_is_served_by_one_that_has(fleet: Fleet) -> None:
    a = await fleet.start("a", "--app", "examples.echo:app", "--in-process")
    b = await fleet.start("b")
    for number in range(1, 4):
        assert (await unary(a.live.address, "who"))["pid"] == b.pid
        assert fleet.delegations("a") == number
    answers = await stream(a.live.address, "count", {"n": "100"})
    assert [answer["number"] for answer in answers] == [str(n) for n in range(100)]
    assert {answer["pid"] for answer in answers} == {b.pid}
    answers = await stream(a.live.address, "who", {"x": "1"})
    assert [answer["pid"] for answer in answers] == [b.pid]
    assert (fleet.delegations("a"), fleet.delegations("b")) == (5, 0)
    assert await counts(a) == {"handed_back": 0, "relayed": 5}
    assert await counts(b) == {"handed_back": 0, "relayed": 0}
    with pytest.raises(NotFound, match="nope"):
        await unary(a.live.address, "nope")
    with pytest.raises(Unavailable, match="nope"):
        await stream(a.live.address, "nope", {"x": "1"})
    assert not connections(a) & listening(b), "a replica has called another"
    assert not connections(b) & listening(a), "a replica has called another"


async def test_a_client_has_no_say_in_delegation(fleet: Fleet) -> None:
    a = await fleet.start("a")
    b = await fleet.start("b")
    forged = {
        "anyserve-link-token-bin": b"t" * 32,
        "anyserve-delegations": "1",
        "anyserve-need-bin": b'["nope",{},""]',
        "anyserve-handback-bin": b"h",
        "mine": "kept",
    }
    for address in (fleet.door, a.live.address):
        assert (await unary(address, "who", metadata=forged))["pid"] in (a.pid, b.pid)
    seen = await unary(fleet.door, "who", metadata=forged)
    assert '"mine": "kept"' in seen["metadata"]
    assert '"anyserve-delegations": "0"' in seen["metadata"]
    # A queue that is full: what the client claims changes nothing of what happens.
    await fleet.occupy(a)
    assert (await unary(a.live.address, "narrow", metadata=forged))["pid"] == b.pid
    assert fleet.delegations("a") == 1
    with pytest.raises(PermissionDenied):
        await unary(fleet.door, "who", metadata={"anyserve-delegation-bin": b"\x0a\x01a"})


async def test_a_request_that_finds_a_full_queue_is_relayed_and_cancelled_there(
    fleet: Fleet, tmp_path: Path, eventually_here: Any
) -> None:
    a = await fleet.start("a")
    b = await fleet.start("b")
    await fleet.occupy(a)
    await fleet.occupy(a, "count")
    assert (await unary(a.live.address, "narrow"))["pid"] == b.pid
    assert (await stream(a.live.address, "narrow", {"x": "1"}))[0]["pid"] == b.pid
    assert len(await stream(a.live.address, "count", {"n": "3"})) == 3
    assert fleet.delegations("a") == 3
    file = tmp_path / "relayed"
    inputs = {"file": str(file), "seconds": "60"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unary, a.live.address, "narrow", inputs)
        await eventually_here(file.exists)
        assert file.read_text() == b.pid
        nursery.cancel_scope.cancel()
    await eventually_here(lambda: not file.exists())
    with pytest.raises(DeadlineExceeded):
        await unary(a.live.address, "narrow", inputs, {"timeout": 300_000})
    await eventually_here(lambda: not file.exists())


async def test_the_remaining_budget_goes_along(fleet: Fleet) -> None:
    a = await fleet.start("a", "--app", "examples.echo:app", "--in-process")
    await fleet.start("b")
    for address in (fleet.door, a.live.address):
        seen = await unary(address, "who", timeout=7)
        assert 5 < float(seen["left"]) < 7


async def sticky(fleet: Fleet, capability: str = "narrow") -> tuple[Twin, Twin]:
    """The replica that a session is at, and the other."""
    a, b = await fleet.start("a"), await fleet.start("b")
    pid = (await unary(fleet.door, capability, values={"session": "s"}))["pid"]
    return (a, b) if pid == a.pid else (b, a)


async def test_a_request_of_the_front_door_is_handed_back_once_and_the_first_is_out_of_its_path(
    fleet: Fleet,
) -> None:
    first, second = await sticky(fleet)
    await fleet.occupy(first)
    answer = await unary(fleet.door, "narrow", values={"session": "s"})
    assert answer["pid"] == second.pid
    assert (fleet.delegations(first.id), fleet.delegations(second.id)) == (1, 0)
    assert await counts(first) == {"handed_back": 1, "relayed": 0}
    assert await counts(second) == {"handed_back": 0, "relayed": 0}
    assert fleet.scheduler.ways.delegated == 1
    assert fleet.scheduler.ways.in_flight == 0


async def test_a_second_hand_back_fails_with_the_reasons_of_both(fleet: Fleet) -> None:
    first, second = await sticky(fleet)
    await fleet.occupy(first)
    await fleet.occupy(second)
    with pytest.raises(FailedPrecondition) as caught:
        await unary(fleet.door, "narrow", values={"session": "s"})
    message = caught.value.message
    assert message.index(f"{first.id}: ") < message.index(f"{second.id}: ")
    assert message.count("the queue is full") == 2
    assert (fleet.delegations(first.id), fleet.delegations(second.id)) == (1, 1)
    assert await counts(first) == await counts(second) == {"handed_back": 1, "relayed": 0}
    with pytest.raises(Unavailable, match="handed back twice"):
        await stream(first.live.address, "narrow", {"x": "1"})


async def test_one_replica_alone_says_why_it_does_not_serve(fleet: Fleet) -> None:
    a = await fleet.start("a")
    await fleet.occupy(a)
    for address in (fleet.door, a.live.address):
        with pytest.raises((ResourceExhausted, Unavailable), match="the queue is full"):
            await unary(address, "narrow")


async def test_a_draining_replica_sends_its_clients_on(fleet: Fleet) -> None:
    a = await fleet.start("a")
    b = await fleet.start("b")
    file = await fleet.occupy(a)
    async with open_channel(a.live.address) as channel:
        body = encode_request("who", {"x": "1"}, {})
        await channel.unary(SERVICE + "ModelInfer", body, bytes)
        a.live.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            pid = a.pid
            while pid == a.pid:
                reply = await channel.unary(SERVICE + "ModelInfer", body, bytes)
                pid = texts(reply)["pid"]
        for _ in range(5):
            assert (await unary(fleet.door, "who"))["pid"] == b.pid
    os.kill(a.live.process.pid, signal.SIGKILL)
    file.unlink()


def listening(twin: Twin) -> set[str]:
    return {f"{twin.live.port:04X}"}


def connections(twin: Twin) -> set[str]:
    """The ports that a process is connected to, in hexadecimal."""
    folder = Path(f"/proc/{twin.pid}/fd")
    inodes = set()
    for fd in folder.iterdir():
        with suppress(FileNotFoundError):  # it may close meanwhile
            inodes.update(re.findall(r"^socket:\[(\d+)\]$", os.readlink(fd)))
    ports = set()
    for line in Path(f"/proc/{twin.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and fields[3] == "01":
            ports.add(fields[2].partition(":")[2])
    return ports


async def test_a_version_that_none_can_have_is_no_reason_to_ask_others(fleet: Fleet) -> None:
    a = await fleet.start("a")
    body = bytes(pb.ModelInferRequest(model_name="who", model_version="1" * 20, id="long"))
    async with (
        open_channel(a.live.address) as channel,
        channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call,
    ):
        with pytest.raises(InvalidArgument, match="not a number of at most 19 digits"):
            await channel.unary(SERVICE + "ModelInfer", body, bytes)
        await call.send(body)
        await call.send(encode_request("who", {"x": "1"}, {}), end=True)
        replies = [codec.decode(pb.ModelStreamInferResponse, message) async for message in call]
    assert "not a number" in replies[0].error_message
    assert replies[1].error_message == ""
    assert fleet.delegations("a") == 0


async def test_a_replica_that_the_scheduler_asks_answers_for_itself_alone(fleet: Fleet) -> None:
    a = await fleet.start("a", "--app", "variants:first", "--in-process")
    await fleet.start("b", "--app", "variants:second", "--in-process")
    link = fleet.scheduler.links.get("a")
    assert link is not None
    asked = pb.ModelMetadataRequest(name="right")
    path = SERVICE + "ModelMetadata"
    async with open_channel(a.live.address) as channel:
        for forged in ({}, {"anyserve-link-token-bin": b"t" * 32}):
            reply = await channel.unary(path, asked, pb.ModelMetadataResponse, metadata=forged)
            assert reply.name == "right"
        proof = {"anyserve-link-token-bin": link.token}
        with pytest.raises(NotFound, match="there is: item, left, say"):
            await channel.unary(path, asked, pb.ModelMetadataResponse, metadata=proof)


async def test_a_request_that_is_served_by_what_answers_more_often_loses_no_answer(
    fleet: Fleet,
) -> None:
    a = await fleet.start("a", "--app", "variants:first", "--in-process")
    await fleet.start("b", "--app", "variants:second", "--in-process")
    await fleet.occupy(a, "say")
    assert [each["said"] for each in await stream(a.live.address, "say", {"n": "5"})] == list(
        "01234"
    )
    assert [each["said"] for each in await stream(a.live.address, "say", {"n": "1"})] == ["0"]
    async with (
        open_channel(a.live.address) as channel,
        channel.stream(SERVICE + "ModelStreamInfer", bytes, bytes) as call,
    ):
        for identity, n in (("one", "3"), ("two", "1"), ("three", "1")):
            await call.send(encode_request("say", {"n": n}, {}, identity))
        await call.end()
        replies = [codec.decode(pb.ModelStreamInferResponse, message) async for message in call]
    ids = [reply.infer_response.id for reply in replies if reply.infer_response is not None]
    assert sorted(ids) == ["one", "one", "one", "three", "two"]
    assert ids.index("two") < ids.index("three")
