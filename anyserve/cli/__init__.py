"""The `anyserve` command, with a module for each of its own commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from anyserve import __version__
from anyserve.cli import ask, explain, fleet, replica, scheduler, trace, tree


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status.

    0: done. 1: it could not be done (the reason is on standard error, in one line). 2: the command
    line makes no sense. 3: a replica that ran could not go on.
    """
    parser = argparse.ArgumentParser(
        prog="anyserve",
        description="A capability-oriented serving runtime for large language models.",
        epilog="`anyserve COMMAND --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"anyserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    replica.add_command(commands)
    scheduler.add_command(commands)
    ask.add_commands(commands)
    tree.add_command(commands)
    trace.add_command(commands)
    fleet.add_command(commands)
    explain.add_command(commands)
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == [scheduler.NAME]:
        scheduler.run(arguments[1:])
    command = commands.choices.get(arguments[0]) if arguments else None
    if command is None:
        options = parser.parse_args(arguments)  # help, or what is wrong
    else:
        # A parser with commands has them read lists in one piece only, with no option between.
        options = command.parse_intermixed_args(arguments[1:])
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
