"""`anyserve.v1.Scheduler`: replicas register and report, and people look at the fleet."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

import trio
from anyserve_protos.anyserve import v1 as pb
from grpclib.const import Cardinality, Handler

from anyserve import __version__
from anyserve.capability import Capability
from anyserve.errors import AnyServeError, DeadlineExceeded, InvalidArgument, innermost
from anyserve.transport.rpc import ServerStream
from anyserve_scheduler.gateway.incoming import session_key
from anyserve_scheduler.links import Attachment, Link, Links, check_token
from anyserve_scheduler.messages import (
    attributes_of,
    fleet_replica,
    registration_of,
    report_of,
)
from anyserve_scheduler.registration import Grant, Heard, LeaseTerms
from anyserve_scheduler.routing import Decision, Hints, Router
from anyserve_scheduler.watched import WatchedRegistry

_REFUSAL_LIMIT = 300
"""Characters of the last refusal that are kept."""

_log = logging.getLogger(__name__)


class SchedulerService:
    """The registry's door; it reads and answers, and the registry decides."""

    def __init__(
        self, registry: WatchedRegistry, links: Links, router: Router, terms: LeaseTerms
    ) -> None:
        self._registry = registry
        self._links = links
        self._router = router
        self._terms = terms
        self._started = trio.current_time()
        self._refused = 0
        self._last_refusal = ""

    def __mapping__(self) -> Mapping[str, Handler]:
        """The methods, in the form of grpclib services."""
        return {
            "/anyserve.v1.Scheduler/Attach": Handler(
                self.attach, Cardinality.STREAM_STREAM, pb.FromReplica, pb.ToReplica
            ),
            "/anyserve.v1.Scheduler/Leave": Handler(
                self.leave, Cardinality.UNARY_UNARY, pb.LeaveRequest, pb.LeaveReply
            ),
            "/anyserve.v1.Scheduler/Explain": Handler(
                self.explain, Cardinality.UNARY_UNARY, pb.ExplainRequest, pb.ExplainReply
            ),
            "/anyserve.v1.Scheduler/Fleet": Handler(
                self.fleet, Cardinality.UNARY_UNARY, pb.FleetRequest, pb.FleetReply
            ),
        }

    async def attach(self, stream: ServerStream) -> None:
        """The scheduler link of one replica, for as long as it lives.

        Waits for its registration, a lease's length at most, and then for its reports, while its
        lease lasts; one that does not read what it is told is not heard any more. A replica that
        holds its lease when this ends is suspect.
        """
        register = await self._first(stream)
        try:
            check_token(register.link_token)
            grant = self._registry.register(registration_of(register), trio.current_time())
        except AnyServeError as error:
            self._refused += 1
            self._last_refusal = f"{register.replica_id!r:.80}: {error.message}"[:_REFUSAL_LIMIT]
            raise
        failure: BaseException | None = None
        try:
            await self._attached(stream, register, grant)
        except* AnyServeError as errors:
            failure = innermost(errors)
        if failure is not None:
            raise failure

    async def _attached(self, stream: ServerStream, register: pb.Register, grant: Grant) -> None:
        """Read what a replica reports, and tell it what it is to be told, until either ends."""
        id, epoch = register.replica_id, grant.epoch
        async with trio.open_nursery() as nursery:
            with self._links.attached(id, epoch, register.link_token) as attachment:
                came = "is back" if grant.resumed else "has joined"
                _log.info("replica %s, epoch %d, %s at %s", id, epoch, came, register.address)
                await stream.send_message(pb.ToReplica(granted=_granted(grant)))
                nursery.start_soon(self._follow, stream, attachment)
                async for message in attachment.unsent:
                    await stream.send_message(message)
            nursery.cancel_scope.cancel()

    async def leave(self, stream: ServerStream) -> None:
        """A replica's goodbye; `PermissionDenied` for whoever holds no such lease."""
        request: pb.LeaveRequest = await stream.recv_message()
        self._links.verified(request.replica_id, request.epoch, request.link_token)
        self._registry.release(request.replica_id, request.epoch)
        await stream.send_message(pb.LeaveReply())

    async def explain(self, stream: ServerStream) -> None:
        """Where a request would go, and why; raises `InvalidArgument` for a need that can't be."""
        request: pb.ExplainRequest = await stream.recv_message()
        need = Capability(request.name, attributes_of(request.attributes), request.version)
        hints = Hints(
            budget=_budget(request.budget_seconds),
            session=session_key(request.session) if request.session else None,
        )
        explanation = self._router.explain(need, hints, trio.current_time())
        outcome = explanation.outcome
        reply = pb.ExplainReply(
            reasons=explanation.words().splitlines(), json=json.dumps(explanation.to_json())
        )
        if isinstance(outcome, Decision):
            reply.replica_id, reply.capability = outcome.replica, str(outcome.capability)
        await stream.send_message(reply)

    async def fleet(self, stream: ServerStream) -> None:
        """The fleet as it is now."""
        await stream.recv_message()
        now = trio.current_time()
        fleet = self._registry.fleet()
        await stream.send_message(
            pb.FleetReply(
                version=__version__,
                uptime_seconds=now - self._started,
                fleet_version=fleet.version,
                replicas=[
                    fleet_replica(view, self._links.get(id), now)
                    for id, view in fleet.replicas.items()
                ],
                refused=self._refused,
                last_refusal=self._last_refusal,
            )
        )

    async def _first(self, stream: ServerStream) -> pb.Register:
        message: pb.FromReplica | None = None
        with trio.move_on_after(self._terms.lease) as waiting:
            message = await stream.recv_message()
        if waiting.cancelled_caught:
            raise DeadlineExceeded(f"nothing was registered within {self._terms.lease:g} s")
        if message is None or message.register is None:
            raise InvalidArgument("the first message has to be `register`")
        return message.register

    async def _follow(self, stream: ServerStream, attachment: Attachment) -> None:
        """Take what a replica reports until its stream ends; what is wrong ends the attachment.

        Waits while the replica does not read the answers.
        """
        with attachment.answers as answers:
            try:
                message: pb.FromReplica
                async for message in stream:
                    await answers.send(pb.ToReplica(heard=self._heard(message, attachment.link)))
            except AnyServeError as error:
                attachment.end(error)

    def _heard(self, message: pb.FromReplica, link: Link) -> pb.Heard:
        """The answer to a report; raises what is wrong with it."""
        if message.report is None:
            raise InvalidArgument("after `register` comes nothing but `report`")
        report = report_of(message.report)
        heard = self._registry.report(link.replica_id, link.epoch, report, trio.current_time())
        return pb.Heard(sequence=report.sequence, want_full=heard is Heard.INCOMPLETE)


def _budget(seconds: float) -> float:
    """Seconds until a deadline, where 0 is none."""
    if not 0 <= seconds < math.inf:
        raise InvalidArgument(f"budget_seconds is {seconds}, not a number of 0 or more")
    return seconds or math.inf


def _granted(grant: Grant) -> pb.Granted:
    return pb.Granted(
        epoch=grant.epoch,
        lease_ms=round(grant.terms.lease * 1000),
        interval_ms=round(grant.terms.interval * 1000),
    )
