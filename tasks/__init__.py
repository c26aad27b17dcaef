"""What train.py must know of each paper (base, simplehand, genhmr, hmr_adapter), and what
the loop stands on: processes (ranks), files of a run (files), fields of a config (settings)."""
