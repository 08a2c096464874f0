"""What a process does that trains seeds for another one: `python -m jaxmnist.runs.worker`.

`processes.py` starts it, and says what the lines of JSON between the two are.
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

from jaxmnist import data
from jaxmnist.config import TrainConfig
from jaxmnist.parallel.devices import fix_flags, keep_compiled
from jaxmnist.runs.run import Job, make_job
from jaxmnist.runs.training import Event, Stopped, Watch, train_each


def main() -> None:
    """Trains the seeds that standard input names, until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the other process hears them, too, and says stop
    # Libraries print to standard output now and then; only answers may go where answers go.
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
    job = prepare(task)
    watch = Watch(task["checkpoint_every"], task["keep"], report, stop.is_set)
    try:
        for seed, end in train_each(job, _seeds(requests), Path(task["path"]), watch):
            answer("done", seed, str(end) if isinstance(end, Exception) else None)
    except Stopped:
        answer("stopped")
    # Until the other process hangs up: then `_listen` ends this one.
    threading.Event().wait()


def prepare(task: dict[str, Any]) -> Job:
    """Takes its cores, shares what is compiled, and loads the images.

    Args:
        task: what `processes.py` says first.

    Returns:
        What is run, whatever its seed.
    """
    cores = task["cores"]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    fix_flags()
    keep_compiled(Path(task["cache"]), len(cores))
    config = TrainConfig.from_json(task["config"])
    return make_job(config, task["data_dir"], task["idx_dir"], data.ignore_progress)


def _seeds(requests: "queue.SimpleQueue[Any]") -> Iterator[int]:
    while True:
        yield requests.get()


def _listen(requests: "queue.SimpleQueue[Any]", stop: threading.Event) -> None:
    """Takes requests at any time; without anybody to ask there is nothing to go on for."""
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
