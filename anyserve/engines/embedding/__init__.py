"""Sentence embeddings on the CPU, texts of all requests encoded together."""

from anyserve.engines.embedding.batcher import Batcher
from anyserve.engines.embedding.engine import EmbeddingEngine

__all__ = ["Batcher", "EmbeddingEngine"]
