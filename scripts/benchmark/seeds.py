"""Times jaxmnist's training of several seeds, with each seed mapping."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
from inputs import load_images
from ours import Trainer
from protocol import Job, Offer, serve

from jaxmnist.config import TrainConfig
from jaxmnist.parallel.seed_mapping import shares_of_cores


def prepare(work: dict[str, Any]) -> Offer:
    """Return a job for each mapping and number of seeds: a step of all of them."""
    one = made_at_first(lambda: trainer(work, 1).train)
    jobs: dict[str, Job] = {}
    for seeds in work["seeds"]:
        jobs[f"loop {seeds}"] = one_after_another(one, seeds)
        jobs[f"vmap {seeds}"] = made_at_first(lambda seeds=seeds: trainer(work, seeds).train)
        if jax.default_backend() == "cpu":
            jobs[f"processes {seeds}"] = in_processes(work, seeds)
    return Offer(jobs)


def made_at_first(make: Callable[[], Job]) -> Job:
    """Return a job that is made at its first call: if compilation fails, it fails alone."""
    make = functools.cache(make)
    return lambda times: make()(times)


def trainer(work: dict[str, Any], seeds: int) -> Trainer:
    """Return a trainer of several seeds in one program."""
    config = TrainConfig(work["variant"], batch_size=work["batch_size"])
    return Trainer(config, *load_images(work), seeds)


def one_after_another(train: Job, seeds: int) -> Job:
    """Return a job that trains several seeds in turn."""

    def job(times: int) -> None:
        for _ in range(seeds):
            train(times)

    return job


def in_processes(work: dict[str, Any], seeds: int) -> Job:
    """Return a job that trains seeds in processes, one per share of the cores."""
    shares = shares_of_cores(seeds)
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, begin, (work, cores)) for cores in shares]

    def job(times: int) -> None:
        counts = [len(range(first, seeds, len(pools))) for first in range(len(pools))]
        trained = [
            pool.submit(train_here, count, times) for pool, count in zip(pools, counts, strict=True)
        ]
        for one in trained:
            one.result()

    return job


here: dict[str, Callable[[int], Job]] = {}  # in a process of a pool: makes its job


def begin(work: dict[str, Any], cores: list[int]) -> None:
    """Bind a process of a pool to its cores; end it with its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(0)), daemon=True).start()
    os.environ["NPROC"] = str(len(cores))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    here["seeds"] = functools.partial(one_after_another, trainer(work, 1).train)


def train_here(seeds: int, times: int) -> None:
    """Train several seeds in this process."""
    here["seeds"](seeds)(times)


if __name__ == "__main__":
    serve(prepare)
