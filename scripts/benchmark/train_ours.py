"""Participant: training as by `scripts/train.py`, timed from the start of the process."""

import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import train as command  # its imports are part of the start
from support.command import keep_compiled_programs

from jaxmnist import Callbacks, RunOptions, TrainConfig
from jaxmnist.runs.setup import EpochDone, Event, Progress


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Run a training.

    Returns:
        The seconds from the spec's `begin` to the end of the first chunk of steps, and to the end
        of each epoch with its test accuracy in percent; and the peak memory in bytes.
    """
    chunks: list[float] = []
    epochs: list[tuple[float, float]] = []

    def watch(event: Event) -> None:
        seconds = time.monotonic() - spec["begin"]
        if isinstance(event, Progress):
            chunks.append(seconds)
        if isinstance(event, EpochDone):
            epochs.append((seconds, event.rows[0]["test_accuracy"]))

    keep_compiled_programs(Path(spec["cache"]))
    options = RunOptions(data_dir=spec["data_dir"], idx_dir=spec["idx_dir"])
    command.train(TrainConfig(**spec["config"]), spec["out"], None, options, Callbacks(watch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return {"first_step": chunks[0], "epochs": epochs, "peak_bytes": peak * unit}
