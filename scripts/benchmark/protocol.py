"""Communication of the benchmark with the programs that it times: a line of JSON each way.

Every contender is a separate process, which waits while another one works. This file needs only
the standard library: a contender may run in an environment without jaxmnist.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Does a job the given number of times, and returns when the work is done.
Job = Callable[[int], object]

ROUND_SECONDS = 1.6
LAST_WORDS = 500  # characters


class ContenderError(RuntimeError):
    """Failure of a contender, or of one of its jobs."""


class Offer(NamedTuple):
    """The jobs and facts that a contender offers for its work."""

    jobs: Mapping[str, Job]
    facts: Mapping[str, Any] = {}


class Contender:
    """The benchmark's connection to a contender.

    Args:
        command: the command that starts the contender.
        work: the contender's work.

    Raises:
        ContenderError: the contender does not start.
    """

    def __init__(self, command: Sequence[str | Path], work: Mapping[str, Any]):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        try:
            self._process = subprocess.Popen(command, text=True, **pipes)
        except OSError:
            self._errors.close()
            raise
        try:
            offer = self._ask(work)
        except ContenderError:
            self.close()
            raise
        self.jobs: list[str] = offer["jobs"]
        self.facts: dict[str, Any] = offer["facts"]

    def seconds(self, job: str) -> float:
        """Time one round of a job. The first round of a job also prepares it.

        Returns:
            The seconds for doing the job once, on average over the round.

        Raises:
            ContenderError: the job failed.
        """
        return self._ask(job)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderError(self._last_words()) from None
        line = self._process.stdout.readline()
        if not line:
            raise ContenderError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer["answer"]

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        # In a traceback, the message follows the last indented line.
        words = re.split(r"\n[ \t].*\n", self._errors.read().strip())[-1]
        return f"it ended with status {self._process.returncode}: {words[-LAST_WORDS:]}"


def serve(prepare: Callable[[dict[str, Any]], Offer]) -> None:
    """Serve a contender's jobs until the benchmark closes the connection.

    Args:
        prepare: the function from the work to the contender's offer.
    """
    # Libraries sometimes print to standard output; only replies may go to the reply stream.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = json.loads(sys.stdin.readline())
    round_seconds = work.get("round_seconds", ROUND_SECONDS)
    offer = prepare(work)
    rounds = {name: Rounds(job, round_seconds) for name, job in offer.jobs.items()}
    _reply(replies, {"answer": {"jobs": list(rounds), "facts": dict(offer.facts)}})
    for line in sys.stdin:
        try:
            answer = {"answer": rounds[json.loads(line)].seconds()}
        except Exception as error:  # one failing job must not end the others
            answer = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
        _reply(replies, answer)


class Rounds:
    """Timer of a job, in rounds of half to all of `round_seconds`."""

    def __init__(self, job: Job, round_seconds: float):
        self._job = job
        self._round_seconds = round_seconds
        self._times = 0

    def seconds(self) -> float:
        """Return the seconds for doing the job once, on average over a round."""
        if self._times == 0:
            self._job(1)  # compiles, and fills caches
            self._times = 1
            while self._once(self._times) * self._times < self._round_seconds / 2:
                self._times *= 2
        return self._once(self._times)

    def _once(self, times: int) -> float:
        begin = time.perf_counter()
        self._job(times)
        return (time.perf_counter() - begin) / times


def _reply(replies: Any, answer: dict[str, Any]) -> None:
    replies.write(json.dumps(answer) + "\n")
    replies.flush()
