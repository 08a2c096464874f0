"""Participant: jaxmnist's training of several seeds, with each seed mapping."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from ours import Trainer, setup_of
from participant import Job, Participant, Prepared

from jaxmnist.parallel.seed_mapping import shares_of_cores


def prepare(spec: dict[str, Any]) -> Prepared:
    """Return jobs of one step per seed, named by the mapping and the number of seeds.

    The job for `loop` trains one seed, since the time per seed does not depend on their number.
    """
    # In a process of `in_processes`: use its cores, before JAX starts threads.
    if cores := spec.get("cores"):
        os.environ["NPROC"] = str(len(cores))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    def trainer(seeds: int) -> Job:
        return Trainer(setup_of(spec), seeds).train

    jobs = {"loop 1": made_at_first_call(trainer, 1)}
    for seeds in spec["seeds"]:
        jobs[f"vmap {seeds}"] = made_at_first_call(trainer, seeds)
        if jax.default_backend() == "cpu":
            jobs[f"processes {seeds}"] = made_at_first_call(in_processes, spec, seeds)
    return jobs, {}


def made_at_first_call(make: Callable[..., Job], *arguments: Any) -> Job:
    """Return a job that is compiled at its first call, so that a failure affects no other job."""
    made = functools.cache(lambda: make(*arguments))
    return lambda times: made()(times)


def in_processes(spec: dict[str, Any], seeds: int) -> Job:
    """Return a job that trains seeds in processes, each with its share of the cores.

    The processes end with this process, which holds the pipes.
    """
    shares = shares_of_cores(seeds)
    processes = [Participant("seeds") for _ in shares]
    for process, cores in zip(processes, shares, strict=True):
        process.ask("prepare", {**spec, "cores": cores, "seeds": []})

    def job(times: int) -> None:
        for number, process in enumerate(processes):
            count = len(range(number, seeds, len(processes)))
            process.send("loop 1", count * times)
        for process in processes:
            process.receive()

    return job
