"""Write the pretrained networks of the package from finished runs.

`python scripts/pretrained.py runs/pretrained/*` needs a run of seed 0 of each network, trained with
`scripts/train.py --seed 0` on one core, like the runs in docs/results.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.pretrained` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import Command, add_debug_option, run_main

from jaxmnist import load_run
from jaxmnist.inference.pretrained import write_pretrained


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    add_debug_option(parser)
    arguments = parser.parse_args(argv)
    with Command(arguments.debug) as command:
        for file in write_pretrained([load_run(path) for path in arguments.runs]):
            print(f"{file}: {file.stat().st_size:,} bytes")
    return command.status


if __name__ == "__main__":
    sys.exit(run_main(main))
