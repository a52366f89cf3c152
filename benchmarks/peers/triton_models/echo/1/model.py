"""The echo in Triton's Python backend."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the backend looks for."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response to each of the requests that have gathered."""
        return [pb.InferenceResponse([_echo(tensor) for tensor in r.inputs()]) for r in requests]


def _echo(tensor: Any) -> Any:
    return pb.Tensor(tensor.name().replace("INPUT", "OUTPUT"), tensor.as_numpy())
