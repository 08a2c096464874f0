"""Figures, readable in black and white and by the colour-blind."""
