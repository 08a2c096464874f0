"""Print the layers of a network: `python scripts/summary.py gap`.

For each layer: output shape, kernel, parameters, arithmetic and receptive field.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.summary` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import Command, add_debug_option, run_main
from support.networks import read_run_or_config
from support.output import make_console, print_table
from support.tables import layers_table

from jaxmnist.models import model_of
from jaxmnist.models.description import describe, tabulate


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="a variant, a pretrained network, a run's folder, or your own network as a file or "
        'as text, such as "conv 8 / relu / mean / conv 10 1x1"',
    )
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    add_debug_option(parser)
    arguments = parser.parse_args(argv)
    with Command(arguments.debug) as command:
        config = read_run_or_config(arguments.network)
        if arguments.json:
            print(json.dumps(tabulate(describe(model_of(config))), indent=2))
        else:
            print_table(make_console(), layers_table(config))
    return command.status


if __name__ == "__main__":
    sys.exit(run_main(main))
