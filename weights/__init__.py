"""Open checkpoints: train.py's, the authors' releases, and weights of other projects' backbones."""
