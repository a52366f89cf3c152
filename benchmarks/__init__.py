"""What AnyServe costs, measured beside others in the same run: `python -m benchmarks --help`."""
