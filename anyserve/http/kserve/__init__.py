"""KServe v2 over REST, with Triton's extensions: binary tensors, generate, repository, memory."""
