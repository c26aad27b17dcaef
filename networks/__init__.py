"""Networks beside the papers' own: other backbones, and small ones that learn on a laptop."""
