"""Request ids of any length: whole in the answer, cut in logs and on the worker link."""

from __future__ import annotations

import pytest

from anyserve.client import open_client
from anyserve.link import frames


@pytest.mark.parametrize("identity", ["", "a", "ü" * 300, "x" * 100_000])
async def test_an_id_of_any_length_is_served(replica, identity: str) -> None:
    async with open_client(replica.address) as client:
        response = await client.infer("about", {"x": [1]}, request_id=identity)
    named = response.outputs["id"][0].decode()
    assert named.startswith(identity[:100])
    assert len(named) < 120
    assert len(named.encode()) < frames.LEASE_THRESHOLD
