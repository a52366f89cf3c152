"""Loads, unloads and questions at the front door: which replicas hear of them, and what is said."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from anyserve_protos import inference as pb
from anyserve_scheduler.fleet import Load, OfferView
from anyserve_scheduler.registration import LeaseTerms, Registration
from anyserve_scheduler.scheduler import Scheduler, SchedulerConfig
from grpclib.const import Cardinality, Handler

from anyserve.capability import Capability
from anyserve.errors import AnyServeError, Internal, NotFound, Unavailable
from anyserve.transport import trio_server
from anyserve.transport.address import TcpAddress
from anyserve.transport.rpc import ServerStream
from anyserve.transport.trio_client import Channel, open_channel

SERVICE = "/inference.GRPCInferenceService/"
METHODS = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "ModelMetadata")


@attrs.define(eq=False)
class Fake:
    """A replica of which the test says what it has in its index and how it fails."""

    id: str
    index: tuple[str, ...] = ()
    fails: dict[str, AnyServeError] = attrs.field(factory=dict)
    """By method."""
    heard: list[str] = attrs.field(factory=list)

    @property
    def token(self) -> bytes:
        return self.id.encode() * 32

    def __mapping__(self) -> dict[str, Handler]:
        return {
            SERVICE + name: Handler(
                partial(self.serve, name),
                Cardinality.UNARY_UNARY,
                getattr(pb, f"{name}Request"),
                getattr(pb, f"{name}Response"),
            )
            for name in METHODS
        }

    async def serve(self, name: str, stream: ServerStream) -> None:
        await stream.recv_message()
        assert stream.metadata["anyserve-link-token-bin"] == self.token
        self.heard.append(name)
        if name in self.fails:
            raise self.fails[name]
        reply = getattr(pb, f"{name}Response")()
        if name == "RepositoryIndex":
            reply.models = [pb.RepositoryIndexResponseModelIndex(name=each) for each in self.index]
        elif name == "ModelMetadata":
            reply.platform = self.id
        await stream.send_message(reply)


@attrs.define(eq=False)
class Fleet:
    scheduler: Scheduler
    channel: Channel
    nursery: trio.Nursery

    async def join(self, fake: Fake, *offers: OfferView, draining: bool = False) -> Fake:
        address = TcpAddress("127.0.0.1", 0)
        server = await self.nursery.start(
            lambda task_status: trio_server.serve([fake], address, task_status=task_status)
        )
        registration = Registration(
            fake.id, b"instance", str(server.address), list(offers), draining=draining
        )
        grant = self.scheduler.registry.register(registration, trio.current_time())
        await self.nursery.start(self._attach, fake, grant.epoch)
        return fake

    async def _attach(self, fake: Fake, epoch: int, task_status: Any) -> None:
        with self.scheduler.links.attached(fake.id, epoch, fake.token):
            task_status.started()
            await trio.sleep_forever()

    async def order(self, verb: str, model: str = "decode") -> Any:
        name = f"RepositoryModel{verb}"
        request = getattr(pb, f"{name}Request")(model_name=model)
        return await self.channel.unary(SERVICE + name, request, getattr(pb, f"{name}Response"))

    async def metadata(self, **fields: str) -> pb.ModelMetadataResponse:
        request = pb.ModelMetadataRequest(**fields)
        return await self.channel.unary(
            f"{SERVICE}ModelMetadata", request, pb.ModelMetadataResponse
        )


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    config = SchedulerConfig(port=0, terms=LeaseTerms(lease=100, interval=50))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            scheduler = Scheduler(config)
            async with scheduler.running(), open_channel(scheduler.address) as channel:
                scheduler.ways.complete_at = -math.inf  # there is no replica that may come back
                yield Fleet(scheduler, channel, nursery)
                nursery.cancel_scope.cancel()


def offer(
    name: str = "decode", *, version: str = "1", loadable: bool = False, running: int = 0
) -> OfferView:
    load = Load(running, 0, 4, 0.0)
    return OfferView(Capability(name, {}, version), load, 4, False, loadable)


@pytest.mark.parametrize("verb", ["Load", "Unload"])
async def test_an_order_goes_to_all_who_know_the_model_and_to_no_others(
    fleet: Fleet, verb: str
) -> None:
    loaded = await fleet.join(Fake("loaded"), offer())
    loadable = await fleet.join(Fake("loadable"), offer(loadable=True))
    listing = await fleet.join(Fake("listing", ("embedding", "decode")), offer("embedding"))
    stranger = await fleet.join(Fake("stranger", ("embedding",)), offer("embedding"))
    draining = await fleet.join(Fake("draining", ("decode",)), offer(), draining=True)
    reply = await fleet.order(verb)
    assert reply.model_name == "decode"
    method = f"RepositoryModel{verb}"
    assert loaded.heard == loadable.heard == [method]
    assert listing.heard == ["RepositoryIndex", method]
    assert stranger.heard == ["RepositoryIndex"]
    assert draining.heard == []


async def test_an_order_that_fails_in_part_names_who_has_failed_and_who_has_not(
    fleet: Fleet,
) -> None:
    await fleet.join(Fake("a"), offer())
    await fleet.join(
        Fake("b", fails={"RepositoryModelLoad": Internal("'decode' could not be loaded: no file")}),
        offer(loadable=True),
    )
    with pytest.raises(Internal) as caught:
        await fleet.order("Load")
    assert caught.value.message == ("replica b: 'decode' could not be loaded: no file; loaded on a")


async def test_a_replica_that_does_not_say_what_it_has_stands_in_nobodys_way(
    fleet: Fleet,
) -> None:
    silent = Fake("silent", fails={"RepositoryIndex": Unavailable("it is busy")})
    await fleet.join(silent)
    with pytest.raises(Unavailable, match="no replica that answers has 'decode': it is busy"):
        await fleet.order("Load")
    known = await fleet.join(Fake("known"), offer())
    await fleet.order("Load")
    assert known.heard == ["RepositoryModelLoad"]
    del silent.fails["RepositoryIndex"]
    with pytest.raises(NotFound, match="no replica of the fleet has 'nothing'"):
        await fleet.order("Load", "nothing")


async def test_what_a_model_takes_is_told_however_busy_it_is(fleet: Fleet) -> None:
    await fleet.join(Fake("full"), offer(running=8))
    assert (await fleet.metadata(name="decode")).platform == "full"


async def test_what_a_model_takes_is_told_before_it_is_loaded(fleet: Fleet) -> None:
    await fleet.join(Fake("could"), offer("decode.heavy", loadable=True))
    assert (await fleet.metadata(name="decode")).platform == "could"
    await fleet.join(Fake("has"), offer("decode.heavy.more"))
    assert (await fleet.metadata(name="decode")).platform == "has"


async def test_a_question_goes_to_the_least_powerful_in_the_version_that_is_asked_for(
    fleet: Fleet,
) -> None:
    await fleet.join(Fake("heavy"), offer("decode.heavy", version="3"))
    await fleet.join(Fake("one"), offer(version="1"))
    await fleet.join(Fake("two"), offer(version="2"))
    for version, replica in (("", "two"), ("1", "one"), ("2", "two"), ("3", "heavy")):
        assert (await fleet.metadata(name="decode", version=version)).platform == replica
    with pytest.raises(NotFound, match="version=1, not 4"):
        await fleet.metadata(name="decode", version="4")


async def test_a_replica_that_has_the_model_no_more_is_passed_over(fleet: Fleet) -> None:
    a = await fleet.join(Fake("a", fails={"ModelMetadata": NotFound("unloaded")}), offer())
    await fleet.join(Fake("b"), offer())
    assert (await fleet.metadata(name="decode")).platform == "b"
    assert a.heard == ["ModelMetadata"]
    a.fails["ModelMetadata"] = Internal("a bug")
    with pytest.raises(Internal, match="a bug"):
        await fleet.metadata(name="decode")
