"""`/metrics`: what the process counts, for Prometheus."""
