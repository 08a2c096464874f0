"""A run of `scripts/train.py`'s own parts, which tells when its first step and epochs were done.

Prints JSON: the monotonic clock, in seconds, when the first chunk of steps was done; the same for
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

from jaxmnist.runs import training


def main() -> None:
    """Runs the command that follows the name of the compilation cache's folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("compilation_cache")
    known, words = parser.parse_known_args()
    first: list[float] = []
    epochs: list[tuple[float, float]] = []

    def watch(event: training.Event) -> None:
        if isinstance(event, training.Progress):
            first.append(time.monotonic())
        if isinstance(event, training.EpochDone):
            epochs.append((time.monotonic(), event.rows[0]["test_accuracy"]))

    arguments = train.parse(words)
    keep_compiled_programs(Path(known.compilation_cache))
    training.train(
        arguments.config,
        out=arguments.out,
        data_dir=arguments.data_dir,
        idx_dir=arguments.idx_dir,
        report=watch,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"first_step": first[0], "epochs": epochs, "peak_bytes": peak * unit}))


if __name__ == "__main__":
    main()
