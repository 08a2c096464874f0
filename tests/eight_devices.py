"""A program that tests start: one network on 1, 2, 4 and 8 virtual devices.

It prints a line of JSON for each program: how far its state is from that of one device, and what
it costs. In a process of its own, since JAX has to know of the devices before it does anything.
"""

import functools
import json
import os
import re
import sys

# The programs run for a moment: optimising them (level 1 and above) would take longer. Not so for
# twenty steps of eight copies of skeleton.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    f"--xla_backend_optimization_level={int('skeleton' in sys.argv[2])}"
)

import jax
import numpy as np

from jaxmnist import TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.models import model_of
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel.devices import Devices, make_layout
from jaxmnist.parallel.programs import compile_programs, stack
from jaxmnist.state import create_state
from jaxmnist.steps import Images, epoch_permutation

# Communication between devices, in a compiled program.
EXCHANGE = re.compile(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(")
BATCH, COUNT, STEPS = 8, 8 * 20, 20


@functools.cache
def created(config: TrainConfig, seed: int):
    """The first state of a seed, in the host's memory."""
    model = model_of(config)
    tx = make_optimizer(config, 100)
    with_ema = config.ema_decay > 0
    return jax.jit(functools.partial(create_state, model, tx, with_ema=with_ema))(seed)


class Case:
    """A network in training on some devices."""

    def __init__(self, config: TrainConfig, devices: Devices, seeds: tuple[int, ...] = (0,)):
        model = model_of(config)
        tx = make_optimizer(config, 100)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (COUNT, 28, 28), np.uint8)
        labels = rng.integers(0, 10, COUNT, np.uint8)
        self.images = devices.replicate(Images(pixels, labels, *np.array([0.1307, 0.3081])))
        self.layout = make_layout(devices, len(seeds), BATCH)
        states = [created(config, seed) for seed in seeds]
        orders = [epoch_permutation(s, self.images, batch_size=BATCH) for s in states]
        self.orders = self.layout.put(stack(orders))
        self.states = self.layout.put(stack(states))
        self.metrics = self.layout.put(stack([Metrics.zero()] * len(seeds)))
        self.compile = functools.partial(
            compile_programs, config, model, tx, self.images, self.images, len(seeds), devices
        )

    def train(self, train_chunk, stop: int):
        """Return the states and metrics at step `stop`."""
        done = train_chunk(self.states, self.metrics, self.images, self.orders, np.int32(stop))
        states, metrics = self.layout.get(done)
        return states.replace(key=jax.random.key_data(states.key)), metrics


def difference(trees, others) -> float:
    """The largest between two numbers."""
    pairs = zip(jax.tree.leaves(trees), jax.tree.leaves(others), strict=True)
    return max(float(np.abs(np.subtract(a, b, dtype=np.float64)).max()) for a, b in pairs)


def one_seed(config: TrainConfig, stop: int, many: list[Devices]) -> None:
    """Trains on one device, and on many."""
    expected, flops = None, 0.0
    for devices in [Devices(1), *many]:
        case = Case(config, devices)
        train_chunk = case.compile().train_chunk
        found = case.train(train_chunk, stop)
        cost = train_chunk.cost_analysis()["flops"]
        expected, flops = expected or found, flops or cost
        exchanges = EXCHANGE.findall(train_chunk.as_text())
        print_line(devices, found, expected, share=cost / flops, exchanges=exchanges)


def many_seeds(config: TrainConfig, seeds: tuple[int, ...], many: list[Devices]) -> None:
    """Trains several seeds on one device, and on many, and evaluates them."""
    expected = None
    for devices in [Devices(1), *many]:
        case = Case(config, devices, seeds)
        programs = case.compile()
        order = programs.get(programs.epoch_permutation(case.states, case.images))
        assert (order == case.layout.get(case.orders)).all()
        states, metrics = case.train(programs.train_chunk, STEPS)
        # What `train` got is a copy; the programs took the states on the devices for themselves.
        again = states.replace(key=jax.random.wrap_key_data(states.key))
        tested = programs.get(programs.evaluate(programs.put(again), case.images))
        assert (tested.count == COUNT).all()
        found = (states, metrics, tested)
        expected = expected or found
        print_line(devices, found, expected, shape=devices.shape(len(seeds), BATCH))


def print_line(devices: Devices, found, expected, **more) -> None:
    """Prints a line; the sums of the loss, in float32 and of up to 400, are compared apart."""
    states, *sums = found
    other_states, *other_sums = expected
    line = {
        "devices": devices.count,
        "parallel": devices.parallel,
        "dtype": str(jax.tree.leaves(states.params)[0].dtype),
        "difference": difference(states, other_states),
        "difference_of_sums": difference(sums, other_sums),
        **more,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _, what, fields = sys.argv
    config = TrainConfig(**json.loads(fields), batch_size=BATCH)
    if what == "step":
        one_seed(config, 1, [Devices(8)])
    else:
        jax.config.update("jax_enable_x64", True)
        if what == "steps":
            one_seed(config, STEPS, [Devices(8)])
        elif what == "forms":
            one_seed(config, STEPS, [Devices(2), Devices(4), Devices(8), Devices(8, "pmap")])
        else:
            many_seeds(config, (0, 1, 2, 3), [Devices(8), Devices(4), Devices(8, "pmap")])
