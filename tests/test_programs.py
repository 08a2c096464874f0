import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jaxmnist import ConfigError, TrainConfig, create_model, data
from jaxmnist.metrics import Metrics
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel import limits
from jaxmnist.parallel.programs import (
    Programs,
    compile_largest,
    compile_programs,
    equal_groups,
    free_bytes,
    stack,
    unstack,
)
from jaxmnist.parallel.seed_mapping import choose_mapping, shares_of_cores
from jaxmnist.runs.setup import to_devices
from jaxmnist.state import initial_state
from tests.test_runs import plain

SEEDS = 3


class Group:
    """A tiny network on the small images, in programs for one seed and for three."""

    def __init__(self, idx_dir):
        self.config = TrainConfig("tiny", "fashion_mnist", epochs=2, batch_size=64)
        model = create_model("tiny")
        tx = make_optimizer(self.config, 18)
        images = to_devices(data.load("fashion_mnist", idx_dir=idx_dir), None)
        self.images, self.test_images = images
        self.create = functools.partial(initial_state, model, tx)
        compile_for = functools.partial(compile_programs, self.config, model, tx, *images)
        self.programs = {seeds: compile_for(seeds) for seeds in (1, SEEDS)}

    def train(self, seeds, stop, broken=()):
        states = [self.create(seed) for seed in seeds]
        for place in broken:
            params = jax.tree.map(lambda leaf: leaf * jnp.nan, states[place].params)
            states[place] = states[place].replace(params=params)
        programs = self.programs[len(seeds)]
        state = programs.put(stack(states))
        metrics = programs.put(stack([Metrics.zero()] * len(seeds)))
        order = programs.epoch_permutation(state, self.images)
        state, metrics = programs.train_chunk(state, metrics, self.images, order, np.int32(stop))
        tested = programs.evaluate(state, self.test_images)
        found = programs.get((state, metrics, tested))
        return [(plain(state), *sums) for state, *sums in unstack(found, len(seeds))]


@pytest.fixture(scope="module")
def group(small_idx_dir):
    return Group(small_idx_dir)


def test_a_seed_in_a_group_equals_the_seed_alone(group):
    """After four steps, within 1e-5: sums are taken in another order."""
    for seed, found in zip((7, 3, 5), group.train((7, 3, 5), 4), strict=True):
        (alone,) = group.train((seed,), 4)
        chex.assert_trees_all_close(found[0], alone[0], atol=1e-5, rtol=1e-5)
        chex.assert_trees_all_close(found[1].loss_sum, alone[1].loss_sum, rtol=1e-5)
        chex.assert_trees_all_close(found[2].loss_sum, alone[2].loss_sum, rtol=1e-4)
        chex.assert_trees_all_equal(found[2].count, alone[2].count)


def test_a_seed_does_not_depend_on_its_neighbours(group):
    first, *_ = group.train((0, 1, 2), 9)
    other, *_ = group.train((0, 8, 9), 9)
    chex.assert_trees_all_equal(first, other)


def test_a_broken_seed_stops_and_the_others_continue(group):
    whole = group.train((0, 1, 2), 9)
    broken = group.train((0, 1, 2), 9, broken=(1,))
    for place in (0, 2):
        chex.assert_trees_all_equal(broken[place], whole[place])
    state, metrics, _ = broken[1]
    assert int(state.step) == 1
    assert np.isnan(metrics.loss_sum)


def test_unstack_reverses_stack(group):
    states = [group.create(seed) for seed in (4, 5)]
    stacked = jax.device_put(stack(states))
    assert stacked.params["conv0"]["kernel"].shape == (2, 3, 3, 1, 4)
    for found, state in zip(unstack(stacked, 2), states, strict=True):
        chex.assert_trees_all_equal(plain(found), plain(state))
        chex.assert_trees_all_equal_dtypes(plain(found), plain(state))
    assert len(unstack(stacked, 1)) == 1


def test_the_program_of_one_seed_has_no_products_in_batches(group):
    """`jax.vmap` over one seed would make them, and take nearly twice as long on a CPU."""
    for seeds, has in ((1, False), (SEEDS, True)):
        lines = group.programs[seeds].train_chunk.as_text().splitlines()
        products = [line for line in lines if " dot(" in line and "/conv" in line]
        assert len(products) >= 4  # two a layer backward alone
        assert {"lhs_batch_dims" in line for line in products} == {has}


@pytest.mark.parametrize(
    ("seeds", "most", "size"),
    [(8, 8, 8), (8, 100, 8), (10, 8, 5), (11, 8, 6), (9, 4, 3), (7, 1, 1), (1, 5, 1)],
)
def test_groups_are_few_and_equal(seeds, most, size):
    assert equal_groups(seeds, most) == size


@pytest.mark.parametrize(
    ("limit", "size", "compiled"),
    [(1000, 10, [10]), (100, 10, [10]), (70, 5, [10, 5]), (35, 2, [10, 3, 2]), (1, 1, [10, 1])],
)
def test_a_group_fits_into_memory(monkeypatch, limit, size, compiled):
    """Here a seed takes 9 bytes, and every program 10 of its own."""
    calls = []

    def compile_for(seeds):
        calls.append(seeds)
        return Programs(seeds, *5 * [None], 0.0, 10 + 9 * seeds)  # type: ignore[arg-type]

    monkeypatch.setattr("jaxmnist.parallel.programs.free_bytes", lambda: limit)
    programs = compile_largest(compile_for, 10)
    assert (programs.num_slots, programs.memory_bytes, calls) == (size, 10 + 9 * size, compiled)


def test_a_program_too_large_to_be_compiled_is_made_smaller(monkeypatch):
    calls = []

    def compile_for(seeds):
        calls.append(seeds)
        if seeds > 30:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return Programs(seeds, *5 * [None], 0.0, 0)  # type: ignore[arg-type]

    programs = compile_largest(compile_for, 300)
    assert (programs.num_slots, calls) == (25, [100, 50, 25])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_largest(failing, 8)


def failing(seeds):
    raise jax.errors.JaxRuntimeError("INTERNAL: broken")


def test_memory_of_a_program(group):
    one, three = (group.programs[seeds].memory_bytes for seeds in (1, SEEDS))
    images = group.images.pixels.nbytes
    assert images < one < three < 4 * one


def test_free_memory_is_the_devices_own(monkeypatch):
    assert 0 < free_bytes() < psutil.virtual_memory().total

    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 200}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert free_bytes() == 640


def on_machine(monkeypatch, backend="cpu", cores=4, gigabytes=100):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    memory = psutil.virtual_memory()._replace(available=gigabytes << 30)
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(limits, "_read", lambda file: "")  # no cgroup


@pytest.mark.parametrize(
    ("machine", "requested", "seeds", "mapping"),
    [
        ({}, "auto", 8, "processes"),
        ({}, "auto", 1, "loop"),
        ({"cores": 1}, "auto", 8, "loop"),
        ({"gigabytes": 2}, "auto", 8, "loop"),
        ({}, "vmap", 8, "vmap"),
        ({}, "loop", 8, "loop"),
        ({"cores": 1}, "processes", 8, "processes"),
        ({"backend": "gpu"}, "auto", 8, "vmap"),
        ({"backend": "tpu"}, "auto", 8, "vmap"),
        ({"backend": "gpu"}, "loop", 8, "loop"),
    ],
)
def test_how_seeds_are_mapped(monkeypatch, machine, requested, seeds, mapping):
    on_machine(monkeypatch, **machine)
    assert choose_mapping(requested, seeds) == mapping


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("proceses", r"seed_mapping is 'proceses'; expected one of auto, .*Did you mean processes"),
        ("processes", r"seed_mapping is processes, which divide the cores of a CPU, .* is a gpu;"),
    ],
)
def test_unavailable_mappings_are_refused(monkeypatch, requested, message):
    on_machine(monkeypatch, backend="gpu")
    with pytest.raises(ConfigError, match=message):
        choose_mapping(requested, 8)


@pytest.mark.parametrize(
    ("machine", "seeds", "shares"),
    [
        ({"cores": 4}, 8, [[0], [1], [2], [3]]),
        ({"cores": 8}, 3, [[0, 3, 6], [1, 4, 7], [2, 5]]),
        ({"cores": 8, "gigabytes": 3}, 8, [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ({"cores": 2, "gigabytes": 0}, 8, [[0, 1]]),
    ],
)
def test_cores_are_divided_among_processes(monkeypatch, machine, seeds, shares):
    on_machine(monkeypatch, **machine)
    assert shares_of_cores(seeds) == shares
