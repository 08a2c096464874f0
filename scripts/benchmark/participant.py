"""Participants of the benchmark: processes that wait for requests, a line of JSON each way.

A participant runs the functions of a module of this folder, of which `prepare(spec)` returns jobs,
by name, and facts about them. Only one participant works at a time. This file needs only the
standard library: PyTorch may be in an environment without jaxmnist.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

# Function that does its work the given number of times, and returns when all is done.
Job = Callable[[int], object]
Prepared = tuple[Mapping[str, Job], Mapping[str, Any]]  # jobs by name, and facts

ROUND_SECONDS = 1.6  # the most that a round takes, unless doing a job once takes longer


class ParticipantError(RuntimeError):
    """Failure of a participant, or of one of its jobs."""


class Participant:
    """The benchmark's connection to a participant; the process ends with the context.

    Args:
        module: its name.
        python: the interpreter.

    Raises:
        OSError: the interpreter cannot be started.
    """

    def __init__(self, module: str, python: str = sys.executable):
        self._repetitions: dict[str, int] = {}  # of each job in a round
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # A process group of its own: Ctrl-C is for the benchmark alone.
        self._process = subprocess.Popen([python, __file__, module], process_group=0, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds(self, job: str) -> float:
        """Return the seconds for doing a prepared job once, on average over a round.

        Raises:
            ParticipantError: the job failed.
        """
        if job not in self._repetitions:
            self.ask(job, 1)  # compiles, and fills caches
            times = 1
            while self.ask(job, times) < ROUND_SECONDS / 2:
                times *= 2
            self._repetitions[job] = times
        return self.ask(job, self._repetitions[job]) / self._repetitions[job]

    def ask(self, request: str, value: Any) -> Any:
        """Send a request, and return the answer.

        Raises:
            ParticipantError: the request failed, or the process ended.
        """
        self.send(request, value)
        return self.receive()

    def send(self, request: str, value: Any) -> None:
        """Send the name of a function, and its argument; or of a job, and how often to do it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports that the process has ended
            self._process.stdin.write(json.dumps([request, value]) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """Return the answer to a request: a job's is the seconds that it took."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ParticipantError(f"its process ended with status {self._process.wait()}")
        answer, error = json.loads(line)
        if error is not None:
            raise ParticipantError(error)
        return answer


def serve(module: str) -> None:
    """Answer requests until the benchmark closes the pipe: `[answer, None]` or `[None, error]`."""
    # Libraries sometimes print to standard output; only answers may go to the benchmark.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    jobs: Mapping[str, Job] = {}
    for line in sys.stdin:
        request, value = json.loads(line)
        answer = error = None
        try:
            functions = importlib.import_module(module)
            if request in jobs:
                begin = time.perf_counter()
                jobs[request](value)
                answer = time.perf_counter() - begin
            elif request == "prepare":
                jobs, facts = functions.prepare(value)
                answer = list(jobs), facts
            else:
                answer = getattr(functions, request)(value)
        except Exception as failure:  # one failing job must not end the others
            error = f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"
        print(json.dumps([answer, error]), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
