"""Find a good learning rate: `python scripts/lr_range.py gap`.

Train for one epoch while the learning rate grows exponentially, with several seeds in one program.
Draw the loss by learning rate, and suggest an interval for the peak of a schedule.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.lr_range` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import (
    Command,
    add_common_options,
    run_main,
    use_compilation_cache,
    user_path,
)
from support.networks import read_config

from jaxmnist import RunOptions
from jaxmnist.analysis import lr_range
from jaxmnist.analysis.plots.lr_range import loss_by_rate
from jaxmnist.analysis.plots.style import save
from jaxmnist.config import check_seeds, parse_seeds
from jaxmnist.recipes import DATASETS
from jaxmnist.runs import run_folder

PLOT, NUMBERS = "lr_range.png", "lr_range.json"


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        print(run(arguments))
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="a variant, with a recipe if not the default, such as gap/record; or your own network "
        "as a file or as text",
    )
    parser.add_argument("--seeds", default="8", help="a count, such as 8, or a list, such as 3,7")
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help="the data set")
    parser.add_argument(
        "--out", type=user_path, help="the output folder, by default runs/lr_range-NETWORK"
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> str:
    """Measure, write the numbers and the plot; return the line to print."""
    config = read_config(arguments.network, dataset=arguments.dataset)
    seeds = check_seeds(parse_seeds(arguments.seeds, 0))
    options = RunOptions(arguments.data_dir, arguments.idx_dir)
    found = lr_range.measure(config, seeds, options)
    out = arguments.out or Path("runs", f"lr_range-{config.name.replace('/', '-')}")
    out.mkdir(parents=True, exist_ok=True)
    numbers = {
        "config": config.to_dict(),
        "seeds": list(seeds),
        "interval": [found.low, found.high],
        "rates": found.rates.tolist(),
        # A loss that is not finite is null.
        "losses": [[float(x) if x < float("inf") else None for x in each] for each in found.losses],
    }
    run_folder.write(out / NUMBERS, json.dumps(numbers) + "\n")
    save(lambda: loss_by_rate(found, config.name), out / PLOT, config.name)
    return (
        f"{config.name}: a peak between {found.low:.2g} and {found.high:.2g} is worth trying; the "
        f"recipe has {config.learning_rate:g} ({len(seeds)} seeds, {out / PLOT})"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
