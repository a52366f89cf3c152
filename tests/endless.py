"""A test that does not end by itself, for `test_leash`."""

from __future__ import annotations

import signal
import sys
from typing import Any


def test_it_waits_for_a_signal(replica: Any) -> None:
    sys.stdout.write(f"serves by {replica.process.pid}\n")
    sys.stdout.flush()
    signal.pause()
