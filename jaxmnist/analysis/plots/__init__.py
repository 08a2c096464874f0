"""Figures, readable in black and white and by the colour-blind."""

import contextlib
import os

# Matplotlib cannot be imported while MPLBACKEND names a backend that is not installed, as that of a
# notebook. Figures here need none.
backend = os.environ.pop("MPLBACKEND", None)
import matplotlib  # noqa: E402

if backend:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend
