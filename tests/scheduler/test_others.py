"""Replicas whose engines ask servers that others ask too: their requests go where there is room."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from anyserve_protos.anyserve import v1 as pb
from tritonclient.grpc import InferenceServerClient, InferInput


def loads(scheduler: Any) -> dict[str, tuple[int, ...]]:
    """Running, queued and slots of each replica's `decode`, as the scheduler has heard."""
    with grpc.insecure_channel(scheduler.address) as channel:
        ask = channel.unary_unary("/anyserve.v1.Scheduler/Fleet")
        fleet = pb.FleetReply.parse(ask(b"", timeout=10, wait_for_ready=True))
    return {
        replica.replica_id: (offer.usage.running, offer.usage.queued, offer.usage.slots)
        for replica in fleet.replicas
        for offer in replica.offers
        if offer.name == "decode" and offer.usage is not None
    }


def answered(client: InferenceServerClient) -> int:
    [statistics] = client.get_inference_statistics("decode").model_stats
    count: int = statistics.inference_stats.success.count
    return count


@pytest.mark.parametrize("where", [(), ("--in-process",)], ids=["worker", "in process"])
def test_a_server_that_others_keep_busy_gets_nothing_while_another_has_room(
    start_scheduler: Any, start_replica: Any, eventually: Any, where: tuple[str, ...]
) -> None:
    scheduler = start_scheduler()
    to = ("--scheduler", scheduler.address, *where)
    busy = start_replica("--app", "scripted:create_app?others=40", "--replica-id", "a", *to)
    free = start_replica("--app", "scripted:create_app?others=3", "--replica-id", "b", *to)
    eventually(lambda: loads(scheduler) == {"a": (32, 8, 32), "b": (3, 0, 32)})
    prompt = InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"hello"], np.object_))
    with (
        InferenceServerClient(scheduler.address) as door,
        InferenceServerClient(busy.address) as at_busy,
        InferenceServerClient(free.address) as at_free,
    ):
        for _ in range(10):
            door.infer("decode", [prompt])
        assert (answered(at_busy), answered(at_free)) == (0, 10)
        at_busy.infer("decode", [prompt])  # which refuses nobody for that
        assert answered(at_busy) == 1
