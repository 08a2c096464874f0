"""Check the course's target: `python scripts/check.py runs/gap-seed0`.

The target is a test accuracy that all of the last epochs reach, with few parameters and epochs. The
exit status is 0 if every seed meets it, and 1 if not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Neither `python -m scripts.check` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from support.command import Command, add_debug_option, run_main
from support.output import make_console, print_line, print_table
from support.tables import make_table

from jaxmnist.analysis import results
from jaxmnist.analysis.verdict import Target, check_target, judge
from jaxmnist.inference.predict import load_runs

DEFAULT = Target()


class Network(NamedTuple):
    """A network, and the test accuracies of its seeds after each epoch, in percent."""

    name: str
    parameters: int
    curves: dict[int, list[float]]  # by seed


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        target = Target(**{name: getattr(arguments, name) for name in Target._fields})
        check_target(target)
        return 0 if check(read(arguments.run), target) else 1
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder, a pretrained network, or a file of finished "
        "runs, such as docs/results.json")  # fmt: skip
    add("--parameters", type=int, default=DEFAULT.parameters, help="at most this many")
    add("--epochs", type=int, default=DEFAULT.epochs, help="at most this many")
    add("--accuracy", type=float, default=DEFAULT.accuracy, help="at least this test accuracy, in "
        "percent")  # fmt: skip
    add("--last", type=int, default=DEFAULT.last, help="in all of this many last epochs")
    add_debug_option(parser)
    return parser.parse_args(argv)


def read(path: str) -> list[Network]:
    """Return the networks of a run, or of a file of finished runs."""
    if Path(path).is_file():
        return [
            Network(
                network.name,
                network.parameters,
                {run["seed"]: run["curves"]["test_accuracy"] for run in network.runs},
            )
            for network in results.read(Path(path)).values()
        ]
    runs = load_runs(path)
    curves = {run.config.seed: [row["test_accuracy"] for row in run.rows] for run in runs}
    return [Network(runs[0].config.name, runs[0].summary["parameters"], curves)]


def check(networks: Sequence[Network], target: Target) -> bool:
    """Print the verdict of each network; return whether every seed meets the target."""
    verdicts = {
        network.name: judge(target, network.parameters, list(network.curves.values()))
        for network in networks
    }
    console = make_console()
    if len(networks) == 1:
        print_table(console, seeds_table(networks[0], target))
    else:
        rows = [
            (network.name, f"{network.parameters:,}", str(verdicts[network.name]))
            for network in networks
        ]
        print_table(console, make_table(("network", "parameters", "target met"), rows, texts=1))
    print_line(console, f"target: {target}")
    for name, verdict in verdicts.items() if len(networks) == 1 else ():
        print_line(console, f"{name}: {verdict}")
    return all(verdict.met == verdict.seeds for verdict in verdicts.values())


def seeds_table(network: Network, target: Target):
    """Return a table with the last epochs of each seed."""
    rows = []
    for seed, curve in network.curves.items():
        verdict = judge(target, network.parameters, [curve])
        last = ", ".join(f"{accuracy:.2f}" for accuracy in curve[-target.last :])
        rows.append((str(seed), str(len(curve)), last, str(verdict)))
    columns = ("seed", "epochs", f"test % of the last {target.last} epochs", "target")
    title = f"{network.name}: {network.parameters:,} parameters"
    return make_table(columns, rows, title=title)


if __name__ == "__main__":
    sys.exit(run_main(main))
