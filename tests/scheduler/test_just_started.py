"""A scheduler that has just started does not say that what it has not heard of is nowhere."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

STARTED = "the scheduler has just started, and replicas have "


def refusal(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    """The status that a call fails with, and what it says."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def test_what_no_replica_has_offered_yet_may_still_come(
    start_scheduler: Any, ask_http: Any
) -> None:
    scheduler = start_scheduler(0, "--http", "0", "--lease", "60")
    with InferenceServerClient(scheduler.address) as client:
        for ask in (
            client.get_model_metadata,
            client.get_model_config,
            client.get_inference_statistics,
            client.load_model,
            client.unload_model,
        ):
            status, message = refusal(ask, "item")
            assert (status, STARTED in message) == ("UNAVAILABLE", True), ask
        status, message = refusal(client.infer, "item", [])
        assert (status, STARTED in message) == ("UNAVAILABLE", True)
        assert not client.is_model_ready("item")
    chat = {"model": "small", "messages": [{"role": "user", "content": "Hi"}]}
    for path, body in (
        ("/v2/models/item/infer", {"inputs": []}),
        ("/v2/models/item", None),
        ("/v1/models/small", None),
        ("/v1/chat/completions", chat),
    ):
        status, message = ask_http(scheduler.http, path, body)
        assert (status, STARTED in message) == (503, True), path


def test_after_a_lease_it_knows_what_is_nowhere(
    start_scheduler: Any, settled: Any, ask_http: Any
) -> None:
    scheduler = start_scheduler(0, "--http", "0")
    settled(scheduler.address)
    with InferenceServerClient(scheduler.address) as client:
        assert refusal(client.infer, "item", [])[0] == "NOT_FOUND"
        assert refusal(client.get_inference_statistics, "item")[0] == "INVALID_ARGUMENT"
    assert ask_http(scheduler.http, "/v1/models/small")[0] == 404


def test_a_scheduler_that_starts_again_waits_for_the_replicas_of_the_one_before(
    start_scheduler: Any, start_replica: Any, eventually: Any
) -> None:
    before = start_scheduler()
    replica = start_replica(
        "--app", "variants:first", "--in-process", "--scheduler", before.address
    )
    with InferenceServerClient(before.address) as client:
        eventually(lambda: client.is_model_ready("left"))
        assert client.get_model_metadata("left").name == "left"
    replica.process.send_signal(signal.SIGSTOP)
    before.kill()
    after = start_scheduler(before.port, "--lease", "60")
    with InferenceServerClient(after.address) as client:
        assert refusal(client.get_model_metadata, "left")[0] == "UNAVAILABLE"
        replica.process.send_signal(signal.SIGCONT)
        eventually(lambda: client.is_model_ready("left"))
        assert client.get_model_metadata("left").name == "left"
