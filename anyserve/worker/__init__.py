"""The worker: a child process that loads an app and runs its handlers."""
