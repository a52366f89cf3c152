"""What a replica and a worker leave out of their memory: whole packages that others need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from anyserve.client import open_client

LEFT_OUT = {
    "anyserve.cli": {
        *("numpy", "anyserve.client", "anyserve.tensors", "anyserve.worker"),
        *(
            "trio_asyncio",
            "google",
            "httptools",
            "msgspec",
            "prometheus_client",
            "opentelemetry",
            "anyserve.http.server",
        ),
    },
    "anyserve.worker.__main__": {
        *("betterproto2", "anyserve_protos.inference", "anyserve_protos.codec"),
        *("anyserve.transport", "anyserve.replica", "ngh2", "grpclib", "multidict"),
        *("numpy.random", "numpy.ma", "numpy.polynomial", "ml_dtypes"),
    },
}


@pytest.mark.parametrize("module", LEFT_OUT)
def test_a_process_loads_nothing_that_only_others_need(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(done.stdout.split())
    assert "trio" in loaded
    assert loaded & LEFT_OUT[module] == set()


def mapped(pid: int) -> str:
    """The files that a process has in its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


async def test_a_replica_that_has_served_tensors_has_still_no_numpy(replica: Any) -> None:
    value = np.arange(100_000, dtype=np.int64)
    with trio.fail_after(30):
        async with open_client(replica.address) as client:
            response = await client.infer("echo", {"INPUT0": value})
    assert np.array_equal(response.outputs["OUTPUT0"], value)
    assert "numpy" not in mapped(replica.process.pid)
