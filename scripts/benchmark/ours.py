"""Times jaxmnist, with the programs that `scripts/train.py` runs, and the machine's limits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inputs import load_images
from layer_times import repeat
from protocol import Job, Offer, serve

from jaxmnist.config import TrainConfig, steps_per_epoch
from jaxmnist.metrics import Metrics
from jaxmnist.models import create_model
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel.programs import compile_programs, stack
from jaxmnist.runs.summary import environment
from jaxmnist.state import initial_state
from jaxmnist.steps import Images

MATMUL_SIZE = 2048
COPY_NUMBERS = 2**26  # 256 MB of float32


def prepare(work: dict[str, Any]) -> Offer:
    """Return jobs for training with and without augmentation, and for evaluation."""
    train_images, test_images = load_images(work)
    jobs: dict[str, Job] = {}
    facts = {}
    for job in ("step", "augmented step"):
        config = TrainConfig(
            work["variant"], batch_size=work["batch_size"], augment=job == "augmented step"
        )
        trainer = Trainer(config, train_images, test_images)
        jobs |= {job: trainer.train, "evaluation": trainer.evaluate}
        facts[f"{job} compile seconds"] = trainer.programs.compile_seconds
    matrix, numbers = jnp.ones((MATMUL_SIZE, MATMUL_SIZE)), jnp.ones(COPY_NUMBERS)
    jobs["matmul"] = repeat(jax.jit(jnp.matmul), matrix, matrix)
    jobs["copy"] = negation(numbers)
    facts |= {"matmul flop": 2 * MATMUL_SIZE**3, "copy bytes": 2 * numbers.nbytes}
    return Offer(jobs, facts | environment())


def negation(numbers: jax.Array) -> Job:
    """Return a job that negates the numbers in place: each is read and written.

    Otherwise the time would be that of allocating new memory.
    """
    negate = jax.jit(jnp.negative, donate_argnums=0)
    carry = [numbers]

    def job(times: int) -> None:
        for _ in range(times):
            carry[0] = negate(carry[0])
        jax.block_until_ready(carry)

    return job


class Trainer:
    """A network in training, by the programs of `jaxmnist.train`; several seeds side by side."""

    def __init__(
        self, config: TrainConfig, train_images: Images, test_images: Images, seeds: int = 1
    ):
        self._train_images, self._test_images = train_images, test_images
        model = create_model(config.variant, config.dropout)
        self._steps = steps_per_epoch(len(train_images.pixels), config.batch_size)
        tx, _ = make_optimizer(config, config.epochs * self._steps)
        states = [initial_state(model, tx, config.seed + number) for number in range(seeds)]
        self.programs = compile_programs(config, model, tx, train_images, test_images, seeds)
        self._state = self.programs.put(stack(states))
        self._zero = stack([Metrics.zero()] * seeds)

    def train(self, steps: int) -> None:
        """Train for more steps."""
        stop = self._step + steps
        while self._step < stop:
            if self._step % self._steps == 0:
                self._order = self.programs.epoch_permutation(self._state, self._train_images)
            self._state, metrics = self.programs.train_chunk(
                self._state,
                self.programs.put(self._zero),
                self._train_images,
                self._order,
                np.int32(stop),
            )
            if not np.isfinite(metrics.loss_sum).all():
                raise RuntimeError(f"the loss is not finite at step {self._step}")

    @property
    def _step(self) -> int:
        return int(self.programs.get(self._state.step)[0])

    def evaluate(self, times: int) -> None:
        """Evaluate all test images a number of times."""
        for _ in range(times):
            jax.block_until_ready(self.programs.evaluate(self._state, self._test_images))


if __name__ == "__main__":
    serve(prepare)
