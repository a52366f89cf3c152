"""`python -m anyserve.worker`: started by a replica, never by hand."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

import attrs
import trio

from anyserve import collector, heap, logs
from anyserve.app import App, AppError, load_app
from anyserve.link import frames
from anyserve.link.channel import FrameChannel, LinkClosed
from anyserve.link.frames import Kind
from anyserve.objects.arena import Arena
from anyserve.worker.loading import UNLOAD_TIMEOUT, cannot_load
from anyserve.worker.session import Session
from anyserve.worker.watchdog import Watchdog

log = logging.getLogger("anyserve.worker")

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve an app over the socket that the replica handed down."""
    parser = argparse.ArgumentParser(prog="python -m anyserve.worker")
    parser.add_argument("--fd", type=int, required=True, help="the worker link's socket")
    parser.add_argument("--parent", type=int, required=True, help="the replica's process id")
    options = parser.parse_args()
    _die_with(options.parent)
    # The replica stops its workers over the link; a signal to the whole group is not for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_inheritable(options.fd, False)
    trio.run(_serve, options.fd)
    # Threads of handlers that never came back must not keep the process.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _die_with(parent: int) -> None:
    """End with the replica even when it is killed; end of file on the link is the other way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


async def _serve(fd: int) -> None:
    channel = FrameChannel(socket.socket(fileno=fd))
    with suppress(LinkClosed):
        await _handshake(channel)
    await channel.aclose()


async def _handshake(channel: FrameChannel) -> None:
    """Import the app, say what it offers, load it when told to, and serve."""
    setup = await _expect(channel, Kind.SETUP)
    logs.configure(setup["log_format"], setup["log_level"], actor=setup["name"])
    try:
        app = load_app(setup["app"], setup["options"])
    except AppError as error:
        log.debug("import failed", exc_info=True)
        await _fail(channel, str(error))
        return
    channel.send(frames.encode_json(Kind.DECLARED, [offer.to_json() for offer in app.offers]))
    await channel.flush()
    await _expect(channel, Kind.LOAD)
    arena = Arena(prefix=setup["segment_prefix"])
    try:
        await _run_app(channel, setup["name"], app, arena)
    finally:
        arena.close()


async def _run_app(channel: FrameChannel, name: str, app: App, arena: Arena) -> None:
    ready = False
    try:
        async with trio.open_nursery() as nursery:
            life, loading = nursery.cancel_scope, trio.CancelScope()
            nursery.start_soon(_cancel_at_end, channel, loading, life)
            async with app.running():
                loading.cancel()
                ready = True
                await _serve_app(channel, name, app, arena)
                life.deadline = trio.current_time() + UNLOAD_TIMEOUT
    except Exception as error:
        if ready:
            raise
        log.debug("loading failed", exc_info=True)
        await _fail(channel, cannot_load(name, error))


async def _cancel_at_end(
    channel: FrameChannel, loading: trio.CancelScope, life: trio.CancelScope
) -> None:
    """Until the app has loaded, nothing comes over the link but its end, which ends loading."""
    with loading:
        await trio.lowlevel.checkpoint_if_cancelled()  # the session may be reading already
        await channel.receive()
        life.cancel()


async def _serve_app(channel: FrameChannel, name: str, app: App, arena: Arena) -> None:
    """Say that the app has loaded, and serve it until the replica closes the link."""
    handlers = app.handlers
    collector.settle()
    heap.settle()
    channel.send(frames.encode_json(Kind.READY, [handler.offer.to_json() for handler in handlers]))
    await channel.flush()
    app.watch(
        lambda name, condition: channel.send(
            frames.encode_json(Kind.CONDITION, {"name": name, **attrs.asdict(condition)})
        )
    )
    session = Session(name, channel, handlers, arena)
    watchdog = Watchdog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.run)
        with watchdog.watching(handlers, lambda: session.running):
            await session.run()
        nursery.cancel_scope.cancel()


async def _expect(channel: FrameChannel, kind: Kind) -> dict[str, Any]:
    """The next control frame; raises `LinkClosed` when the replica goes first."""
    for frame in await channel.receive():
        if frame.kind == kind:
            value: dict[str, Any] = frames.decode_json(frame)
            return value
    raise LinkClosed("the replica went away")


async def _fail(channel: FrameChannel, reason: str) -> None:
    channel.send(frames.encode(Kind.FAILED, 0, reason.encode(errors="replace")))
    await channel.flush()


if __name__ == "__main__":
    main()
