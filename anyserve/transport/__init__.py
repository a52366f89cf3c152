"""gRPC on Trio: services, what carries them, and the channel to call them with."""
