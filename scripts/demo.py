"""Writes one HTML file in which one draws digits, and opens it: `python scripts/demo.py`.

While one draws, every network answers, and one of them shows its layers. Without arguments these
are the pretrained networks. The file needs no server, and sends nothing anywhere.
"""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.demo` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import Command, add_common_options, run_main, use_compilation_cache, user_path

from jaxmnist import VARIANTS, data
from jaxmnist.config import ConfigError
from jaxmnist.data.dataset import Dataset
from jaxmnist.data.idx import DataError
from jaxmnist.inference import pretrained
from jaxmnist.inference.predict import DIGITS, check_digits, load_runs
from jaxmnist.page import make_page
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.run import Run

# Default output folders of training and of the drill-down.
FOLDERS = (Path("runs"), Path("docs/runs"))
OUT = Path("runs/demo.html")


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        run(arguments)
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="a run's folder, or the name of a pretrained network; by default all of these. A "
        "page with skeleton has 34 MB",
    )
    parser.add_argument(
        "--drilldown",
        action="store_true",
        help="the newest run of every variant below the folders named, by default "
        f"{' and '.join(map(str, FOLDERS))}",
    )
    parser.add_argument("--out", type=user_path, default=OUT, help=f"the file, by default {OUT}")
    parser.add_argument(
        "--no-browser", dest="browser", action="store_false", help="only write the file"
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Write the page and open it."""
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = runs_of(arguments)
    run_folder.write(out, make_page(runs, images_of(arguments)))
    print(f"{out}: {out.stat().st_size:,} bytes", flush=True)
    if arguments.browser:
        webbrowser.open(out.absolute().as_uri())


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """Return the runs whose networks are shown.

    Raises:
        ConfigError: a run does not exist, is unfinished, or not of digits.
    """
    if arguments.drilldown:
        return newest_of_every_variant([Path(path) for path in arguments.runs] or FOLDERS)
    runs = [run for path in arguments.runs or pretrained.NAMES for run in load_runs(path)]
    check_digits(runs)
    return runs


def images_of(arguments: argparse.Namespace) -> Dataset | None:
    """Return the images of the examples; print a note if there are none."""
    try:
        return data.load(DIGITS, arguments.data_dir, arguments.idx_dir)
    except DataError as error:
        print(f"note: the page has no test images: {error}", file=sys.stderr)
        return None


def newest_of_every_variant(folders: Sequence[Path]) -> list[Run]:
    """Return each variant's newest finished run, in the drill-down's order; skip damaged runs.

    Raises:
        ConfigError: there is no finished run.
    """
    summaries = [file for folder in folders for file in folder.rglob(run_folder.SUMMARY)]
    newest: dict[str, Run] = {}
    for file in sorted(summaries, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            config = run_folder.read_config(file.parent).config
            if config.dataset == DIGITS and config.variant not in newest:
                newest[config.variant] = load_runs(file.parent)[-1]
        except (ConfigError, CheckpointError, OSError) as error:
            print(f"note: passed over: {error}", file=sys.stderr)
    if not newest:
        raise ConfigError(
            f"there is no finished run of {DIGITS} in {' or '.join(map(str, folders))}; "
            "python scripts/drilldown.py trains all seven networks"
        )
    missing = [variant for variant in VARIANTS if variant not in newest]
    if missing:
        print(f"note: there is no finished run of {', '.join(missing)}", file=sys.stderr)
    return [newest[variant] for variant in VARIANTS if variant in newest]


if __name__ == "__main__":
    sys.exit(run_main(main))
