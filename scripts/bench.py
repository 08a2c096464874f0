"""Measures the training speed of the seven networks: `python scripts/bench.py --variant gap`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from benchmark.protocol import ROUND_SECONDS, Contender, ContenderError
from benchmark.tables import tables
from rich.console import Console
from support.command import TrainingCommand, add_common_options, run_main, user_path
from support.output import make_console, print_table

from jaxmnist import VARIANTS, TrainConfig, data
from jaxmnist.config import ConfigError
from jaxmnist.models.description import describe, step_flop

FOLDER = Path(__file__).parent / "benchmark"
PEERS = ("pytorch", "flax")
# Pause before a job is timed: the previous contender's threads need time to fall asleep.
PAUSE_SECONDS = 0.2
START_STEPS = 10  # of the runs that time the start
GOALS = (99.0, 99.4)  # test accuracies, in percent, that a whole training is timed to

Times = dict[str, list[float]]  # seconds of each round, by job


class Measured(NamedTuple):
    """Times by contender and job, facts by contender, and the reasons of failed jobs."""

    times: dict[str, Times]
    facts: dict[str, dict[str, Any]]
    failed: dict[str, str]


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
    parser.add_argument("--variant", choices=[*VARIANTS, "all"], default="gap")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="the medians are over so many")
    parser.add_argument("--layers", action="store_true", help="measure every layer alone as well")
    parser.add_argument(
        "--seeds",
        type=counts,
        metavar="1,2,4,8",
        help="measure so many seeds at a time as well, in each of the ways to train them",
    )
    parser.add_argument(
        "--whole",
        type=lambda words: words.split(","),
        metavar="notebook,fast",
        default=[],
        help="train to the end as well, by these recipes as they are, and by the notebook's in "
        "PyTorch if that is a peer",
    )
    parser.add_argument(
        "--peer",
        choices=PEERS,
        nargs="?",
        const="pytorch",
        action="append",
        default=[],
        help="measure the same work in PyTorch (the default) or plain flax; may be repeated",
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter of an environment with PyTorch",
    )
    parser.add_argument("--out", type=user_path, help="write everything measured here, as JSON")
    add_common_options(parser)
    return parser.parse_args(argv)


def counts(words: str) -> tuple[int, ...]:
    """Parse positive integers, as 1,2,4,8."""
    found = tuple(map(int, words.split(",")))
    if min(found) < 1:
        raise ValueError
    return found


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the measurements, and print their tables."""
    if arguments.rounds < 1:
        raise ConfigError(f"rounds is {arguments.rounds}; expected a whole number of at least 1")
    variants = VARIANTS if arguments.variant == "all" else (arguments.variant,)
    for variant in variants:
        for recipe in arguments.whole:
            TrainConfig(variant, recipe=recipe)  # an invalid config fails at once
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        images = write_images(arguments, Path(scratch))
        for variant in variants:
            config = TrainConfig(variant, batch_size=arguments.batch_size)
            result = measure(arguments, config, images, Path(scratch) / variant)
            results[variant] = result
            for table in tables(variant, result):
                print_table(console, table)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def measure(
    arguments: argparse.Namespace, config: TrainConfig, images: Path, scratch: Path
) -> dict[str, Any]:
    """Measure everything requested of one variant."""
    network = describe(config.variant)
    work = {
        "variant": config.variant,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "layers": network,
        "images": str(images),
    }
    commands = {"ours": command("ours")}
    if arguments.layers:
        commands["layers"] = command("layer_times")
    for peer in arguments.peer:
        python = arguments.peer_python if peer == "pytorch" else sys.executable
        commands[peer] = command(f"peer_{peer}", python)
    measured = alternate(commands, work, arguments.rounds)
    result = {
        "batch_size": config.batch_size,
        "rounds": arguments.rounds,
        "seconds": measured.times,
        "facts": measured.facts,
        "failed": measured.failed,
        "step_flop": step_flop(network) * config.batch_size,
        "ratios": ratios(measured.times, arguments.peer),
        "start": measure_start(arguments, config, scratch),
    }
    if arguments.layers:
        result["layers"] = network
    if arguments.seeds:
        result["seeds"] = measure_seeds(work, arguments.seeds, arguments.rounds)
    if arguments.whole:
        result["whole"] = measure_whole(arguments, config, work, scratch)
    return result


def command(name: str, python: str = sys.executable) -> list[str]:
    """Return the command that starts a contender."""
    return [python, str(FOLDER / f"{name}.py")]


def alternate(
    commands: Mapping[str, Sequence[str]], work: Mapping[str, Any], rounds: int
) -> Measured:
    """Time every job of every contender, one after another, round after round.

    Args:
        commands: the command that starts each contender.
        work: the contenders' work.
        rounds: their number, after a first one that prepares every job.

    Raises:
        ContenderError: a contender does not start.
    """
    contenders: dict[str, Contender] = {}
    measured = Measured({}, {}, {})
    try:
        for name, start in commands.items():
            try:
                contenders[name] = Contender(start, {"round_seconds": ROUND_SECONDS, **work})
            except (ContenderError, OSError) as error:
                raise ContenderError(f"{name} cannot be measured: {error}") from error
            measured.times[name] = {}
            measured.facts[name] = contenders[name].facts
        for number in range(rounds + 1):
            for name, contender in contenders.items():
                _round(name, contender, measured, is_kept=number > 0)
    finally:
        for contender in contenders.values():
            contender.close()
    return measured


def _round(name: str, contender: Contender, measured: Measured, is_kept: bool) -> None:
    """Time every job of a contender that has not failed before."""
    for job in contender.jobs:
        label = f"{name}: {job}"
        if label in measured.failed:
            continue
        time.sleep(PAUSE_SECONDS)
        try:
            seconds = contender.seconds(job)
        except ContenderError as error:
            measured.failed[label] = str(error)
            continue
        if is_kept:
            measured.times[name].setdefault(job, []).append(seconds)


def ratios(times: Mapping[str, Times], peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return our median time divided by each peer's best one, for each kind of work."""
    found = {}
    for peer in peers:
        for kind, ours in (
            ("step", "step"),
            ("augmented step", "augmented step"),
            ("notebook step", "augmented step"),
            ("evaluation", "evaluation"),
        ):
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


def measure_start(
    arguments: argparse.Namespace, config: TrainConfig, scratch: Path
) -> dict[str, Any]:
    """Time short runs of the training command: the first with an empty cache, then warm.

    Returns:
        The seconds from the process's start to the end of the first steps, and the peak memory.
    """
    runs = []
    for number in range(1 + arguments.rounds):
        words = training_command(
            arguments,
            scratch,
            *("--variant", config.variant),
            *("--dataset", config.dataset),
            *("--batch-size", str(config.batch_size)),
            *("--limit-train", str(START_STEPS * config.batch_size)),
            *("--epochs", "1"),
            *("--out", str(scratch / f"run{number}")),
        )
        begin = time.monotonic()
        answer = answer_of(words)
        runs.append((answer["first_step"] - begin, answer["peak_bytes"]))
    cold, *warm = runs
    return {
        "cold_seconds": cold[0],
        "cold_peak_bytes": cold[1],
        "warm_seconds": [seconds for seconds, _ in warm],
        "warm_peak_bytes": [peak for _, peak in warm],
    }


def training_command(arguments: argparse.Namespace, scratch: Path, *words: str) -> list[str]:
    """Return the training command with these arguments, on the contenders' images."""
    for option, path in (("--data-dir", arguments.data_dir), ("--idx-dir", arguments.idx_dir)):
        words += (option, str(path)) if path is not None else ()
    return [*command("start"), str(scratch / "compiled"), *words]


def answer_of(words: Sequence[str]) -> dict[str, Any]:
    """Run a training; return the JSON that it prints last."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = " ".join(done.stderr.splitlines()[-1:])
        raise ContenderError(f"{Path(words[1]).stem} failed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_whole(
    arguments: argparse.Namespace, config: TrainConfig, work: Mapping[str, Any], scratch: Path
) -> dict[str, list[dict[str, Any]]]:
    """Train to the end, each round with its own seed, ours and PyTorch's in turn.

    Returns:
        For each contender and round: the seconds from the process's start to its end and to the
        first epoch that reached each of `GOALS` (None if none did), and the final test accuracy.
    """
    whole: dict[str, list[dict[str, Any]]] = {}
    plain = TrainConfig(config.variant, config.dataset)
    notebook = {name: getattr(plain, name) for name in ("batch_size", "epochs", "augment")}
    # Round -1 compiles our programs: the cache is warm in later rounds.
    for number in range(-1, arguments.rounds):
        seed = number % arguments.rounds
        for recipe in arguments.whole:
            words = training_command(
                arguments,
                scratch,
                *("--variant", config.variant),
                *("--dataset", config.dataset),
                *("--recipe", recipe),
                *("--seed", str(seed)),
                *("--out", str(scratch / f"{recipe.replace('/', '-')}{number}")),
            )
            trained = timed(words)
            if number >= 0:
                whole.setdefault(f"jaxmnist, {recipe}", []).append(trained)
        if "pytorch" in arguments.peer and number >= 0:
            start = command("whole_pytorch", arguments.peer_python)
            trained = timed([*start, json.dumps({**work, **notebook, "seed": seed})])
            whole.setdefault("pytorch, notebook", []).append(trained)
    return whole


def timed(words: Sequence[str]) -> dict[str, Any]:
    """Time a training from the start of its process."""
    begin = time.monotonic()
    epochs = answer_of(words)["epochs"]
    end = time.monotonic()
    reached = {
        str(goal): next((clock - begin for clock, accuracy in epochs if accuracy >= goal), None)
        for goal in GOALS
    }
    return {"seconds": end - begin, "reached": reached, "final_test_accuracy": epochs[-1][1]}


def measure_seeds(work: Mapping[str, Any], seeds: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time a step of each number of seeds, with each seed mapping."""
    measured = alternate({"seeds": command("seeds")}, {**work, "seeds": seeds}, rounds)
    return {"counts": list(seeds), **measured._asdict()}


def write_images(arguments: argparse.Namespace, scratch: Path) -> Path:
    """Write MNIST to a file that every contender can read."""
    dataset = data.load("mnist", arguments.data_dir, arguments.idx_dir)
    path = scratch / "images.npz"
    np.savez(
        path,
        train_images=dataset.train_images,
        train_labels=dataset.train_labels,
        test_images=dataset.test_images,
        test_labels=dataset.test_labels,
        mean=np.float32(dataset.mean),
        std=np.float32(dataset.std),
    )
    return path


if __name__ == "__main__":
    sys.exit(run_main(main))
