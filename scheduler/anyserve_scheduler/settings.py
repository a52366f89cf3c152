"""The scheduler's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from anyserve import logs
from anyserve.cli.arguments import count, port, seconds
from anyserve.http.settings import add_options as add_http_options
from anyserve.http.settings import http_config
from anyserve.otlp import settings as otlp
from anyserve.transport.rpc import MIB, Limits
from anyserve.transport.wires import WIRES
from anyserve_scheduler.demand import DemandTerms
from anyserve_scheduler.gateway.ways import LOAD_WAIT
from anyserve_scheduler.registration import LeaseTerms
from anyserve_scheduler.scheduler import DEFAULT_PORT, SchedulerConfig

_DESCRIPTION = """\
Keep the fleet: replicas that are started with --scheduler register here, and report what they
offer at which load.
"""
_EXAMPLES = """\
examples:
  anyserve scheduler
  anyserve replica --port 8001 --scheduler 127.0.0.1:8000 --caps decode
  anyserve fleet 127.0.0.1:8000 --watch

A request that needs what no replica has loaded, and one has on demand, waits for it: until its
deadline, or for --load-wait where it has none; with --load-wait 0 none waits.

A replica that is silent for --interval and half a second more is suspect, and out after --lease.
SIGTERM or Ctrl-C: requests in flight may end within --drain-timeout, new ones are refused. Its
replicas serve on, and register again with the next one. A second signal stops at once.
"""
_DEFAULTS = LeaseTerms()
_DEMAND = DemandTerms()
_SHORTEST = 0.01
_LONGEST = 86_400.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, those of the process where `arguments` is None.

    Its `config` is the scheduler's. Exits with a line that says why where they make no sense.
    """
    parser = argparse.ArgumentParser(
        prog="anyserve scheduler",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", type=port, default=DEFAULT_PORT, help=f"port to listen on ({DEFAULT_PORT})")
    add(
        "--lease",
        type=seconds,
        default=_DEFAULTS.lease,
        metavar="SECONDS",
        help=f"a replica that is silent for as long is out ({_DEFAULTS.lease:g})",
    )
    add(
        "--interval",
        type=seconds,
        default=_DEFAULTS.interval,
        metavar="SECONDS",
        help=f"how often replicas report ({_DEFAULTS.interval:g})",
    )
    add(
        "--load-wait",
        type=seconds,
        default=LOAD_WAIT,
        metavar="SECONDS",
        help=f"how long a request waits for what is on demand ({LOAD_WAIT:g}); see below",
    )
    add(
        "--on-demand-room",
        type=count,
        default=_DEMAND.room,
        metavar="N",
        help=f"capabilities on demand that a replica has loaded at once ({_DEMAND.room})",
    )
    add(
        "--on-demand-idle",
        type=seconds,
        default=_DEMAND.idle,
        metavar="SECONDS",
        help=f"without requests, after which one may make room ({_DEMAND.idle:g})",
    )
    add(
        "--on-demand-cooldown",
        type=seconds,
        default=_DEMAND.cooldown,
        metavar="SECONDS",
        help=f"between orders to one replica ({_DEMAND.cooldown:g})",
    )
    add("--drain-timeout", type=seconds, default=30.0, metavar="SECONDS", help="see below (30)")
    add("--message-limit", type=count, default=256, metavar="MIB", help="largest message (256)")
    add("--transport", choices=WIRES, default=WIRES[0], help=f"what carries calls ({WIRES[0]})")
    add_http_options(parser, port)
    otlp.add_options(parser)
    add("--log-format", choices=logs.FORMATS, default="text")
    add("--log-level", choices=logs.LEVELS, default="info")
    options = parser.parse_args(arguments)
    if options.interval < _SHORTEST or options.lease > _LONGEST:
        parser.error(f"--interval is {_SHORTEST:g} or more, and --lease {_LONGEST:g} or less")
    try:
        http, spans = http_config(options), otlp.endpoint(options)
        terms = LeaseTerms(options.lease, options.interval)
    except ValueError as error:
        parser.error(str(error))
    options.config = SchedulerConfig(
        host=options.host,
        port=options.port,
        transport=options.transport,
        limits=Limits(max_message_bytes=options.message_limit * MIB),
        terms=terms,
        demand=DemandTerms(
            room=options.on_demand_room,
            idle=options.on_demand_idle,
            cooldown=options.on_demand_cooldown,
        ),
        load_wait=options.load_wait,
        drain_timeout=options.drain_timeout,
        http=http,
        otlp=spans,
    )
    return options
