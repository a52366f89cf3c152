"""`anyserve scheduler`: the same as `python -m anyserve_scheduler`.

The scheduler is a layer above this package, which must not import it: its module is run in the
place of this process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

NAME = "scheduler"


def add_command(commands: Any) -> None:
    """Add `scheduler` to the help; its options are its own, and `run` gets them unread."""
    commands.add_parser(NAME, help="route a fleet's requests", add_help=False)


def run(arguments: Sequence[str]) -> NoReturn:
    """Become the scheduler."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "anyserve_scheduler", *arguments])
