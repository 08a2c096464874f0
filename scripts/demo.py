"""Opens a page to draw digits on: `python scripts/demo.py runs/gap-seed0`.

During drawing, the page shows the network's input and its probability of each digit, in a column
for each run. --drilldown takes the newest run of every variant.
"""

import argparse
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

import numpy as np
from support.command import (
    Command,
    add_common_options,
    require_extra,
    run_main,
    use_compilation_cache,
)

from jaxmnist import VARIANTS, data
from jaxmnist.config import ConfigError
from jaxmnist.data.dataset import Dataset
from jaxmnist.inference.predict import DIGITS, check_digits, load_runs, make_predict
from jaxmnist.recipes import IDEAS
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.run import Run

if TYPE_CHECKING:
    import socket

    from page.server import Say

# Default output folders of training and of the drill-down.
FOLDERS = (Path("runs"), Path("docs/runs"))
# Test images: enough to contain mistakes of even the best network.
IMAGES = 2000
MAX_PORT = 65535


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
    add_common_options(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Load the networks and serve the page until Ctrl-C."""
    with require_extra("demo"):
        from page import server

    with listen(arguments.host, arguments.port) as listening:
        runs = runs_of(arguments)
        images = data.load(DIGITS, arguments.data_dir, arguments.idx_dir)
        say = says(runs)
        shown = what_is_shown(runs, images, say)
        say(images.test_images[:1])  # compiles for a drawing
        local = server.is_local(listening.getsockname()[0])
        app = server.make_app(shown, say, local)
        own, *others = server.addresses(listening)
        for network, each in zip(shown["networks"], runs, strict=True):
            print(f"{network['name']}: {each.path}")
        for address in others:
            print(f"others open {address}")
        print(f"the page is at {own} (Ctrl-C ends it)", flush=True)
        if arguments.browser:
            # For some browsers, the call returns only when they are closed.
            threading.Thread(target=webbrowser.open, args=[own], daemon=True).start()
        server.serve(app, listening)


def listen(host: str, port: int) -> "socket.socket":
    """Bind the address before the networks are loaded.

    Raises:
        ConfigError: the address is not available.
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
    """Return the runs whose networks are shown.

    Raises:
        ConfigError: no run is named, or one is unfinished or not of digits.
    """
    if arguments.drilldown:
        return newest_of_every_variant(arguments.runs or FOLDERS)
    if not arguments.runs:
        raise ConfigError("RUN is missing; expected the folder of a finished run, or --drilldown")
    runs = [run for path in arguments.runs for run in load_runs(path)]
    check_digits(runs)
    return runs


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


def says(runs: Sequence[Run]) -> "Say":
    """Return a function from uint8 `[N, 28, 28]` to log-probabilities `[runs, N, 10]`."""
    each = [make_predict(run) for run in runs]
    return lambda pixels: np.stack([predict(pixels) for predict in each])


def what_is_shown(runs: Sequence[Run], images: Dataset, say: "Say") -> dict[str, Any]:
    """Return the networks, and some test images with predictions, JSON-serialisable."""
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
    """Return a name for each column: the variant if unique, else also the folder."""
    variants = Counter(run.config.variant for run in runs)
    of_variant = [run.config.variant for run in runs]
    of_folder = [f"{run.config.variant} {Path(run.name).name}" for run in runs]
    return of_variant if max(variants.values()) == 1 else of_folder


if __name__ == "__main__":
    sys.exit(run_main(main))
