# /// script
# requires-python = "==3.11.*"
# dependencies = ["nvidia-pytriton==0.7.0", "numpy==1.26.4"]
# ///
"""Triton, its C++ server and Python backend, with the echo and the streams.

`python -m benchmarks.peers.triton PORT` becomes the server in the `nvidia-pytriton` wheel, whose
Python backend runs each model of `triton_models` in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

_MODELS = Path(__file__).parent / "triton_models"


def main() -> None:
    """Become the server."""
    # Found without an import, which would bring all of PyTriton into the process.
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    server = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The wheel has a stub for each Python, and the backend looks for one beside itself.
    stub = Path("python_backend_stubs", python, "triton_python_backend_stub")
    shutil.copy(server / stub, server / "backends" / "python" / stub.name)
    os.environ["LD_LIBRARY_PATH"] = str(package.parent / "nvidia_pytriton.libs")
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ["PYTHONPATH"] = str(Path.cwd())
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    options = {
        "model-repository": _MODELS,
        "backend-directory": server / "backends",
        "grpc-address": "127.0.0.1",
        "grpc-port": sys.argv[1],
        "allow-http": "false",
        "allow-metrics": "false",
    }
    binary = server / "bin" / "tritonserver"
    os.execv(binary, [binary.name, *(f"--{name}={value}" for name, value in options.items())])


if __name__ == "__main__":
    main()
