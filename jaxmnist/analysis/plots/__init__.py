"""Plots, readable in black and white and with colour blindness."""

import contextlib
import os

# Matplotlib cannot be imported while MPLBACKEND names a backend that is not installed, such as a
# notebook's. These plots need no backend.
backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
