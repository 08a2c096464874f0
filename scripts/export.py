"""Export a trained network: `python scripts/export.py runs/gap-seed0 --to onnx`.

Write to export/ in the run's folder, and compare the export with the original on test images.
--from-torch instead creates a run folder from the weights of a PyTorch network, such as one trained
in the original notebooks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.export` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
from support.command import (
    Command,
    add_common_options,
    require_extra,
    run_main,
    suggest_out,
    use_compilation_cache,
    user_path,
)

from jaxmnist import VARIANTS, TrainConfig, data
from jaxmnist.config import ConfigError, check_choice
from jaxmnist.export import imported, pytorch
from jaxmnist.export.network import trained_network
from jaxmnist.export.targets import TARGETS, export
from jaxmnist.inference.predict import load_seed
from jaxmnist.runs import run_folder
from jaxmnist.runs.setup import RunOptions, make_setup

IMAGES = 256


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        print(to_run(arguments) if arguments.from_torch else to_file(arguments))
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        type=user_path,
        help="a run's folder, or a pretrained network; with --from-torch, the new run's folder",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=TARGETS, help="the export format")
    way.add_argument("--from-torch", type=user_path, metavar="FILE", help="a PyTorch state dict")
    parser.add_argument("--variant", help="the variant of the network for --from-torch")
    parser.add_argument(
        "--normalised-input",
        action="store_true",
        help="export with normalised float32 [N, 28, 28, 1] input, not uint8 [N, 28, 28]",
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="the output folder, by default export/ in the run's folder",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the seed, if a run has several")
    add_common_options(parser)
    return parser.parse_args(argv)


def to_file(arguments: argparse.Namespace) -> str:
    """Export a run; return the line to print."""
    if arguments.run is None:
        raise ConfigError("run is missing; expected the folder of a finished run")
    if arguments.variant is not None:
        raise ConfigError("variant is only for --from-torch; leave it out")
    if arguments.normalised_input and not TARGETS[arguments.to].takes_images:
        raise ConfigError(
            f"normalised_input is not for {arguments.to}, which holds weights alone: leave it out"
        )
    run = load_seed(arguments.run, arguments.seed)
    images = data.load(run.config.dataset, arguments.data_dir, arguments.idx_dir)
    some = images.test_images[:IMAGES]
    network = trained_network(run, arguments.normalised_input)
    # By default, some accelerators round products more than the comparison allows.
    with require_extra(TARGETS[arguments.to].extra), jax.default_matmul_precision("highest"):
        folder = arguments.out or run.path / run_folder.EXPORT / run.seed_folder
        with suggest_out(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file, difference = export(network, arguments.to, folder, some)
    return f"{file}: {difference:.1e} is the largest difference on {len(some)} test images"


def to_run(arguments: argparse.Namespace) -> str:
    """Create a run from a PyTorch network; return the line to print."""
    if arguments.variant is None:
        raise ConfigError(f"variant is missing; expected one of {', '.join(VARIANTS)}")
    check_choice("variant", arguments.variant, VARIANTS)
    if arguments.normalised_input:
        raise ConfigError("normalised_input is for --to; leave it out")
    if arguments.seed is not None:
        raise ConfigError("seed is for --to; leave it out")
    if arguments.out is not None:
        raise ConfigError("out is for --to; name the folder of the new run without it")
    if arguments.run is not None:
        run_folder.check_free(arguments.run, overwrite=False)
    with require_extra("torch"):
        variables = pytorch.read(arguments.from_torch, arguments.variant)
    options = RunOptions(data_dir=arguments.data_dir, idx_dir=arguments.idx_dir)
    setup = make_setup(TrainConfig(arguments.variant), options)
    run = imported.write_run(setup, variables, arguments.run, arguments.from_torch)
    accuracy = run.summary["final_test_accuracy"][0]
    count = run.summary["test_count"]
    chance = ", at chance level: were its images normalised differently?" if accuracy < 20 else ""
    return f"{run.path}: {arguments.variant}, {accuracy:.2f} % of {count:,} test images{chance}"


if __name__ == "__main__":
    sys.exit(run_main(main))
