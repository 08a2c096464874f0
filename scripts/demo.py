"""Opens a page on which one draws a digit: `python scripts/demo.py runs/gap-seed0`.

It shows, while one draws, what the network sees and how sure it is of each digit; with several runs
a column for each. --drilldown takes the newest run of every variant.
"""

import argparse
import signal
import sys
import threading
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Neither `python -m scripts.demo` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # Ctrl-C ends it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from support.command import failed, needing, remember_compiled, run_main

from jaxmnist import VARIANTS, data
from jaxmnist.config import ConfigError
from jaxmnist.data.dataset import Dataset
from jaxmnist.inference.predict import DIGITS, check_digits, load_runs, make_predict
from jaxmnist.recipes import IDEAS
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.run import Run, load_run

if TYPE_CHECKING:
    import socket

    from page.server import Say

# Where training and the drill-down write unless they are told otherwise.
FOLDERS = (Path("runs"), Path("docs/runs"))
# Of the test set: enough to find mistakes in, even of the best network.
IMAGES = 2000
MAX_PORT = 65535


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    try:
        remember_compiled()
        run(arguments)
        return 0
    except Exception as error:
        return failed(error, arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="a run's folder, or that of many seeds"
    )
    parser.add_argument(
        "--drilldown",
        action="store_true",
        help="the newest run of every variant below the folders named, by default "
        f"{' and '.join(map(str, FOLDERS))}",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0: others on your network can see the page, too"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument(
        "--no-browser", dest="browser", action="store_false", help="only print the address"
    )
    parser.add_argument("--data-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Loads the networks and shows the page until Ctrl-C."""
    with needing("demo"):
        from page import server

    with listen(arguments.host, arguments.port) as listening:
        runs = runs_of(arguments)
        images = data.load(DIGITS, arguments.data_dir, arguments.idx_dir)
        say = says(runs)
        shown = what_is_shown(runs, images, say)
        say(images.test_images[:1])  # compiles what a drawing needs
        local = server.is_local(listening.getsockname()[0])
        app = server.make_app(shown, say, local)
        own, *others = server.addresses(listening)
        for network, each in zip(shown["networks"], runs, strict=True):
            print(f"{network['name']}: {each.path}")
        for address in others:
            print(f"others open {address}")
        print(f"the page is at {own} (Ctrl-C ends it)", flush=True)
        if arguments.browser:
            # Some browsers return when they are closed.
            threading.Thread(target=webbrowser.open, args=[own], daemon=True).start()
        server.serve(app, listening)


def listen(host: str, port: int) -> "socket.socket":
    """Takes the address before the networks are loaded.

    Raises:
        ConfigError: it is not to be had.
    """
    from page import server

    if not host:
        raise ConfigError("host is empty; expected an address, as 127.0.0.1 or 0.0.0.0")
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"port is {port}; expected 0 (any that is free) to {MAX_PORT}")
    try:
        return server.listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {error.strerror}; pass another --host or --port "
            "(0: any that is free)"
        ) from error


def runs_of(arguments: argparse.Namespace) -> list[Run]:
    """The runs whose networks are shown.

    Raises:
        ConfigError: none is named, or one is no finished run, or not of digits.
    """
    if arguments.drilldown:
        return newest_of_every_variant(arguments.runs or FOLDERS)
    if not arguments.runs:
        raise ConfigError("RUN is missing; expected the folder of a finished run, or --drilldown")
    runs = [run for path in arguments.runs for run in load_runs(path)]
    check_digits(runs)
    return runs


def newest_of_every_variant(folders: Sequence[Path]) -> list[Run]:
    """The finished runs that ended last, in the drill-down's order; a damaged one is passed over.

    Raises:
        ConfigError: there is none.
    """
    summaries = [file for folder in folders for file in folder.rglob(run_folder.SUMMARY)]
    newest: dict[str, Run] = {}
    for file in sorted(summaries, key=lambda file: file.stat().st_mtime, reverse=True):
        # Of several seeds there is a summary, too, beside the folders of each.
        if not (file.parent / run_folder.CHECKPOINTS).is_dir():
            continue
        try:
            config = run_folder.read_config_of_run(file.parent)
            if config.dataset == DIGITS and config.variant not in newest:
                newest[config.variant] = load_run(file.parent)
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


def says(runs: Sequence[Run]) -> "Say":
    """What the networks say: images uint8 `[N, 28, 28]` to log-probabilities `[runs, N, 10]`."""
    each = [make_predict(run) for run in runs]
    return lambda pixels: np.stack([predict(pixels) for predict in each])


def what_is_shown(runs: Sequence[Run], images: Dataset, say: "Say") -> dict[str, Any]:
    """The networks and some test images with their answers, as JSON takes them."""
    from page.examples import choose_examples

    pixels, labels = images.test_images[:IMAGES], images.test_labels[:IMAGES]
    said = say(pixels)
    networks = [
        {
            "name": name,
            "idea": IDEAS.get(run.config.variant, ""),
            "parameters": run.summary["parameters"],
            "accuracy": run.summary["final_test_accuracy"][0],
        }
        for name, run in zip(names(runs), runs, strict=True)
    ]
    examples = [
        {
            "number": place,
            "label": int(labels[place]),
            "image": pixels[place].ravel().tolist(),
            "probabilities": np.exp(said[:, place].astype(float)).round(4).tolist(),
        }
        for place in choose_examples(list(said), labels)
    ]
    return {"networks": networks, "examples": examples}


def names(runs: Sequence[Run]) -> list[str]:
    """A name for each column: the variant, if that says which run it is."""
    variants = Counter(run.config.variant for run in runs)
    of_variant = [run.config.variant for run in runs]
    of_folder = [f"{run.config.variant} {run.path.name}" for run in runs]
    return of_variant if max(variants.values()) == 1 else of_folder


if __name__ == "__main__":
    sys.exit(run_main(main))
