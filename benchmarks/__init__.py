"""What is measured: `python -m benchmarks NAME` (see `__main__.py`)."""
