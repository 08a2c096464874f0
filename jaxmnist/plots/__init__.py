"""Figures, readable in black and white and by the colour-blind."""

import os

try:
    import matplotlib  # it reads MPLBACKEND when it is imported for the first time
except ValueError:
    # MPLBACKEND names a backend of a notebook that is not installed; figures here need none.
    del os.environ["MPLBACKEND"]
    import matplotlib  # noqa: F401
