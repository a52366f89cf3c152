"""The worker link: frames between a replica and its workers over a Unix socket pair."""
