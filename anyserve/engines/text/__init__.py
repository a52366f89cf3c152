"""Text from a local GGUF model through llama.cpp, as a Trio-native engine."""

from anyserve.engines.text.engine import TextEngine
from anyserve.engines.text.settings import TextSettings

__all__ = ["TextEngine", "TextSettings"]
