"""Inference with trained networks, on arrays and pictures."""
