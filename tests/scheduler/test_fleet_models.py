"""A fleet with real models: every door answers for every capability, whoever has it."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

DOORS = ("scheduler", "embedder", "decoder")


@attrs.frozen
class Fleet:
    """A scheduler, a replica with `embedding` only, and one with `decode` only."""

    addresses: dict[str, str]

    def client(self, door: str) -> InferenceServerClient:
        return InferenceServerClient(self.addresses[door])


@pytest.fixture
def fleet(start_scheduler: Any, start_replica: Any, eventually: Any) -> Fleet:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, "--replica-id")
    embedder = start_replica("--caps", "embedding", *to, "embedder")
    decoder = start_replica("--caps", "decode", *to, "decoder")
    with InferenceServerClient(scheduler.address) as client:
        eventually(lambda: client.is_model_ready("decode") and client.is_model_ready("embedding"))
    return Fleet(
        {
            "scheduler": scheduler.address,
            "embedder": embedder.address,
            "decoder": decoder.address,
        }
    )


def text(value: str) -> InferInput:
    tensor = InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def decoded(client: InferenceServerClient) -> bytes:
    result = client.infer(
        "decode",
        [text("The capital of France is")],
        parameters={"max_tokens": 8, "temperature": 0.0},
        client_timeout=60,
    )
    answer: bytes = result.as_numpy("text_output")[0]
    return answer


def test_every_door_answers_both_capabilities(fleet: Fleet) -> None:
    vectors = []
    for door in DOORS:
        with fleet.client(door) as client:
            assert b"Paris" in decoded(client), door
            result = client.infer("embedding", [text("a cat sat on the mat")], client_timeout=60)
            vectors.append(result.as_numpy("embedding"))

    assert vectors[0].any()
    assert all(np.array_equal(vector, vectors[0]) for vector in vectors)
