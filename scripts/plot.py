"""Draw learning curves: `python scripts/plot.py runs/gap-seed0 runs/dropout-seed0`.

Runs may be finished or in training. Several seeds are drawn as their mean and range.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.plot` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import Command, add_debug_option, run_main, user_path

from jaxmnist.analysis.plots.curves import curves
from jaxmnist.analysis.plots.style import save
from jaxmnist.config import ConfigError
from jaxmnist.inference.pretrained import OUTPUT, is_pretrained, load_pretrained
from jaxmnist.runs import run_folder
from jaxmnist.runs.summary import Row


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        print(run(arguments))
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        type=user_path,
        metavar="RUN",
        help="a run's folder, or the name of a pretrained network",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        help="the output file, PNG or SVG; by default curves.png in the first RUN",
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> Path:
    """Draw the curves; return the path of the output file."""
    out = arguments.out or default_out(arguments.runs[0])
    if out.suffix not in (".png", ".svg"):
        raise ConfigError(f"out is {out}; expected a name that ends with .png or .svg")
    rows = {str(path): rows_of(path) for path in arguments.runs}
    empty = [name for name, of_run in rows.items() if not of_run]
    if empty:
        raise ConfigError(f"{empty[0]} has no finished epoch yet; there is nothing to draw")
    held_out = [str(path) for path in arguments.runs if is_held_out(path)]
    save(lambda: curves(rows, held_out), out, ", ".join(rows))
    return out


def default_out(path: Path) -> Path:
    """Return the path of the plot of a run; make the folder for that of a pretrained network."""
    if not is_pretrained(path):
        return path / run_folder.CURVES
    OUTPUT.mkdir(parents=True, exist_ok=True)
    return OUTPUT / run_folder.CURVES


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a run, which may be training, or of a pretrained network."""
    if is_pretrained(path):
        return load_pretrained(str(path)).rows
    return run_folder.read_rows(path)


def is_held_out(path: Path) -> bool:
    """Return whether a run was tested on images held out of the training set."""
    # Curves need no config. If it is unreadable, the images are called test images.
    with contextlib.suppress(ConfigError, OSError):
        return run_folder.read_config(path).config.holdout is not None
    return False


if __name__ == "__main__":
    sys.exit(run_main(main))
