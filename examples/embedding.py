"""A client that compares sentences by their embeddings.

anyserve replica --caps embedding
python examples/embedding.py [ADDRESS]
"""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.grpc as triton

SENTENCES = ["A cat sat on the mat.", "A kitten rests on a rug.", "Shares fell on Monday."]


def main(address: str = "127.0.0.1:8001") -> np.ndarray:
    """Print how similar each pair of sentences is; the matrix of cosines."""
    texts = triton.InferInput("text_input", [len(SENTENCES)], "BYTES")
    texts.set_data_from_numpy(np.array([s.encode() for s in SENTENCES], dtype=np.object_))
    with triton.InferenceServerClient(address) as client:
        vectors = client.infer("embedding", [texts]).as_numpy("embedding")
    assert vectors is not None
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines: np.ndarray = vectors @ vectors.T
    for i, first in enumerate(SENTENCES):
        for j in range(i + 1, len(SENTENCES)):
            print(f"{cosines[i, j]:.2f}  {first}  |  {SENTENCES[j]}")
    return cosines


if __name__ == "__main__":
    main(*sys.argv[1:])
