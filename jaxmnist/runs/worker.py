"""Worker process that trains seeds: `python -m jaxmnist.runs.worker DESCRIPTOR`.

`processes.py` starts it and describes the messages on the pipe.
"""

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from jaxmnist.parallel.devices import enable_compilation_cache, fix_flags
from jaxmnist.parallel.programs import compile_programs
from jaxmnist.runs import checkpoint, run_folder
from jaxmnist.runs.loop import Stopped, TrainLoop
from jaxmnist.runs.processes import STOP, STOPPED, Finished
from jaxmnist.runs.run import first_snapshot, read_snapshot
from jaxmnist.runs.setup import Callbacks, make_setup


def main() -> None:
    """Train the seeds received through the pipe, until it is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent process sends STOP
    pipe = Connection(int(sys.argv[1]))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=listen, args=(pipe, requests, stop), daemon=True).start()
    config, options, path, cores, cache = requests.get()
    use_cores(cores, cache)
    setup = make_setup(config, options, mapping="processes")
    programs = compile_programs(
        setup.config, setup.model, setup.tx, setup.train_images, setup.test_images
    )
    callbacks = Callbacks(report=pipe.send, should_stop=stop.is_set)
    try:
        while True:
            seed = requests.get()
            has_begun = checkpoint.steps(run_folder.checkpoint_folder(path, seed))
            snapshot = (
                read_snapshot(setup, path, seed)[0] if has_begun else first_snapshot(setup, seed)
            )
            ends = TrainLoop(setup, {seed: snapshot}, programs, path, callbacks).run()
            if not isinstance(ends[seed], Exception):  # a failure is reported already
                pipe.send(Finished(seed))
    except Stopped:
        pipe.send(STOPPED)


def use_cores(cores: list[int], cache: str) -> None:
    """Use the given cores, and the cache of programs compiled for their number."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    fix_flags()
    enable_compilation_cache(Path(cache), len(cores))


def listen(pipe: Connection, requests: "queue.SimpleQueue[Any]", stop: threading.Event) -> None:
    """Receive requests in a thread; exit this process at once when its parent ends."""
    try:
        while True:
            request = pipe.recv()
            if request == STOP:
                stop.set()
            else:
                requests.put(request)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
