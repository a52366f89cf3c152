"""What is built in: the apps that a replica serves without any of the user's own."""

from anyserve.engines.errors import CannotLoad

BUILTINS = {
    "decode": "anyserve.engines.text.app:create_app",
    "embedding": "anyserve.engines.embedding.app:create_app",
}
"""The app, as `module:attribute`, behind each built-in capability. Nothing is imported for it."""

__all__ = ["BUILTINS", "CannotLoad"]
