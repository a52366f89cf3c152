"""Other servers with the same work, each a script with an environment of its own (PEP 723)."""
