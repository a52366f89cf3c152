"""The memory of an idle replica with one echo worker, by process."""

from __future__ import annotations

from benchmarks import proc, servers
from benchmarks.tables import number, table

_MIB = 1 << 20


def run() -> None:
    """Print the table.

    PSS divides pages that other programs use too, such as the interpreter's; what the replica
    would take on a machine where nothing else runs Python is printed beside it.
    """
    with servers.replica("--app", "examples.echo:app") as server:
        taken = {name: proc.memory(pid) for name, pid in server.processes.items()}
    rows = [
        [name, number(memory.pss / _MIB), number(memory.private / _MIB), ""]
        for name, memory in taken.items()
    ]
    together = [
        sum(memory.pss for memory in taken.values()),
        sum(memory.private for memory in taken.values()),
        proc.alone(taken.values()),
    ]
    rows.append(["together", *(number(size / _MIB) for size in together)])
    print(table(["", "PSS MiB", "private MiB", "alone MiB"], rows))
