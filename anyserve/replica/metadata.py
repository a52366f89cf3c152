"""From what a handler declares to KServe's metadata, Triton's configuration and statistics."""

from __future__ import annotations

from collections.abc import Iterable

from anyserve_protos.inference import (
    DataType,
    InferStatistics,
    ModelConfig,
    ModelInput,
    ModelMetadataResponse,
    ModelMetadataResponseTensorMetadata,
    ModelOutput,
    ModelParameter,
    ModelSequenceBatching,
    ModelStatistics,
    ModelTransactionPolicy,
    StatisticDuration,
)

from anyserve.offers import Offer, TensorSpec
from anyserve.replica.pool import Pool
from anyserve.replica.statistics import Total

PLATFORM = "anyserve"

_CONFIG_TYPES = {"BYTES": DataType.TYPE_STRING}


def model_metadata(offer: Offer) -> ModelMetadataResponse:
    """KServe's ModelMetadata: shapes carry the batch dimension as -1."""

    def tensors(specs: Iterable[TensorSpec]) -> list[ModelMetadataResponseTensorMetadata]:
        batch = [-1] if offer.max_batch_size else []
        return [
            ModelMetadataResponseTensorMetadata(
                name=spec.name, datatype=spec.datatype, shape=[*batch, *spec.shape]
            )
            for spec in specs
        ]

    return ModelMetadataResponse(
        name=offer.name,
        versions=[offer.version],
        platform=PLATFORM,
        inputs=tensors(offer.inputs),
        outputs=tensors(offer.outputs),
    )


def model_config(offer: Offer) -> ModelConfig:
    """Triton's model configuration: dims leave the batch dimension out."""
    config = ModelConfig(
        name=offer.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=offer.max_batch_size,
        input=[
            ModelInput(
                name=spec.name,
                data_type=_config_type(spec),
                dims=list(spec.shape),
                optional=spec.optional,
            )
            for spec in offer.inputs
        ],
        output=[
            ModelOutput(name=spec.name, data_type=_config_type(spec), dims=list(spec.shape))
            for spec in offer.outputs
        ],
        model_transaction_policy=ModelTransactionPolicy(decoupled=offer.decoupled),
        parameters={
            key: ModelParameter(string_value=str(value))
            for key, value in offer.capability.attributes.items()
        },
    )
    if offer.sequence:
        config.sequence_batching = ModelSequenceBatching(
            max_sequence_idle_microseconds=int(offer.sequence_idle * 1e6)
        )
    return config


def _config_type(spec: TensorSpec) -> DataType:
    return _CONFIG_TYPES.get(spec.datatype) or DataType[f"TYPE_{spec.datatype}"]


def model_statistics(pool: Pool) -> ModelStatistics:
    """Triton's statistics of one model: counts of requests, durations in ns."""
    statistics = pool.statistics
    return ModelStatistics(
        name=pool.offer.name,
        version=pool.offer.version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.inferences,
        execution_count=statistics.success.count,
        inference_stats=InferStatistics(
            success=_duration(statistics.success),
            fail=_duration(statistics.fail),
            queue=_duration(statistics.queue),
            compute_input=StatisticDuration(),
            compute_infer=_duration(statistics.compute),
            compute_output=StatisticDuration(),
        ),
    )


def _duration(total: Total) -> StatisticDuration:
    return StatisticDuration(count=total.count, ns=total.ns)
