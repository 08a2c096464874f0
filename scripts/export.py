"""Exports a trained network: `python scripts/export.py runs/gap-seed0 --to onnx`.

Writes it to export/ in the run's folder, and compares what comes of it with the original on real
images. With --from-torch it goes the other way: from the weights of a network that was trained in
the original's notebook, or anywhere in PyTorch, to a run folder.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.export` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # Ctrl-C ends it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from support.command import failed, needing, needing_out, remember_compiled, run_main, user_path

from jaxmnist import VARIANTS, TrainConfig, data
from jaxmnist.config import ConfigError, check_name
from jaxmnist.export import imported, pytorch
from jaxmnist.export.network import network_of
from jaxmnist.export.targets import TARGETS, export
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import load_run, make_job

IMAGES = 256


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    try:
        remember_compiled()
        print(to_run(arguments) if arguments.from_torch else to_file(arguments))
        return 0
    except Exception as error:
        return failed(error, arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", nargs="?", type=user_path, help="a run's folder; with --from-torch the one to make"
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=TARGETS, help="the format")
    way.add_argument("--from-torch", type=user_path, metavar="FILE", help="a PyTorch state dict")
    parser.add_argument("--variant", help="which network --from-torch has")
    parser.add_argument(
        "--normalised-input",
        action="store_true",
        help="let the export take float32 [N, 28, 28, 1], normalised, not uint8 [N, 28, 28]",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="where to write, in place of export/ in the run",
    )
    parser.add_argument("--data-dir", type=user_path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=user_path, help="as in scripts/train.py")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def to_file(arguments: argparse.Namespace) -> str:
    """Exports a run; returns what there is to say of it."""
    if arguments.run is None:
        raise ConfigError("run is missing; expected the folder of a finished run")
    if arguments.variant is not None:
        raise ConfigError("variant is for --from-torch; a run knows its own")
    if arguments.normalised_input and not TARGETS[arguments.to].takes_images:
        raise ConfigError(
            f"normalised_input is not for {arguments.to}, which holds weights alone: leave it out"
        )
    run = load_run(arguments.run)
    images = data.load(run.config.dataset, arguments.data_dir, arguments.idx_dir)
    some = images.test_images[:IMAGES]
    network = network_of(run, arguments.normalised_input)
    # On some accelerators products are rounded more than the comparison allows.
    with needing(TARGETS[arguments.to].extra), jax.default_matmul_precision("highest"):
        folder = arguments.out or run.path / run_folder.EXPORT
        with needing_out(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file, difference = export(network, arguments.to, folder, some)
    return f"{file}: {difference:.1e} is the largest difference on {len(some)} test images"


def to_run(arguments: argparse.Namespace) -> str:
    """Makes a run of a PyTorch network; returns what there is to say of it."""
    if arguments.variant is None:
        raise ConfigError(f"variant is missing; expected one of {', '.join(VARIANTS)}")
    check_name("variant", arguments.variant, VARIANTS)
    if arguments.normalised_input:
        raise ConfigError("normalised_input is for --to; leave it out")
    if arguments.out is not None:
        raise ConfigError("out is for --to; name the folder of the new run without it")
    if arguments.run is not None:
        run_folder.check_free(arguments.run, overwrite=False)
    with needing("torch"):
        variables = pytorch.read(arguments.from_torch, arguments.variant)
    job = make_job(
        TrainConfig(arguments.variant),
        arguments.data_dir,
        arguments.idx_dir,
        data.ignore_progress,
    )
    run = imported.write_run(job, variables, arguments.run, arguments.from_torch)
    accuracy = run.summary["final_test_accuracy"][0]
    count = run.summary["test_count"]
    chance = ", as by chance: were its images normalised in another way?" if accuracy < 20 else ""
    return f"{run.path}: {arguments.variant}, {accuracy:.2f} % of {count:,} test images{chance}"


if __name__ == "__main__":
    sys.exit(run_main(main))
