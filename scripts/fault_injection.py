"""Kill and damage small runs, and check that they resume: `python scripts/fault_injection.py`.

Each run trains on MNIST in a process of the training command. After each fault, the run continues
with `--resume`. It must end with the bytes and rows of a run without faults ("survived") or with a
one-line error ("refused"). Any other outcome is "lost".
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.table import Table
from support.command import run_main
from support.output import make_console, print_table

import jaxmnist
from jaxmnist.config import ConfigError
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import CheckpointError

TRAIN = Path(__file__).parent / "train.py"
# Two runs of one seed, and one of several seeds in processes, which is killed but not damaged.
RUNS = {
    "gap": "--variant gap",
    "less_params": "--variant less_params",
    "seeds": "--variant gap --seeds 3 --seed-mapping processes",
}
OPTIONS = "--limit-train 3000 --epochs 6 --checkpoint-every 1 --out run --quiet"
HANGS_AFTER = 600  # seconds; a busy machine is slow
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMES = ("train_seconds", "images_per_second")
OUTCOMES = ("survived", "refused", "lost", "not possible here")


class Lost(Exception):  # noqa: N818 - an outcome
    """A run that neither survived nor was refused, with the reason."""


class Reference(NamedTuple):
    """A run without faults."""

    words: list[str]  # arguments of the training command
    runs: list[jaxmnist.Run]  # one for each seed
    seconds: float
    half: Path  # folder of a run stopped half-way


class Done(NamedTuple):
    """A finished process."""

    status: int
    err: str

    @property
    def is_refused(self) -> bool:
        """True if the process ended with a one-line error."""
        is_a_line = self.err.startswith("error: ") and self.err.count("\n") == 1
        return self.status in (1, 2) and is_a_line

    def expect(self, *statuses: int) -> None:
        """Raise `Lost` unless the status is one of these."""
        if self.status not in statuses:
            raise Lost(f"status {self.status}, not {statuses}: {self.err}")


# Injects a fault into a run in an empty folder, resumes it, and returns "survived" or "refused".
Inflict = Callable[[Reference, Path, random.Random], str]


def main(argv: Sequence[str]) -> int:
    """Run the command; return 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="number of runs to kill")
    parser.add_argument("--corruptions", type=int, default=60, help="number of runs to damage")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    arguments = parser.parse_args(argv)
    # A background process ignores SIGINT, and so would every process started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chance = random.Random(arguments.seed)
    results: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="fault-injection-") as scratch:
        references = {name: make_reference(name, Path(scratch)) for name in RUNS}
        killed = itertools.islice(itertools.cycle(references.items()), arguments.kills)
        damages = itertools.islice(itertools.cycle(DAMAGES.items()), arguments.corruptions)
        of_one_seed = itertools.cycle([references["gap"], references["less_params"]])
        trials: list[tuple[str, Inflict, Reference]] = [
            *((f"{name}: killed or interrupted, again and again", kill, of) for name, of in killed),
            *((*fault, next(of_one_seed)) for fault in [*damages, *DISKS.items(), *DISKS.items()]),
        ]
        for number, (fault, inflict, reference) in enumerate(trials, 1):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                outcome = outcome_of(inflict, reference, Path(folder), chance)
            results.setdefault(fault, Counter())[outcome] += 1
            print(f"{number}/{len(trials)} {fault}: {outcome}", file=sys.stderr)
    print_table(make_console(), table(results))
    return int(any(counts["lost"] for counts in results.values()))


def outcome_of(inflict: Inflict, reference: Reference, folder: Path, chance: random.Random) -> str:
    """Inject a fault and return the outcome; only damage may lead to "refused"."""
    try:
        outcome = inflict(reference, folder, chance)
        if outcome == "refused" and inflict not in DAMAGES.values():
            raise Lost("refused, but nothing is damaged")
    except Lost as reason:
        print(reason, file=sys.stderr)
        return "lost"
    return outcome


def make_reference(name: str, scratch: Path) -> Reference:
    """Train a run of `RUNS` half-way, and another one to the end."""
    words, folder = [*RUNS[name].split(), *OPTIONS.split()], scratch / name
    half = folder / "half"
    half.mkdir(parents=True)
    seed0 = run_folder.checkpoint_folder(half / "run", 0)

    def stop_half_way(process: subprocess.Popen) -> None:
        while process.poll() is None and len(list(seed0.glob("*/_CHECKPOINT_METADATA"))) < 2:
            time.sleep(0.01)
        process.terminate()

    train(words, half, stop_half_way).expect(143)  # compiles, too
    begin = time.monotonic()
    train(words, folder).expect(0)
    seconds = time.monotonic() - begin
    return Reference(words, jaxmnist.load_run(folder / "run").split(), seconds, half / "run")


def train(
    words: Sequence[str],
    folder: Path,
    stop: Callable[[subprocess.Popen], None] = lambda process: None,
    python: Sequence[str] = (sys.executable,),
) -> Done:
    """Run the training command in a folder; call `stop` when its process has started.

    Raises:
        Lost: the process hangs.
    """
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*python, TRAIN.absolute(), *words], cwd=folder, **pipes) as process:
        stop(process)
        try:
            _, err = process.communicate(timeout=HANGS_AFTER)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Lost("it hangs") from error
    return Done(process.returncode, err)


def resume(words: Sequence[str], reference: Reference, folder: Path) -> str:
    """Resume a run, and compare it with the reference.

    Raises:
        Lost: the results differ, or the run failed with more than a one-line error.
    """
    done = train([*words, "--resume"], folder)
    if done.is_refused:
        return "refused"
    done.expect(0)
    try:
        found = jaxmnist.load_run(folder / "run").split()
    except (ConfigError, CheckpointError, OSError) as error:
        raise Lost(f"it cannot be read: {error}") from error
    lines = (folder / "run" / "metrics.jsonl").read_text().count("\n")
    is_whole = lines == sum(len(run.rows) for run in reference.runs)
    if not is_whole or list(map(content, found)) != list(map(content, reference.runs)):
        raise Lost("its numbers differ")
    return "survived"


def content(run: jaxmnist.Run) -> list[object]:
    """Return the bytes and rows of a run of one seed, without times."""
    state = run.state.replace(key=jax.random.key_data(run.state.key))
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in run.rows]
    return [arrays, rows, run.summary["final_test_accuracy"]]


def kill(reference: Reference, folder: Path, chance: random.Random) -> str:
    """Stop a run at a random moment, and with probability 1/2 each continuation too."""
    words, kills = reference.words, 0
    while kills == 0 or chance.random() < 0.5:
        number, seconds = chance.choice(SIGNALS), chance.uniform(0, reference.seconds)

        def stop(process: subprocess.Popen, number=number, seconds=seconds) -> None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.send_signal(number)

        done = train(words, folder, stop)
        done.expect(-number, 128 + number, 0)  # 0: the run ended first
        if done.err.count("\n") > 1:
            raise Lost(done.err)
        kills += done.status != 0
        words = [*reference.words, "--resume"]
    return resume(reference.words, reference, folder)


def damaged(
    choose: Callable[[Path], Sequence[Path]], damage: Callable[[Path, random.Random], None]
) -> Inflict:
    """Return a fault that damages one of the chosen paths in a run stopped half-way."""

    def inflict(reference: Reference, folder: Path, chance: random.Random) -> str:
        shutil.copytree(reference.half, folder / "run")
        damage(chance.choice(choose(folder / "run")), chance)
        words = chance.choice([["--out", "run"], reference.words])  # the other options are optional
        return resume(words, reference, folder)

    return inflict


def newest(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max(run_folder.checkpoint_folder(run, 0).glob("[0-9]*"), key=lambda path: int(path.name))


def files(folder: Path) -> list[Path]:
    """Return the non-empty files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip_bit(file: Path, chance: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def flip_in_all(checkpoints: Path, chance: random.Random) -> None:
    """Flip one bit of the arrays in every checkpoint."""
    for checkpoint in checkpoints.glob("[0-9]*"):
        flip_bit(max(files(checkpoint / "arrays"), key=lambda path: path.stat().st_size), chance)


def cut(file: Path, chance: random.Random) -> None:
    """Cut a file at a random place."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def overwrite(file: Path, chance: random.Random) -> None:
    """Overwrite up to 4,096 bytes with noise."""
    content = bytearray(file.read_bytes())
    begin = chance.randrange(len(content))
    length = min(4096, len(content) - begin)
    content[begin : begin + length] = chance.randbytes(length)
    file.write_bytes(content)


DAMAGES: dict[str, Inflict] = {
    "a bit flipped in the newest checkpoint": damaged(lambda run: files(newest(run)), flip_bit),
    "a bit flipped in its arrays": damaged(lambda run: files(newest(run) / "arrays"), flip_bit),
    "a bit flipped in any file": damaged(files, flip_bit),
    "a bit flipped in the arrays of all checkpoints": damaged(
        lambda run: [run_folder.checkpoint_folder(run, 0)], flip_in_all
    ),
    "a file cut": damaged(files, cut),
    "noise in a file": damaged(files, overwrite),
    "a file removed": damaged(files, lambda file, chance: file.unlink()),
    "a folder removed": damaged(
        lambda run: sorted(path for path in run.rglob("*") if path.is_dir()),
        lambda folder, chance: shutil.rmtree(folder),
    ),
    "a line of metrics.jsonl torn": damaged(lambda run: [run / "metrics.jsonl"], cut),
}


# Program without the check of the disk space, as if the disk filled up after the check.
UNCHECKED = (
    "import os, runpy, sys; from jaxmnist.runs import checkpoint; del sys.argv[0]; "
    "checkpoint._check_room = lambda *_: None; sys.path[0] = os.path.dirname(sys.argv[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def disk_filled(sizes: range, *options: str) -> Inflict:
    """Return a fault that fills a run's disk, then adds space and continues the run.

    Args:
        sizes: possible sizes of the disk, in KB.
        options: options of the Python interpreter.
    """

    def inflict(reference: Reference, folder: Path, chance: random.Random) -> str:
        size = chance.choice(sizes)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "fault-injection", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return "not possible here"
        try:
            done = train(reference.words, folder, python=[sys.executable, *options])
            if not done.is_refused:
                raise Lost(f"status {done.status} on a full disk: {done.err}")
            subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
            return resume(reference.words, reference, folder)
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    return inflict


DISKS: dict[str, Inflict] = {
    "the disk is full before a checkpoint": disk_filled(range(300, 1300)),
    "the disk fills up during a checkpoint": disk_filled(range(60, 130), "-c", UNCHECKED),
}


def table(results: dict[str, Counter[str]]) -> Table:
    """Return a table with a line for each fault, and the sums."""
    shown = Table("fault", "injected", *OUTCOMES)
    total = sum(results.values(), Counter())
    for fault, counts in [*results.items(), ("all", total)]:
        shown.add_row(fault, str(counts.total()), *(str(counts[outcome]) for outcome in OUTCOMES))
    return shown


if __name__ == "__main__":
    sys.exit(run_main(main))
