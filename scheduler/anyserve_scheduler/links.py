"""What the scheduler holds of each replica beside the registry: its link, its token, its errors."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import trio
from anyserve_protos.anyserve import v1 as pb

from anyserve.errors import Aborted, AnyServeError, InvalidArgument, PermissionDenied, Unavailable
from anyserve_scheduler.fleet import Change, ChangeKind, Fleet
from anyserve_scheduler.watched import WatchedRegistry

TOKEN_SIZES = range(16, 65)
"""Bytes of a link token."""
_MOST_UNSENT = 16
"""Messages to a replica that wait for it to read those before."""

_log = logging.getLogger(__name__)


@attrs.define(eq=False)
class Attachment:
    """One `Attach` call of a registered replica."""

    link: Link
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    verdict: AnyServeError | None = None
    """Why the scheduler ended it."""
    answers: trio.MemorySendChannel[pb.ToReplica] = attrs.field(init=False)
    """What the replica is told; it is closed when there is no more of it."""
    unsent: trio.MemoryReceiveChannel[pb.ToReplica] = attrs.field(init=False)
    """The same, for the call to send."""

    def __attrs_post_init__(self) -> None:
        self.answers, self.unsent = trio.open_memory_channel[pb.ToReplica](_MOST_UNSENT)

    def end(self, verdict: AnyServeError) -> None:
        """End the call with that error."""
        self.verdict = verdict
        self.scope.cancel()


@attrs.define(eq=False)
class Link:
    """A replica that holds a lease, as the scheduler knows it."""

    replica_id: str
    epoch: int
    token: bytes = attrs.field(repr=False)
    """What calls to the replica carry, to prove that they are the scheduler's."""
    delegations: int = 0
    """Requests that it has handed back."""
    last_error: str = ""
    """What last went wrong between the scheduler and it."""
    attachment: Attachment | None = None
    """The call that it reports by; None while there is none."""

    def tell(self, message: pb.ToReplica) -> bool:
        """Have the replica told something after what it is told already, without waiting.

        False where that can't be: it has no link now, or does not read what it is told.
        """
        if self.attachment is None:
            return False
        try:
            self.attachment.answers.send_nowait(message)
        except (trio.WouldBlock, trio.ClosedResourceError):
            return False
        return True


class Links:
    """The links of all replicas that hold a lease, by id; the registry bounds them."""

    def __init__(self, registry: WatchedRegistry) -> None:
        self._registry = registry
        self._links: dict[str, Link] = {}
        self._over: AnyServeError | None = None
        """Why there are no links any more."""
        registry.follow(self._follow)

    def get(self, replica_id: str) -> Link | None:
        """The link of a replica; None for one that holds no lease."""
        return self._links.get(replica_id)

    def verified(self, replica_id: str, epoch: int, token: bytes) -> Link:
        """The link of a replica that proves to be it; raises `PermissionDenied` otherwise."""
        link = self._links.get(replica_id)
        if link is None or link.epoch != epoch or not hmac.compare_digest(link.token, token):
            raise PermissionDenied("the link token is not that of a replica of this fleet")
        return link

    @contextmanager
    def attached(self, replica_id: str, epoch: int, token: bytes) -> Iterator[Attachment]:
        """The call of a replica that has just registered, while the block answers it.

        The newest block has it: one before it is cancelled and raises `Aborted`. When the lease
        ends the block is cancelled and raises `Unavailable`. A replica whose block ends is suspect
        where it holds its lease. After `end` it raises what that was given.
        """
        if self._over is not None:
            raise self._over
        link = self._links.get(replica_id)
        if link is None:
            link = self._links[replica_id] = Link(replica_id, epoch, token)
        link.token = token
        if link.attachment is not None:
            link.attachment.end(Aborted("the replica has registered by another link"))
        attachment = link.attachment = Attachment(link)
        error = "its link was lost"
        try:
            with attachment.scope:
                yield attachment
            error = "" if attachment.verdict is None else attachment.verdict.message
        except AnyServeError as caught:
            error = caught.message
            raise
        finally:
            if link.attachment is attachment:
                link.attachment = None
                link.last_error = error or link.last_error
                self._registry.suspect(replica_id, epoch)
        if attachment.verdict is not None:
            raise attachment.verdict

    def end(self, verdict: AnyServeError) -> None:
        """End all links with that error; leases run on."""
        self._over = verdict
        for link in self._links.values():
            if link.attachment is not None:
                link.attachment.end(verdict)

    def _follow(self, news: Sequence[Change] | Fleet) -> None:
        if isinstance(news, Fleet):
            for link in tuple(self._links.values()):
                view = news.replicas.get(link.replica_id)
                if view is None or view.epoch != link.epoch:
                    self._forget(link)
            return
        for change in news:
            if change.kind in (ChangeKind.LEFT, ChangeKind.JOINED) and change.id in self._links:
                self._forget(self._links[change.id])

    def _forget(self, link: Link) -> None:
        """A lease has ended, by a goodbye or by silence."""
        _log.info("replica %s, epoch %d, is out", link.replica_id, link.epoch)
        del self._links[link.replica_id]
        if link.attachment is not None:
            link.attachment.end(Unavailable("the lease is over; register anew"))


def check_token(token: bytes) -> None:
    """Raise `InvalidArgument` unless a replica may have this as its token."""
    if len(token) not in TOKEN_SIZES:
        raise InvalidArgument(
            f"link_token is {len(token)} bytes long,"
            f" not {TOKEN_SIZES.start} to {TOKEN_SIZES.stop - 1}"
        )
