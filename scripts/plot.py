"""Draws learning curves: `python scripts/plot.py runs/gap-seed0 runs/dropout-seed0`.

Of one run or many, finished or in training; of several seeds the mean and the range.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.plot` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # Ctrl-C ends it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from support.command import failed, run_main, user_path

from jaxmnist.analysis.plots.curves import curves
from jaxmnist.analysis.plots.style import save
from jaxmnist.config import ConfigError, SeedsConfig
from jaxmnist.runs import run_folder


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    try:
        print(run(arguments))
        return 0
    except Exception as error:
        return failed(error, arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=user_path,
        metavar="RUN",
        help="a run's folder, or that of many seeds",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        help="the picture, PNG or SVG; by default curves.png in the first RUN",
    )
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Path:
    """Draws the curves; returns the picture."""
    out = arguments.out or arguments.runs[0] / run_folder.CURVES
    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"out is {out}; expected a name that ends with .png or .svg")
    rows = {str(path): run_folder.read_rows(path / run_folder.METRICS) for path in arguments.runs}
    empty = [name for name, of_run in rows.items() if not of_run]
    if empty:
        raise ConfigError(f"{empty[0]} has no finished epoch yet; there is nothing to draw")
    held_out = [str(path) for path in arguments.runs if is_held_out(path)]
    save(lambda: curves(rows, held_out), [out], ", ".join(rows))
    return out


def is_held_out(path: Path) -> bool:
    """Return whether a run was tested on images held out of the training set."""
    # Curves need no config: where it is not readable, the images are called test images.
    with contextlib.suppress(ConfigError, OSError):
        config = run_folder.read_config(path)
        config = config.config if isinstance(config, SeedsConfig) else config
        return config.holdout is not None
    return False


if __name__ == "__main__":
    sys.exit(run_main(main))
