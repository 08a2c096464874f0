"""A run: its training, its folder and its checkpoints."""
