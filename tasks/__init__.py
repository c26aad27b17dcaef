"""What train.py must know of each paper."""
