"""Trains with the parts of `scripts/train.py`, and times its first steps and its epochs.

Prints JSON: the monotonic clock, in seconds, at the end of the first chunk of steps; the same for
each epoch, with its test accuracy in percent; the peak memory of the whole run, in bytes.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import train
from support.command import keep_compiled_programs

from jaxmnist import Callbacks
from jaxmnist import train as train_run
from jaxmnist.runs.setup import EpochDone, Event, Progress


def main() -> None:
    """Run the training command that follows the compilation cache's folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("compilation_cache")
    known, words = parser.parse_known_args()
    first: list[float] = []
    epochs: list[tuple[float, float]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Progress):
            first.append(time.monotonic())
        if isinstance(event, EpochDone):
            epochs.append((time.monotonic(), event.rows[0]["test_accuracy"]))

    arguments = train.make_parser().parse_words(words)
    config, seeds, options = train.resolve(arguments)
    keep_compiled_programs(Path(known.compilation_cache))
    train_run(config, arguments.out, seeds, options, Callbacks(watch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"first_step": first[0], "epochs": epochs, "peak_bytes": peak * unit}))


if __name__ == "__main__":
    main()
