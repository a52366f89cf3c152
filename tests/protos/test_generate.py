"""The generated package is what the compiler makes of the .proto files, and stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[2] / "protos" / "generate.py"


def test_regenerating_changes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_messages_and_their_codec_need_neither_a_grpc_stack_nor_googles_protobuf() -> None:
    code = (
        "import sys, anyserve_protos.infer_wire, anyserve_protos.descriptors\n"
        "import anyserve_protos.grpc.health.v1, anyserve_protos.anyserve.v1\n"
        "heavy = {'grpclib', 'h2', 'hpack', 'grpc', 'google', 'asyncio', 'trio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
