"""Looking into a live replica or scheduler, over a Unix socket of its user's alone."""
