"""Kills and damages small runs, and checks that they resume: `python scripts/torture.py`.

Every run trains on real images, as a separate process of the training command. After each fault,
the run continues with `--resume`. It must end with the bytes and rows of a run without faults
("survived") or with a one-line error ("refused"). All else is "lost".
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
# Two runs of one seed, and one of several seeds in processes, which is only killed.
RUNS = {
    "gap": ["--variant", "gap"],
    "less_params": ["--variant", "less_params"],
    "seeds": ["--variant", "gap", "--seeds", "3", "--seed-mapping", "processes"],
}
RUN = [
    "--limit-train",
    "3000",
    "--epochs",
    "6",
    "--checkpoint-every",
    "1",
    "--out",
    "run",
    "--quiet",
]
HANGS_AFTER = 120  # seconds
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TIMES = ("train_seconds", "images_per_second")


class Reference(NamedTuple):
    """A run without faults."""

    words: list[str]  # arguments of the training command
    runs: list[jaxmnist.Run]  # one for each seed
    seconds: float
    half: Path  # its folder when stopped half-way


# Injects a fault into a run in an empty folder, and returns the outcome.
Inflict = Callable[[Reference, Path, random.Random], str]


class Done(NamedTuple):
    """A finished process."""

    status: int | None  # None: the process hung
    err: str


def main(argv: Sequence[str]) -> int:
    """Run the command; return 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="runs stopped at random moments")
    parser.add_argument("--corruptions", type=int, default=60, help="files and folders damaged")
    parser.add_argument("--seed", type=int, default=0, help="decides moments and damages")
    arguments = parser.parse_args(argv)
    # A background process ignores SIGINT, and so would every process started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chance = random.Random(arguments.seed)
    results: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        references = {name: make_reference(name, Path(scratch)) for name in RUNS}
        damages = itertools.islice(itertools.cycle(DAMAGES.items()), arguments.corruptions)
        killed = itertools.islice(itertools.cycle(references.items()), arguments.kills)
        alone = itertools.cycle([references["gap"], references["less_params"]])
        trials: list[tuple[str, Inflict, Reference]] = [
            *((f"{name}: killed or interrupted, again and again", kill, of) for name, of in killed),
            *((fault, inflict, next(alone)) for fault, inflict in damages),
            *((fault, inflict, next(alone)) for fault, inflict in list(DISKS.items()) * 2),
        ]
        for number, (fault, inflict, reference) in enumerate(trials):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                outcome = inflict(reference, Path(folder), chance)
            results.setdefault(fault, Counter())[outcome] += 1
            print(f"{number + 1}/{len(trials)} {fault}: {outcome}", file=sys.stderr)
    print_table(make_console(), table(results))
    return int(any(counts["lost"] for counts in results.values()))


def make_reference(name: str, scratch: Path) -> Reference:
    """Train a run of `RUNS` twice: to the end, and until it is stopped half-way."""
    words = [*RUNS[name], *RUN]
    (scratch / name / "half").mkdir(parents=True)
    expect(finish(start(words, scratch / name)), 0)  # compiles for later runs
    shutil.rmtree(scratch / name / "run")
    begin = time.monotonic()
    expect(finish(start(words, scratch / name)), 0)
    seconds = time.monotonic() - begin
    process = start(words, scratch / name / "half")
    half = scratch / name / "half" / "run"
    seed0 = run_folder.checkpoint_folder(half, 0)
    while process.poll() is None:
        if len(list(seed0.glob("*/_CHECKPOINT_METADATA"))) >= 2:
            break
        time.sleep(0.01)
    process.terminate()
    expect(finish(process), 143)
    return Reference(words, jaxmnist.load_run(scratch / name / "run").split(), seconds, half)


def start(
    words: Sequence[str], folder: Path, words_before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start the training command in a folder."""
    return subprocess.Popen(
        [sys.executable, *words_before, str(TRAIN.absolute()), *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a process; kill it if it hangs."""
    try:
        _, err = process.communicate(timeout=HANGS_AFTER)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Done(None, "")
    return Done(process.returncode, err)


def expect(done: Done, status: int) -> None:
    """Stop the whole test if a run without faults fails."""
    if done.status != status:
        raise RuntimeError(f"a run ended with {done.status}, not {status}: {done.err}")


def outcome_of(words: Sequence[str], reference: Reference, folder: Path) -> str:
    """Continue a run; return its outcome."""
    done = finish(start(words, folder))
    if is_refused(done, 1) or is_refused(done, 2):
        return "refused"
    return "survived" if done.status == 0 and is_same(folder / "run", reference.runs) else "lost"


def is_refused(done: Done, status: int) -> bool:
    """Return whether a process ended with this status and a one-line error."""
    is_a_line = done.err.startswith("error: ") and done.err.count("\n") == 1
    return done.status == status and is_a_line


def is_same(folder: Path, expected: list[jaxmnist.Run]) -> bool:
    """Return whether a run of one or more seeds ended with the expected bytes and rows."""
    try:
        found = jaxmnist.load_run(folder).split()
    except (ConfigError, CheckpointError, OSError):
        return False

    def content(run: jaxmnist.Run) -> list[object]:
        state = run.state.replace(key=jax.random.key_data(run.state.key))
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in run.rows]
        return [arrays, rows, run.summary["final_test_accuracy"]]

    lines = (folder / "metrics.jsonl").read_text().count("\n")
    is_whole = lines == sum(len(run.rows) for run in expected)
    return is_whole and list(map(content, found)) == list(map(content, expected))


def kill(reference: Reference, folder: Path, chance: random.Random) -> str:
    """Stop a run at a random moment, and half of the time its continuation too."""
    words, kills = reference.words, 0
    while kills == 0 or chance.random() < 0.5:
        process = start(words, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, reference.seconds))
        number = chance.choice(SIGNALS)
        process.send_signal(number)
        done = finish(process)
        if done.status in (-number, 128 + number):
            kills += 1
        elif done.status != 0:  # 0: the run ended first
            return "lost"
        if done.err.count("\n") > 1:
            return "lost"
        words = [*reference.words, "--resume"]
    outcome = outcome_of([*reference.words, "--resume"], reference, folder)
    return "lost" if outcome == "refused" else outcome


def damaged(damage: Callable[[Path, random.Random], None]) -> Inflict:
    """Return a fault that damages a run stopped half-way."""

    def inflict(reference: Reference, folder: Path, chance: random.Random) -> str:
        shutil.copytree(reference.half, folder / "run")
        damage(folder / "run", chance)
        words = chance.choice([[], reference.words])  # the original arguments are optional
        return outcome_of([*words, "--resume", "--out", "run"], reference, folder)

    return inflict


def newest(run: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max(run_folder.checkpoint_folder(run, 0).glob("[0-9]*"), key=lambda path: int(path.name))


def any_file(folder: Path, chance: random.Random) -> Path:
    """Return a random file that is not empty."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return chance.choice(files)


def flip_bit(file: Path, chance: random.Random) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def cut(file: Path, chance: random.Random) -> None:
    """Cut a file at a random place."""
    os.truncate(file, chance.randrange(file.stat().st_size))


def scribble(file: Path, chance: random.Random) -> None:
    """Overwrite up to 4,096 bytes with noise."""
    content = bytearray(file.read_bytes())
    begin = chance.randrange(len(content))
    length = min(4096, len(content) - begin)
    content[begin : begin + length] = chance.randbytes(length)
    file.write_bytes(content)


def remove_folder(run: Path, chance: random.Random) -> None:
    """Remove a random folder."""
    shutil.rmtree(chance.choice(sorted(path for path in run.rglob("*") if path.is_dir())))


def flip_in_every_checkpoint(run: Path, chance: random.Random) -> None:
    """Flip one bit of the arrays in every checkpoint."""
    for checkpoint in run_folder.checkpoint_folder(run, 0).glob("[0-9]*"):
        files = (path for path in (checkpoint / "arrays").rglob("*") if path.is_file())
        flip_bit(max(files, key=lambda path: path.stat().st_size), chance)


DAMAGES: dict[str, Inflict] = {
    "a bit flipped in the newest checkpoint": damaged(
        lambda run, chance: flip_bit(any_file(newest(run), chance), chance)
    ),
    "a bit flipped in its arrays": damaged(
        lambda run, chance: flip_bit(any_file(newest(run) / "arrays", chance), chance)
    ),
    "a bit flipped in any file": damaged(
        lambda run, chance: flip_bit(any_file(run, chance), chance)
    ),
    "a bit flipped in the arrays of all checkpoints": damaged(flip_in_every_checkpoint),
    "a file cut": damaged(lambda run, chance: cut(any_file(run, chance), chance)),
    "noise in a file": damaged(lambda run, chance: scribble(any_file(run, chance), chance)),
    "a file removed": damaged(lambda run, chance: any_file(run, chance).unlink()),
    "a folder removed": damaged(remove_folder),
    "a line of metrics.jsonl torn": damaged(lambda run, chance: cut(run / "metrics.jsonl", chance)),
}


# Skips the check for disk space before a checkpoint, as if the disk filled up after it.
UNCHECKED = [
    "-c",
    "import os, runpy, sys; from jaxmnist.runs import checkpoint; del sys.argv[0]; "
    "checkpoint._check_room = lambda *_: None; sys.path[0] = os.path.dirname(sys.argv[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__')",
]


def disk_filled(words_before: Sequence[str], sizes: range) -> Inflict:
    """Return a fault that fills a run's disk, then adds space and continues the run."""

    def inflict(reference: Reference, folder: Path, chance: random.Random) -> str:
        size = chance.choice(sizes)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "torture", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return "not possible here"
        try:
            if not is_refused(finish(start(reference.words, folder, words_before)), 1):
                return "lost"
            subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
            outcome = outcome_of([*reference.words, "--resume"], reference, folder)
            return "lost" if outcome == "refused" else outcome
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    return inflict


DISKS: dict[str, Inflict] = {
    "the disk is full before a checkpoint": disk_filled([], range(300, 1300)),
    "the disk fills up during a checkpoint": disk_filled(UNCHECKED, range(60, 400)),
}


def table(results: dict[str, Counter[str]]) -> Table:
    """Return a table with one line per fault."""
    outcomes = ["survived", "refused", "lost"]
    outcomes += sorted({name for counts in results.values() for name in counts} - {*outcomes})
    shown = Table("fault", "injected", *outcomes)
    for fault, counts in results.items():
        shown.add_row(fault, str(counts.total()), *(str(counts[outcome]) for outcome in outcomes))
    total = sum(results.values(), Counter())
    shown.add_section()
    shown.add_row("all", str(total.total()), *(str(total[outcome]) for outcome in outcomes))
    return shown


if __name__ == "__main__":
    sys.exit(run_main(main))
