"""How actors are reached: a bounded mailbox, its address, and the reply to a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

import attrs
import outcome
import trio

from anyserve_actors.errors import ActorGone, MailboxFull

M = TypeVar("M")
T = TypeVar("T")


@attrs.define(eq=False)
class Reply(Generic[T]):
    """The one answer to one question; the actor that received the question gives it.

    The first answer stands. Answering again, or answering someone who has stopped waiting, does
    nothing.
    """

    _answer: outcome.Value[T] | outcome.Error | None = None
    _answered: trio.Event = attrs.Factory(trio.Event)
    _abandoned: bool = False

    @property
    def wanted(self) -> bool:
        """Whether someone still waits for an answer."""
        return self._answer is None and not self._abandoned

    def set(self, value: T) -> None:
        """Answer with `value`."""
        self._settle(outcome.Value(value))

    def fail(self, error: BaseException) -> None:
        """Answer with `error`, which the asker's `ask` raises as it is."""
        self._settle(outcome.Error(error))

    async def wait(self) -> T:
        """Wait for the answer, bounded by the caller's scope; cancelled, nobody wants it."""
        try:
            await self._answered.wait()
        finally:
            self._abandoned = True
        assert self._answer is not None
        return self._answer.unwrap()

    def _settle(self, answer: outcome.Value[T] | outcome.Error) -> None:
        if self.wanted:
            self._answer = answer
            self._answered.set()


@attrs.frozen(eq=False)
class Envelope(Generic[M]):
    """A message on its way, with the reply that it asks for."""

    message: M
    reply: Reply[object] | None


@attrs.define(eq=False)
class Mailbox(Generic[M]):
    """Up to `capacity` messages waiting for one actor; it outlives the actor's restarts.

    The actor receives (`async for message in mailbox`); its supervisor opens it, closes it, and
    fails the questions that a life of the actor received and did not answer.
    """

    name: str
    capacity: int
    _send: trio.MemorySendChannel[Envelope[M]] = attrs.field(init=False)
    _receive: trio.MemoryReceiveChannel[Envelope[M]] = attrs.field(init=False)
    # The questions under way, and whether the present life has received them. `Address.ask` puts
    # its own in and takes it out, so there are as many as there are tasks that wait.
    _questions: dict[Reply[object], bool] = attrs.field(init=False, factory=dict)
    _open: bool = attrs.field(init=False, default=True)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Envelope[M]](self.capacity)

    @property
    def depth(self) -> int:
        """Messages that wait in the mailbox."""
        return self._receive.statistics().current_buffer_used if self._open else 0

    def __aiter__(self) -> Mailbox[M]:
        return self

    async def __anext__(self) -> M:
        return await self.receive()

    async def receive(self) -> M:
        """Wait for the next message. Cancelled, no message is lost.

        Questions whose asker has gone are passed over.
        """
        while True:
            envelope = await self._receive.receive()
            if self._accepts(envelope):
                return envelope.message

    def receive_nowait(self) -> M:
        """The next message; raises `trio.WouldBlock` where there is none."""
        while True:
            envelope = self._receive.receive_nowait()
            if self._accepts(envelope):
                return envelope.message

    def _accepts(self, envelope: Envelope[M]) -> bool:
        if envelope.reply is None:
            return True
        if envelope.reply not in self._questions:
            return False
        self._questions[envelope.reply] = True
        return True

    async def put(self, envelope: Envelope[M]) -> None:
        """Wait for room, then add `envelope`; raises `ActorGone` once the mailbox is closed."""
        try:
            await self._send.send(envelope)
        except trio.BrokenResourceError:
            raise ActorGone(f"actor {self.name!r} is gone") from None

    def put_nowait(self, envelope: Envelope[M]) -> None:
        """Add `envelope` at once; raises `MailboxFull` or `ActorGone`."""
        try:
            self._send.send_nowait(envelope)
        except trio.WouldBlock:
            raise MailboxFull(
                f"the mailbox of actor {self.name!r} is full: {self.capacity} messages"
            ) from None
        except trio.BrokenResourceError:
            raise ActorGone(f"actor {self.name!r} is gone") from None

    async def question(self, message: M, reply: Reply[object]) -> object:
        """Put a question and wait for its answer: the mailbox's side of `Address.ask`."""
        # Noted before it is sent: it may be received, and its actor end, before this task runs.
        self._questions[reply] = False
        try:
            await self.put(Envelope(message, reply))
            return await reply.wait()
        finally:
            del self._questions[reply]

    def fail_questions(self) -> None:
        """Fail what the life that just ended received and did not answer; the rest waits on."""
        for reply, received in self._questions.items():
            if received:
                reply.fail(ActorGone(f"actor {self.name!r} ended before it answered"))

    def close(self) -> None:
        """Refuse messages, drop those that wait and fail all questions."""
        if self._open:
            self._open = False
            for reply in self._questions:
                reply.fail(ActorGone(f"actor {self.name!r} is gone"))
            self._receive.close()

    def reopen(self) -> None:
        """Take messages again, after `close`; every address of this mailbox works again."""
        if not self._open:
            self._send, self._receive = trio.open_memory_channel[Envelope[M]](self.capacity)
            self._open = True


@attrs.frozen(eq=False)
class Address(Generic[M]):
    """Where to send an actor's messages. It stays the same across the actor's restarts.

    While the actor restarts, messages wait in its mailbox. What a life of the actor has received
    when it fails is lost with it: a question among it raises `ActorGone`.
    """

    _mailbox: Mailbox[M]

    @property
    def name(self) -> str:
        """The actor's name."""
        return self._mailbox.name

    async def tell(self, message: M) -> None:
        """Send `message`; wait while the mailbox is full, bounded by the caller's scope.

        Cancelled, the message has not been sent. Raises `ActorGone` where the actor has ended for
        good, also while waiting.
        """
        await self._mailbox.put(Envelope(message, None))

    def tell_nowait(self, message: M) -> None:
        """Send `message` at once; raises `MailboxFull` or `ActorGone`."""
        self._mailbox.put_nowait(Envelope(message, None))

    async def ask(self, make: Callable[[Reply[T]], M]) -> T:
        """Send the question that `make` builds around a reply, and wait for the answer.

        Waits for room in the mailbox and then for the answer, both bounded by the caller's scope.
        Cancelled, the actor does not see the question if it has not received it yet, and its
        answer goes nowhere if it has. Raises `ActorGone` at once when the actor ends for good or
        ends a life in which it received the question, and otherwise what the actor answered with.
        """
        reply: Reply[T] = Reply()
        # The mailbox handles replies of all types; this one's answer has the type that it is for.
        return cast(T, await self._mailbox.question(make(reply), cast("Reply[object]", reply)))
