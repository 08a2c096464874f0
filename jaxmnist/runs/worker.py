"""The process that trains seeds for another one: `python -m jaxmnist.runs.worker`.

`processes.py` starts it, and describes the lines of JSON between the two.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmnist.config import TrainConfig
from jaxmnist.parallel.devices import enable_compilation_cache, fix_flags
from jaxmnist.parallel.programs import compile_programs
from jaxmnist.runs.loop import Stopped
from jaxmnist.runs.setup import Callbacks, Event, RunOptions, Setup, make_setup
from jaxmnist.runs.train import train_groups


def main() -> None:
    """Train the seeds that standard input names, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent process sends "stop"
    # Libraries print to standard output now and then; only answers may go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()

    def answer(*message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    def report(event: Event) -> None:
        answer(type(event).__name__, *event)

    task = requests.get()
    setup, options = prepare(task)
    programs = compile_programs(
        setup.config, setup.model, setup.tx, setup.train_images, setup.test_images
    )
    callbacks = Callbacks(report=report, should_stop=stop.is_set)
    path = Path(task["path"])
    try:
        for seed, end in train_groups(setup, _groups(requests), programs, path, options, callbacks):
            answer("done", seed, str(end) if isinstance(end, Exception) else None)
    except Stopped:
        answer("stopped")
    # Until the parent closes the pipe: then `_listen` ends this process.
    threading.Event().wait()


def prepare(task: dict[str, Any]) -> tuple[Setup, RunOptions]:
    """Take the cores, share compiled programs, and load the images.

    Args:
        task: the first message of the parent.
    """
    cores = task["cores"]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    fix_flags()
    enable_compilation_cache(Path(task["cache"]), len(cores))
    names = ("data_dir", "idx_dir", "checkpoint_every", "keep")
    options = RunOptions(**{name: task[name] for name in names})
    config = TrainConfig.from_json(task["config"])
    return make_setup(config, options, mapping="processes"), options


def _groups(requests: "queue.SimpleQueue[Any]") -> Iterator[list[int]]:
    while True:
        yield [requests.get()]


def _listen(requests: "queue.SimpleQueue[Any]", stop: threading.Event) -> None:
    """Take requests at any time; without a parent there is nothing to go on for."""
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if request == "stop":
                stop.set()
            else:
                requests.put(request)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
