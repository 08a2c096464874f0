"""Measure the training speed of the networks: `python scripts/bench.py --variant gap`."""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmark.participant import Participant, ParticipantError
from benchmark.tables import tables
from rich.console import Console
from support.command import TrainingCommand, add_common_options, run_main, user_path
from support.output import make_console, print_table

from jaxmnist import VARIANTS, TrainConfig, data
from jaxmnist.config import ConfigError
from jaxmnist.models import model_of
from jaxmnist.models.description import describe, step_flop

PEERS = ("pytorch", "flax")
# Modules of the participants, by their names in the results.
MODULES = {
    "ours": "ours",
    "layers": "layer_times",
    "seeds": "seeds",
    "pytorch": "peer_pytorch",
    "flax": "peer_flax",
}
# Kinds of a peer's jobs, and the job of jaxmnist with which each is compared.
COMPARED = {
    "step": "step",
    "augmented step": "augmented step",
    "notebook step": "augmented step",
    "evaluation": "evaluation",
}
# Pause before a job is timed: the previous participant's threads need time to fall asleep.
PAUSE_SECONDS = 0.2
START_STEPS = 10  # steps of a run that times the start
GOALS = (99.0, 99.4)  # test accuracies, in percent; the time to reach each is measured

Spec = Mapping[str, Any]  # input of a participant, JSON values
Times = dict[str, list[float]]  # seconds per round, by job


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with TrainingCommand(arguments.debug, lambda stop: "stopped") as command:
        command.handle_signals()
        return run(arguments, make_console())
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--variant", choices=[*VARIANTS, "all"], default="gap", help="the network to measure")
    add("--batch-size", type=int, default=128, help="images per step")
    add("--rounds", type=int, default=3, help="number of timings of each job")
    add("--layers", action="store_true", help="also measure each layer alone")
    add("--seeds", type=counts, metavar="1,2,4,8", help="also measure these numbers of seeds")
    add("--whole", type=lambda words: words.split(","), metavar="notebook,fast", default=[],
        help="also time full trainings with these recipes (PyTorch: with notebook)")  # fmt: skip
    add("--peer", choices=PEERS, nargs="?", const="pytorch", action="append", default=[],
        help="also measure PyTorch (the default) or plain flax; may be repeated")  # fmt: skip
    add("--peer-python", default=sys.executable, help="the Python interpreter with PyTorch")
    add("--out", type=user_path, help="write all results to this file, as JSON")
    add_common_options(parser)
    return parser.parse_args(argv)


def counts(words: str) -> tuple[int, ...]:
    """Parse a list of positive integers, such as 1,2,4,8."""
    found = tuple(map(int, words.split(",")))
    if min(found) < 1:
        raise ValueError
    return found


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the measurements and print their tables."""
    if arguments.rounds < 1:
        raise ConfigError(f"rounds is {arguments.rounds}; expected a whole number of at least 1")
    variants = VARIANTS if arguments.variant == "all" else (arguments.variant,)
    for variant in variants:
        for recipe in arguments.whole:
            TrainConfig(variant, recipe=recipe)  # fail early for an invalid config
    results: dict[str, Any] = {}
    for variant in variants:
        config = TrainConfig(variant, batch_size=arguments.batch_size)
        with tempfile.TemporaryDirectory() as scratch:
            results[variant] = measure(arguments, config, Path(scratch))
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        for table in tables(variant, results[variant]):
            print_table(console, table)
    return 0


def measure(arguments: argparse.Namespace, config: TrainConfig, scratch: Path) -> dict[str, Any]:
    """Run all requested measurements of one variant."""
    layers = describe(model_of(config))
    spec = {
        "config": dataclasses.asdict(config),
        "layers": layers,
        "seeds": arguments.seeds,
        "data_dir": arguments.data_dir and str(arguments.data_dir),
        "idx_dir": arguments.idx_dir and str(arguments.idx_dir),
        "images": str(write_images(arguments, config, scratch)),
        "cache": str(scratch / "compiled"),
        "peer_python": arguments.peer_python,
    }
    names = ["ours", *arguments.peer]
    names += [name for name in ("layers", "seeds") if getattr(arguments, name)]
    result = {
        "batch_size": config.batch_size,
        "rounds": arguments.rounds,
        **alternate(names, spec, arguments.rounds),
        "step_flop": step_flop(layers) * config.batch_size,
        "layers": layers,
        "start": measure_start(spec, arguments.rounds),
        "whole": measure_whole(arguments, config, spec),
    }
    return result | {"ratios": ratios(result["seconds"], arguments.peer)}


def write_images(arguments: argparse.Namespace, config: TrainConfig, scratch: Path) -> Path:
    """Write the images to a file that an environment without jaxmnist can read."""
    dataset = data.load(config.dataset, arguments.data_dir, arguments.idx_dir)
    path = scratch / "images.npz"
    np.savez(path, **dataset._asdict())
    return path


def alternate(names: Sequence[str], spec: Spec, rounds: int) -> dict[str, Any]:
    """Time each job of each participant in turn, for several rounds.

    Args:
        names: the names of the participants, from `MODULES`.
        spec: the input of the participants.
        rounds: the number of timings of each job.

    Returns:
        A dict with `seconds`, the times by participant and job; `facts` by participant; and
        `failed`, the reasons by failed job.

    Raises:
        ParticipantError: a participant does not start.
    """
    seconds: dict[str, Times] = {name: {} for name in names}
    facts, failed = {}, {}
    participants: dict[tuple[str, str], Participant] = {}  # by name and job
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                participant = stack.enter_context(start(MODULES[name], spec))
                jobs, facts[name] = participant.ask("prepare", spec)
            except (ParticipantError, OSError) as error:
                raise ParticipantError(f"{name} cannot be measured: {error}") from error
            participants |= {(name, job): participant for job in jobs}
        for _ in range(rounds):
            for (name, job), participant in list(participants.items()):
                time.sleep(PAUSE_SECONDS)
                try:
                    found = participant.seconds(job)
                except ParticipantError as error:
                    if name in ("ours", "layers"):  # nothing to compare with
                        raise
                    failed[f"{name}: {job}"] = str(error)
                    del participants[name, job]
                    continue
                seconds[name].setdefault(job, []).append(found)
    return {"seconds": seconds, "facts": facts, "failed": failed}


def start(module: str, spec: Spec) -> Participant:
    """Start a participant; PyTorch may have its own environment."""
    python = spec["peer_python"] if module == "peer_pytorch" else sys.executable
    return Participant(module, python)


def ratios(times: Mapping[str, Times], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return our median time divided by that of each peer's fastest job, by kind of job."""
    found = {}
    for peer in peers:
        for kind, ours in COMPARED.items():
            medians = {
                job: median(seconds)
                for job, seconds in times[peer].items()
                if job.split(":")[0] == kind
            }
            if medians:
                best = min(medians, key=lambda job: medians[job])
                ratio = median(times["ours"][ours]) / medians[best]
                found[f"{peer}: {kind}"] = {"best": best, "ratio": ratio}
    return found


def measure_start(spec: Spec, rounds: int) -> dict[str, Any]:
    """Time short trainings, first with an empty compilation cache, then with a full one.

    Returns:
        The seconds from the start of the process to the end of the first steps, and peak memory.
    """
    limit = START_STEPS * spec["config"]["batch_size"]
    config = TrainConfig(**{**spec["config"], "epochs": 1, "limit_train": limit})
    cold, *warm = [train("train_ours", spec, config) for _ in range(1 + rounds)]
    return {
        "cold_seconds": cold["first_step"],
        "cold_peak_bytes": cold["peak_bytes"],
        "warm_seconds": [run["first_step"] for run in warm],
        "warm_peak_bytes": [run["peak_bytes"] for run in warm],
    }


def measure_whole(
    arguments: argparse.Namespace, config: TrainConfig, spec: Spec
) -> dict[str, list[dict[str, Any]]]:
    """Time full trainings of jaxmnist and PyTorch in turn; each round has its own seed.

    Returns:
        For each training and round: the seconds from the start of the process to its end and to
        the first epoch that reached each of `GOALS` (None if never), and the final test accuracy.
    """
    trainings = {f"jaxmnist, {recipe}": ("train_ours", recipe) for recipe in arguments.whole}
    to_compile = list(trainings)
    if arguments.whole and "pytorch" in arguments.peer:
        trainings["pytorch, notebook"] = ("peer_pytorch", "notebook")

    def trained(name: str, seed: int) -> dict[str, Any]:
        module, recipe = trainings[name]
        whole = TrainConfig(config.variant, config.dataset, recipe, seed=seed)
        return reached(train(module, spec, whole))

    for name in to_compile:  # fill the compilation cache
        trained(name, 0)
    rounds = [{name: trained(name, seed) for name in trainings} for seed in range(arguments.rounds)]
    return {name: [each[name] for each in rounds] for name in trainings}


def train(module: str, spec: Spec, config: TrainConfig) -> dict[str, Any]:
    """Train in a separate process.

    Args:
        module: the participant's module.
        spec: the input, with the images and the compilation cache.
        config: the config to train.

    Returns:
        The result of the module's `train`, and the `seconds` since the start of the process.

    Raises:
        ParticipantError: the training failed.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, start(module, spec) as participant:
        own = {"config": dataclasses.asdict(config), "out": f"{folder}/run", "begin": begin}
        trained = participant.ask("train", {**spec, **own})
        return {**trained, "seconds": time.monotonic() - begin}


def reached(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return when a training ended and reached each of `GOALS`, and its final test accuracy."""
    first = {
        str(goal): next((clock for clock, accuracy in trained["epochs"] if accuracy >= goal), None)
        for goal in GOALS
    }
    final = trained["epochs"][-1][1]
    return {"seconds": trained["seconds"], "reached": first, "final_test_accuracy": final}


if __name__ == "__main__":
    sys.exit(run_main(main))
