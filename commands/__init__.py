"""What `python simplehand.py PICTURE` does, and the same for genhmr.py and hmr_adapter.py."""
