"""What Linux counts for a process and its children: CPU time and memory."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import attrs

_CPUCLOCK_SCHED = 2


@attrs.frozen
class Memory:
    """What a process takes, in bytes."""

    pss: int
    """Its own pages, and its share of those that other processes have too."""
    private: int
    """Its own pages alone: what ending it would free."""
    shared: Mapping[str, int]
    """Pages that some other process has too, by what is mapped there."""


def family(pid: int) -> dict[str, int]:
    """The process ids of `pid` and its descendants by name, parents first.

    A name is the last word of the module that runs, numbered where it comes again.
    """
    found: dict[str, int] = {}
    waiting = [pid]
    while waiting:
        process = waiting.pop(0)
        name = _name(process)
        same = sum(other.split(" ")[0] == name for other in found)
        found[f"{name} {same + 1}" if same else name] = process
        for task in Path(f"/proc/{process}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, of all its threads, to the nanosecond."""
    # clock_getcpuclockid(3), which Python lacks, makes the clock's number so.
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def kernel_seconds(pid: int) -> float:
    """The part of `cpu_seconds` that the kernel used, to 10 ms."""
    # The name in parentheses may have spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> Memory:
    """What a process takes now."""
    pss = private = 0
    shared: Counter[str] = Counter()
    mapped = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *values = line.split()
        size = int(values[0]) * 1024 if values[1:] == ["kB"] else 0
        if not name.endswith(":"):
            # A range of addresses, its rights, and the file.
            mapped = " ".join((values[0], *values[4:]))
        elif name == "Pss:":
            pss += size
        elif name.startswith("Private_"):
            private += size
        elif name.startswith("Shared_"):
            shared[mapped] += size
    return Memory(pss, private, shared)


def alone(taken: Collection[Memory]) -> int:
    """What these processes would take with no others beside them: shared pages count once."""
    together: Counter[str] = Counter()
    for each in taken:
        together |= Counter(each.shared)
    return sum(each.private for each in taken) + together.total()


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    module = words[words.index("-m") + 1] if "-m" in words else words[0]
    return module.rpartition(".")[2].rpartition("/")[2]
