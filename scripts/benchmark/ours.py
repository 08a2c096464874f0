"""Participant: jaxmnist with the programs of `scripts/train.py`, and the machine's limits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from layer_times import iterate, repeat
from participant import Prepared

from jaxmnist.config import TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.parallel.programs import compile_programs, stack
from jaxmnist.runs.setup import RunOptions, Setup, make_setup
from jaxmnist.runs.summary import environment
from jaxmnist.state import initial_state

MATMUL_SIZE = 2048
COPY_NUMBERS = 2**26  # 256 MB of float32


def prepare(spec: dict[str, Any]) -> Prepared:
    """Return jobs for training, with and without augmentation, and for evaluation."""
    plain, augmented = (
        Trainer(setup_of(spec, augment=is_augmented)) for is_augmented in (False, True)
    )
    matrix, numbers = jnp.ones((MATMUL_SIZE, MATMUL_SIZE)), jnp.ones(COPY_NUMBERS)
    # In place: otherwise this would measure the allocation of memory.
    negate = jax.jit(lambda numbers: (-numbers,), donate_argnums=0)
    jobs = {
        "step": plain.train,
        "evaluation": plain.evaluate,
        "augmented step": augmented.train,
        "matmul": repeat(jax.jit(jnp.matmul), matrix, matrix),
        "copy": iterate(negate, numbers),
    }
    facts = {
        "compile seconds": augmented.programs.compile_seconds,
        "matmul flop": 2 * MATMUL_SIZE**3,
        "copy bytes": 2 * 4 * COPY_NUMBERS,
        **environment(),
    }
    return jobs, facts


def setup_of(spec: dict[str, Any], **changes: Any) -> Setup:
    """Return the setup of a spec's config with some values changed."""
    options = RunOptions(data_dir=spec["data_dir"], idx_dir=spec["idx_dir"])
    return make_setup(TrainConfig(**spec["config"] | changes), options)


class Trainer:
    """Training of a network with the programs of `jaxmnist.train`, for seeds in parallel."""

    def __init__(self, setup: Setup, seeds: int = 1):
        self._setup, self._step = setup, 0
        images = setup.train_images, setup.test_images
        self.programs = compile_programs(setup.config, setup.model, setup.tx, *images, seeds)
        states = [initial_state(setup.model, setup.tx, seed) for seed in range(seeds)]
        self._state = self.programs.put(stack(states))
        self._zero = stack([Metrics.zero()] * seeds)

    def train(self, steps: int) -> None:
        """Train for a number of steps, with one call per epoch."""
        images, stop = self._setup.train_images, self._step + steps
        while self._step < stop:
            if self._step % self._setup.steps == 0:
                self._order = self.programs.epoch_permutation(self._state, images)
            self._state, metrics = self.programs.train_chunk(
                self._state, self.programs.put(self._zero), images, self._order, np.int32(stop)
            )
            self._step = int(self.programs.get(self._state.step)[0])
            if not np.isfinite(metrics.loss_sum).all():
                raise RuntimeError(f"the loss is not finite at step {self._step}")

    def evaluate(self, times: int) -> None:
        """Evaluate all test images a number of times."""
        for _ in range(times):
            jax.block_until_ready(self.programs.evaluate(self._state, self._setup.test_images))
