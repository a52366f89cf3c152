"""A client whose tensors never travel by gRPC: Triton's system shared memory.

anyserve replica --app examples.echo:app
python examples/shared_memory.py [ADDRESS]
"""

from __future__ import annotations

import os
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm


def main(address: str = "127.0.0.1:8001") -> np.ndarray:
    """Echo 4 MiB through regions of this process; what came back."""
    sent = np.arange(1 << 20, dtype=np.float32)
    region = f"example-{os.getpid()}"
    memory = shm.create_shared_memory_region(region, f"/{region}", 2 * sent.nbytes)
    try:
        shm.set_shared_memory_region(memory, [sent])
        with triton.InferenceServerClient(address) as client:
            client.register_system_shared_memory(region, f"/{region}", 2 * sent.nbytes)
            try:
                tensor = triton.InferInput("INPUT0", list(sent.shape), "FP32")
                tensor.set_shared_memory(region, sent.nbytes)
                output = triton.InferRequestedOutput("OUTPUT0")
                output.set_shared_memory(region, sent.nbytes, offset=sent.nbytes)
                client.infer("echo", [tensor], outputs=[output])
            finally:
                client.unregister_system_shared_memory(region)
        received: np.ndarray = shm.get_contents_as_numpy(
            memory, np.float32, list(sent.shape), offset=sent.nbytes
        ).copy()
    finally:
        shm.destroy_shared_memory_region(memory)
    print(f"{received.nbytes} bytes came back, equal: {np.array_equal(sent, received)}")
    return received


if __name__ == "__main__":
    main(*sys.argv[1:])
