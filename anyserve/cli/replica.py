"""`anyserve replica`: serve capabilities until told to stop."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import trio
from anyserve_actors import RestartIntensityExceeded

from anyserve import __version__, collector, heap, logs
from anyserve.cli.arguments import (
    AppArgument,
    app,
    complain,
    count,
    names,
    place,
    port,
    say,
    seconds,
)
from anyserve.engines import BUILTINS
from anyserve.errors import innermost
from anyserve.http.settings import add_options as add_http_options
from anyserve.http.settings import http_config
from anyserve.offers import Offer
from anyserve.otlp import settings as otlp
from anyserve.replica.group import AppSpec
from anyserve.replica.pool import State
from anyserve.replica.replica import DEFAULT_PORT, Replica, ReplicaConfig
from anyserve.replica.repository import Plan, StartError
from anyserve.replica.scheduler_link import LinkConfig
from anyserve.transport.listening import CannotListen
from anyserve.transport.rpc import MIB, Limits
from anyserve.transport.wires import WIRES

_DESCRIPTION = """\
Serve capabilities over KServe v2 (gRPC), each by worker processes of its app.

Capabilities come from your apps (--app module:attribute) and from what is built in
(decode: text from a local model; embedding: sentence embeddings).
"""
_EXAMPLES = """\
examples:
  anyserve replica --caps decode,embedding
  anyserve replica --app examples.echo:app
  anyserve replica --app mine:create_app --workers 2 --python /opt/engine/bin/python
  anyserve replica --app 'anyserve.engines.sglang.app:attached?url=http://127.0.0.1:30000'
  anyserve replica --app examples.echo:app --in-process
  anyserve replica --caps decode --http 8080 --api-key-file keys.txt
  anyserve replica --caps embedding --on-demand decode --scheduler 127.0.0.1:8000

What is on demand has no worker, and takes no memory, until a request in the fleet needs it or a
client loads it (RepositoryModelLoad). Its app is imported once, to hear what it offers.

With --in-process your apps run in the replica's own process, as tasks of it: no worker, no shared
memory, and less CPU for each request. It is for light async handlers that you trust: one that
blocks its event loop stops the whole replica meanwhile, one that crashes or exits ends it, and one
that does not end when it is cancelled can't be killed. What is built in has workers all the same.

SIGTERM or Ctrl-C: requests in flight may end within --drain-timeout, new ones get UNAVAILABLE.
A second signal stops at once.
"""

_LAST_WAIT = 3.0
"""Seconds that the end may take after a second signal, when no worker is left to wait for."""
_ANY_HOST = ("", "0.0.0.0", "::")


def add_command(commands: Any) -> None:
    """Add `replica` to the command line."""
    parser = commands.add_parser(
        "replica",
        help="serve capabilities",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--caps",
        type=names,
        help="capabilities to serve, with commas; left out, all of the apps, or what is built in",
    )
    add(
        "--on-demand",
        type=names,
        default=(),
        metavar="CAPS",
        help="capabilities to load when the scheduler wants them, with commas",
    )
    add(
        "--app",
        action="append",
        type=app,
        default=[],
        metavar="MODULE:ATTRIBUTE",
        help="an app or a function that makes one, with its options: module:function?name=value;"
        " may be given several times",
    )
    add("--workers", type=count, default=1, help="worker processes of each app (1)")
    add("--python", default=sys.executable, help="the interpreter of your apps' workers")
    add("--in-process", action="store_true", help="run your apps without workers, see below")
    add("--model", help="a GGUF file for the built-in decode")
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=port, default=DEFAULT_PORT, help=f"port to listen on ({DEFAULT_PORT})")
    add("--drain-timeout", type=seconds, default=30.0, metavar="SECONDS", help="see below (30)")
    add("--message-limit", type=count, default=256, metavar="MIB", help="largest message (256)")
    add("--no-client-shared-memory", action="store_true", help="refuse clients' own memory")
    add("--scheduler", type=place, metavar="HOST:PORT", help="the scheduler to register with")
    add("--advertise", type=place, metavar="HOST:PORT", help="where the scheduler finds this one")
    add("--replica-id", default="", help="its name in the fleet (host name and port)")
    add("--server-name", default="anyserve", help="what ServerMetadata says (anyserve)")
    add("--transport", choices=WIRES, default=WIRES[0], help=f"what carries calls ({WIRES[0]})")
    add_http_options(parser, port)
    otlp.add_options(parser)
    add("--log-format", choices=logs.FORMATS, default="text")
    add("--log-level", choices=logs.LEVELS, default="info")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; the exit status."""
    try:
        http, spans = http_config(options), otlp.endpoint(options)
    except ValueError as error:
        complain(error)
        return 2
    contradiction = _contradiction(options)
    if contradiction is not None:
        complain(contradiction)
        return 2
    logs.configure(options.log_format, options.log_level, actor="replica")
    config = ReplicaConfig(
        plan=_plan(options),
        host=options.host,
        port=options.port,
        server_name=options.server_name,
        transport=options.transport,
        limits=Limits(max_message_bytes=options.message_limit * MIB),
        drain_timeout=options.drain_timeout,
        client_shared_memory=not options.no_client_shared_memory,
        link=_link(options),
        http=http,
        otlp=spans,
    )
    try:
        trio.run(_serve, config)
    except (StartError, CannotListen, PermissionError) as error:
        complain(error)
        return 1
    except RestartIntensityExceeded as error:
        while isinstance(error.__cause__, RestartIntensityExceeded):
            error = error.__cause__
        complain(f"the replica can't go on: {error}")
        return 3
    return 0


def _contradiction(options: argparse.Namespace) -> str | None:
    """Which options make no sense together."""
    both = sorted(set(options.caps or ()) & set(options.on_demand))
    if both:
        return f"--caps and --on-demand both name {', '.join(both)}"
    if options.in_process:
        if not options.app:
            return "--in-process is for your apps: --app is missing"
        if options.workers != 1:
            return "--in-process and --workers exclude each other: there are no worker processes"
        if options.python != sys.executable:
            return "--in-process and --python exclude each other: there are no worker processes"
    if options.scheduler is None:
        if options.advertise is not None or options.replica_id:
            return "--advertise and --replica-id are for a scheduler: --scheduler is missing"
    elif options.advertise is None and options.host in _ANY_HOST:
        return f"the scheduler can't call {options.host}: --advertise is missing"
    return None


def _link(options: argparse.Namespace) -> LinkConfig | None:
    if options.scheduler is None:
        return None
    return LinkConfig(options.scheduler, options.advertise, options.replica_id)


def _plan(options: argparse.Namespace) -> Plan:
    common = {"log_format": options.log_format, "log_level": options.log_level}
    apps = [
        AppSpec(
            name=_app_name(given, options.app[:index]),
            target=given.target,
            options=given.options,
            python=options.python,
            workers=options.workers,
            in_process=options.in_process,
            **common,
        )
        for index, given in enumerate(options.app)
    ]
    builtins = {
        name: AppSpec(
            name=name,
            target=target,
            options={"model": options.model} if options.model and name == "decode" else {},
            workers=options.workers,
            **common,
        )
        for name, target in BUILTINS.items()
    }
    wanted = options.caps
    if wanted is None and not apps:
        wanted = tuple(name for name in BUILTINS if name not in options.on_demand)
    return Plan(apps, builtins, wanted, options.on_demand)


def _app_name(given: AppArgument, before: Sequence[AppArgument]) -> str:
    """What an app's workers are called: its module's last word, numbered where it comes again."""
    name = _last_word(given) or "app"
    same = sum(_last_word(other) == name for other in before)
    return f"{name}{same + 1}" if same else name


def _last_word(given: AppArgument) -> str:
    return given.target.partition(":")[0].rpartition(".")[2]


async def _serve(config: ReplicaConfig) -> None:
    began = time.monotonic()
    loading = config.plan.wanted or [app.target for app in config.plan.apps]
    say(f"anyserve {__version__}: loading {', '.join(loading) or 'nothing yet'}")
    replica = Replica(config)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            signals = _Signals(replica)
            await nursery.start(signals.run)
            with signals.scope:
                async with replica.running():
                    collector.settle()
                    heap.settle()
                    _announce(replica, time.monotonic() - began)
                    signals.serving = True
                    await signals.stopping.wait()
                    say(f"draining: {replica.dispatcher.in_flight} requests in flight")
                    await replica.drain()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = innermost(group)
    if failure is not None:
        raise failure
    say("stopped")


class _Signals:
    """The first signal drains, or gives up loading; the second stops at once."""

    def __init__(self, replica: Replica) -> None:
        self.stopping = trio.Event()
        """Set by the first signal."""
        self.scope = trio.CancelScope()
        """Around the replica's life."""
        self.serving = False
        """Whether it has loaded, so that there is something to drain."""
        self._replica = replica

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take signals until cancelled."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.stopping.is_set():
                    self._replica.kill_workers()
                    self.scope.cancel()
                    await trio.sleep(_LAST_WAIT)
                    # A handler in this process does not end, and nothing else ends it.
                    say("stopped while handlers still ran")
                    os._exit(0)
                elif not self.serving:
                    say("stopping")
                    self.scope.cancel()
                self.stopping.set()


def _announce(replica: Replica, seconds: float) -> None:
    offers = [p.offer for p in replica.dispatcher.pools if p.state is State.READY]
    if replica.http_address is not None:
        say(f"HTTP on {replica.http_address}")
    say(f"ready in {seconds:.1f} s on {replica.address}")
    for offer in offers:
        say(f"  {offer.capability}")
    for pool in replica.dispatcher.pools:
        if pool.on_demand:
            say(f"  {pool.offer.capability}, on demand")
    say(f"try: {_command()} infer {replica.address} {_example(offers)}")


def _command() -> str:
    """How this program is called from the shell that started it."""
    if "UV" in os.environ:
        return "uv run anyserve"
    return "anyserve" if shutil.which("anyserve") else f"{sys.executable} -m anyserve"


def _example(offers: Sequence[Offer]) -> str:
    """Arguments that get a first answer."""
    if not offers:
        return "CAPABILITY"
    names = [offer.name for offer in offers]
    if "decode" in names:
        return "decode text_input='The capital of France is' max_tokens=16"
    offer = offers[0]
    values = [
        f"{spec.name}={'hello' if spec.datatype == 'BYTES' else '1'}"
        for spec in offer.inputs
        if not spec.optional
    ]
    return " ".join([offer.name, *values])
