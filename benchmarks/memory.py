"""The memory of an idle replica with one echo worker, by process."""

from __future__ import annotations

from benchmarks import proc, servers
from benchmarks.tables import number, table

_MIB = 1 << 20


def run() -> None:
    """Print the table. Pages that other programs use too count in part: PSS divides them."""
    with servers.replica("--app", "examples.echo:app") as server:
        taken = {name: proc.memory(pid) for name, pid in server.processes.items()}
    taken["together"] = proc.Memory(
        pss=sum(memory.pss for memory in taken.values()),
        private=sum(memory.private for memory in taken.values()),
    )
    rows = [
        [name, number(memory.pss / _MIB), number(memory.private / _MIB)]
        for name, memory in taken.items()
    ]
    print(table(["", "PSS MiB", "private MiB"], rows))
