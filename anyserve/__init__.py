"""AnyServe: a capability-oriented serving runtime for large language models, on Trio."""

from anyserve import errors
from anyserve.app import App
from anyserve.capability import Capability
from anyserve.messages import Context, Request, Response

__version__ = "0.1.0"

__all__ = ["App", "Capability", "Context", "Request", "Response", "errors"]
