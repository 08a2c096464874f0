"""Digits read by trained networks, from arrays and from pictures."""
