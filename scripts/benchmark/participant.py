"""Participants of the benchmark: processes that receive requests and reply, as lines of JSON.

A participant calls the functions of a module in this folder. `prepare(spec)` returns jobs by name,
and facts about them. Only one participant works at a time. This file needs only the standard
library, because PyTorch may be in an environment without jaxmnist.
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

# Function that repeats its work the given number of times, and then returns.
Job = Callable[[int], object]
Prepared = tuple[Mapping[str, Job], Mapping[str, Any]]  # jobs by name, and facts

ROUND_SECONDS = 1.6  # maximum duration of a round, unless a single run of a job takes longer


class ParticipantError(RuntimeError):
    """Failure of a participant or of a job."""


class Participant:
    """The benchmark's connection to a participant; the process ends with the context.

    Args:
        module: the name of the participant's module.
        python: the Python interpreter.

    Raises:
        OSError: the interpreter cannot be started.
    """

    def __init__(self, module: str, python: str = sys.executable):
        self._repetitions: dict[str, int] = {}  # repetitions per round, by job
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # In a separate process group, it does not receive Ctrl-C.
        self._process = subprocess.Popen([python, __file__, module], process_group=0, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds(self, job: str) -> float:
        """Return the mean seconds per repetition of a prepared job, over a round.

        Raises:
            ParticipantError: the job failed.
        """
        if job not in self._repetitions:
            self.ask(job, 1)  # compile, and fill caches
            times = 1
            while self.ask(job, times) < ROUND_SECONDS / 2:
                times *= 2
            self._repetitions[job] = times
        return self.ask(job, self._repetitions[job]) / self._repetitions[job]

    def ask(self, request: str, value: Any) -> Any:
        """Send a request and return the reply.

        Raises:
            ParticipantError: the request failed, or the process ended.
        """
        self.send(request, value)
        return self.receive()

    def send(self, request: str, value: Any) -> None:
        """Send a function's name and its argument, or a job's name and its repetitions."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports that the process has ended
            self._process.stdin.write(json.dumps([request, value]) + "\n")
            self._process.stdin.flush()

    def receive(self) -> Any:
        """Return the reply to a request; for a job, this is its duration in seconds."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ParticipantError(f"its process ended with status {self._process.wait()}")
        answer, error = json.loads(line)
        if error is not None:
            raise ParticipantError(error)
        return answer


def serve(module: str) -> None:
    """Reply to requests, with `[answer, None]` or `[None, error]`, until the pipe is closed."""
    # Libraries may print to standard output, which is reserved for replies.
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
