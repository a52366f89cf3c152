"""The worker's side of the link: calls in, responses out, until the replica closes it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio
from anyserve_actors import tracing

from anyserve.app import Handler
from anyserve.burst import each_turn
from anyserve.errors import AnyServeError, Cancelled
from anyserve.link import frames
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.link.frames import Buffer, Frame, Kind, Part, RequestBody
from anyserve.messages import Context
from anyserve.messages import Sequence as SequenceInfo
from anyserve.objects.arena import Arena, ArenaFull
from anyserve.objects.leases import Block, LeaseSet
from anyserve.objects.mapping import Reader
from anyserve.objects.region_files import RegionFiles
from anyserve.objects.regions import RegionRef
from anyserve.waiting import Waiter
from anyserve.worker.calls import Answered, Called, HandlerCalls
from anyserve.worker.runner import Ending, HandlerRunner, Incoming, cut_off
from anyserve.worker.shared import ClientRegions
from anyserve.worker.tasks import Tasks

log = logging.getLogger("anyserve.worker")


_STOPPING = Cancelled("the worker is stopping")


class _Running:
    """A call in progress: the `Job` of a task, and the `Sink` of its responses."""

    scope: trio.CancelScope

    def __init__(
        self, session: Session, call: int, runner: HandlerRunner, body: RequestBody
    ) -> None:
        self.runner = runner
        self.credit = frames.INITIAL_CREDIT
        self._session = session
        self._call = call
        self._body = body
        self._more = Waiter()
        self._called: dict[int, Answered] = {}
        """What the handler has called, by its number."""
        self._calls = 0

    async def run(self) -> None:
        """See `Job`; its end is always told to the replica."""
        body = self._body
        budget = body.budget
        deadline = math.inf if budget == math.inf else trio.current_time() + budget
        caller = HandlerCalls(body.request_id, self._begin_call)
        context = Context(body.request_id, deadline, scope=self.scope, caller=caller)
        ending: Ending | None = None
        try:
            ending = await self.runner.run(self._session.incoming(body, context), self, self.scope)
        except AnyServeError as error:
            ending = Ending(error=error.with_traceback(None))  # which leads here
        finally:
            self._session.end(self._call, ending or cut_off(self.scope, deadline, _STOPPING))
            ending = None  # the traceback of its error leads back to this frame

    async def until_credit(self) -> None:
        """See `Sink`."""
        while not self.credit:
            await self._more.wait()

    def send(self, response: Sequence[Buffer]) -> None:
        """See `Sink`."""
        self.credit -= 1
        self._session.respond(self._call, response)

    def count(self, more: int, prompt: int) -> None:
        """See `Sink`."""
        self._session.tell(frames.encode_tokens(self._call, more, prompt))

    def on_frame(self, frame: Frame) -> None:
        """The replica says something of this call."""
        if frame.kind == Kind.CREDIT:
            self.credit += frames.decode_credit(frame)
            self._more.wake()
        elif frame.kind == Kind.CANCEL:
            self.scope.cancel()
        else:
            self._on_called(frame)

    def _on_called(self, frame: Frame) -> None:
        """Something comes of what the handler has called."""
        if frame.kind == Kind.CALLED_PARTS:
            self._on_lent(frame)
            return
        number, body = frames.decode_called(frame)
        answered = self._called.get(number)
        if answered is None:
            return  # it was cancelled meanwhile
        if frame.kind == Kind.CALLED:
            answered.on_response((body,))
            return
        del self._called[number]
        answered.on_end(frames.error_of(body) if frame.kind == Kind.CALL_ERROR else None)

    def _on_lent(self, frame: Frame) -> None:
        """What the handler has called answers in the memory of another worker."""
        number, parts = frames.decode_called_parts(frame)
        answered = self._called.get(number)
        if answered is not None:
            try:
                answered.on_response(self._session.views(parts))
            except AnyServeError as error:  # that worker is gone
                self.tell_called(Kind.CALL_CANCEL, number)
                answered.on_end(error)
        self._session.tell(frames.encode(Kind.CALL_TAKEN, self._call))

    def tell_called(self, kind: Kind, number: int, body: Buffer = b"") -> None:
        """Tell the replica of what the handler calls, unless that has ended."""
        if number in self._called:
            self._session.tell(frames.encode_called(kind, self._call, number, body))
        if kind is Kind.CALL_CANCEL:
            self._called.pop(number, None)

    def _begin_call(
        self, head: bytes, raw: Sequence[Buffer], once: bool, answered: Answered
    ) -> Called:
        self._calls += 1
        self._called[self._calls] = answered
        parts = [head, *self._session.place(raw)]
        self._session.tell(frames.encode_call(self._call, self._calls, once, parts))
        return _LinkedCall(self, self._calls)


@attrs.frozen
class _LinkedCall:
    """What a handler has called, on its way over the link."""

    _running: _Running
    _number: int

    def consumed(self, responses: int) -> None:
        """See `Called`."""
        self._running.tell_called(Kind.CALL_CREDIT, self._number, responses.to_bytes(4, "little"))

    def cancel(self) -> None:
        """See `Called`."""
        self._running.tell_called(Kind.CALL_CANCEL, self._number)


class Session:
    """Serves the handlers of an app that has loaded, over a link whose handshake is done."""

    def __init__(
        self, name: str, channel: FrameChannel, handlers: Sequence[Handler], arena: Arena
    ) -> None:
        self._name = name
        self._channel = channel
        self._runners = [HandlerRunner(handler) for handler in handlers]
        self._tasks: Sequence[Tasks]
        """For the calls of each handler."""
        self._arena = arena
        self._reader = Reader()
        self._files = RegionFiles()
        self._no_regions = ClientRegions({}, self._files)
        self._running: dict[int, _Running] = {}
        self._replies = LeaseSet()

    @property
    def running(self) -> list[str]:
        """The capabilities of the calls in progress."""
        # Copied in one step: the watchdog asks from its thread.
        return [running.runner.name for running in tuple(self._running.values())]

    async def run(self) -> None:
        """Serve until the replica closes the link; what still runs then is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                self._tasks = [Tasks(nursery, f"call {runner.name}") for runner in self._runners]
                # Responses of handlers that run in one turn go out together.
                with each_turn():
                    await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self._reader.close()
            self._files.close()

    async def _read(self) -> None:
        while batch := await self._channel.receive():
            for frame in batch:
                if frame.kind == Kind.REQUEST:
                    self._start(frame)
                else:
                    self._control(frame)

    async def _write(self) -> None:
        with suppress(LinkClosed):  # the reader sees the end of file and ends the session
            await self._channel.run_writer()

    def _start(self, frame: Frame) -> None:
        body = frames.decode_request(frame)
        running = _Running(self, frame.call, self._runners[body.offer], body)
        self._running[frame.call] = running
        self._tasks[body.offer].start(running)

    def _control(self, frame: Frame) -> None:
        if frame.kind == Kind.RELEASE:
            self._replies.release(frames.decode_release(frame))
        elif frame.kind == Kind.PING:
            self._channel.send(frames.encode(Kind.PONG))
        elif frame.kind == Kind.TRACE:
            self._trace(frames.decode_json(frame))
        elif (running := self._running.get(frame.call)) is not None:
            running.on_frame(frame)  # else the call has ended meanwhile

    def tell(self, frame: Buffer | Sequence[Buffer]) -> None:
        """Send a frame of a call."""
        self._channel.send(frame)

    def views(self, parts: Sequence[Part]) -> list[Buffer]:
        """The parts as they can be read here; raises as `Reader.view` does."""
        return [self._reader.view(part) if isinstance(part, Block) else part for part in parts]

    def _trace(self, command: Mapping[str, Any]) -> None:
        if command["on"] and not tracing.active():
            tracing.start(self._name)
        elif not command["on"] and tracing.active():
            # A worker that started in between has nothing to give.
            self._channel.send(frames.encode(Kind.TRACED, 0, tracing.stop().to_bytes()))

    def incoming(self, body: RequestBody, context: Context) -> Incoming:
        """The request, ready for its handler."""
        # Inline parts are copied, which aligns them; blocks are aligned and stay where they are.
        head, *raw = [
            self._reader.view(part) if isinstance(part, Block) else bytes(part)
            for part in body.parts
        ]
        regions = self._no_regions
        if body.extra:
            context.metadata = body.extra.get("metadata", {})
            if sequence := body.extra.get("sequence"):
                context.sequence = SequenceInfo(**sequence)
            if named := body.extra.get("regions"):
                refs = {name: RegionRef(**value) for name, value in named.items()}
                regions = ClientRegions(refs, self._files)
        return Incoming(head, raw, context, regions)

    def end(self, call: int, ending: Ending) -> None:
        """The handler of a call has ended."""
        del self._running[call]
        self._channel.send(self._encode_ending(call, ending), last=not self._running)

    def respond(self, call: int, response: Sequence[Buffer]) -> None:
        """Send one response of a call, after which more may come."""
        if _is_large(response):
            self._channel.send(frames.encode_parts(call, self.place(response)))
        else:
            self._channel.send(frames.encode_response(call, response))

    def _encode_ending(self, call: int, ending: Ending) -> Sequence[Buffer]:
        if ending.error is not None:
            return (frames.encode_error(call, ending.error),)
        if ending.last is None:
            return (frames.encode_end(call, ending.batch),)
        if _is_large(ending.last):
            lent = frames.encode_parts(call, self.place(ending.last))
            return (*lent, frames.encode_end(call, ending.batch))
        return (frames.encode_answer(call, ending.batch, ending.last),)

    def place(self, pieces: Sequence[Buffer]) -> list[Part]:
        """Lend large tensors, and copy the rest: the handler may use its arrays again."""
        return [
            self._lend(piece) if len(piece) >= frames.LEASE_THRESHOLD else bytes(piece)
            for piece in pieces
        ]

    def _lend(self, tensor: Buffer) -> Part:
        try:
            return self._replies.add(self._arena.put([tensor]))
        except ArenaFull:
            log.warning("shared memory is full: a tensor of %d bytes goes inline", len(tensor))
            return bytes(tensor)


def _is_large(response: Sequence[Buffer]) -> bool:
    return max(map(len, response)) >= frames.LEASE_THRESHOLD
