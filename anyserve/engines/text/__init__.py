"""Text from a local GGUF model through llama.cpp, as a Trio-native engine."""

from anyserve.engines.text.deltas import Delta, Usage
from anyserve.engines.text.engine import TextEngine
from anyserve.engines.text.prompts import Message
from anyserve.engines.text.sampling import Sampling
from anyserve.engines.text.settings import TextSettings

__all__ = ["Delta", "Message", "Sampling", "TextEngine", "TextSettings", "Usage"]
