"""A client that streams text from `decode`, with tritonclient as it comes.

anyserve replica --caps decode
python examples/text.py [ADDRESS]
"""

from __future__ import annotations

import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str = "127.0.0.1:8001") -> str:
    """Ask one question and print the answer as it comes; the whole answer."""
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = [_text("messages", json.dumps(messages)), triton.InferInput("stream", [1], "BOOL")]
    inputs[1].set_data_from_numpy(np.array([True]))
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    pieces = []
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "decode",
            inputs,
            enable_empty_final_response=True,
            parameters={"max_tokens": 40, "temperature": 0.0},
        )
        while True:
            result, error = answers.get(timeout=60)
            if error is not None:
                raise error
            assert result is not None
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
            piece = b"".join(result.as_numpy("text_output")).decode()
            print(piece, end="", flush=True)
            pieces.append(piece)
        client.stop_stream()
    print()
    return "".join(pieces)


def _text(name: str, value: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


if __name__ == "__main__":
    main(*sys.argv[1:])
