"""Which wire a replica serves on, and what each brings along."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import trio

from anyserve.client import open_client

HEAVY = {"asyncio", "trio_asyncio", "h2", "hpack", "hyperframe", "grpclib.protocol"}


def test_nothing_of_asyncio_is_loaded_for_the_default_wire():
    script = (
        "import sys, anyserve.cli.replica, anyserve.cli, anyserve.client\n"
        f"found = {HEAVY!r} & {{name for name in sys.modules}}\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("name", ["trio", "grpclib"])
async def test_a_replica_serves_on_either_wire(start_replica: Any, name: str):
    replica = start_replica("--app", "behaviours:app", "--transport", name)
    value = np.arange(6, dtype=np.float32)
    with trio.fail_after(30):
        async with open_client(replica.address) as client:
            response = await client.infer("echo", {"INPUT0": value})
    assert response.outputs["OUTPUT0"].tolist() == value.tolist()
    assert replica.stop() == 0
