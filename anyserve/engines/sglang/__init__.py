"""SGLang as an engine: a server that runs already, or one that the worker starts and owns."""
