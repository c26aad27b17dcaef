"""Speed of the papers and rooms: `python -m benchmarks NAME` (see `__main__.py`)."""
