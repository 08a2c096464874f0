"""Names and shapes decide which array of a PyTorch state dict belongs to which layer."""

import random

import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError
from jaxmnist.export.state_dict import slots_of, variables_of

BLOCKS = ("stem", "body", "mid", "narrow", "deep", "wide", "thin", "head")


def state_of(variant, name):
    """Arrays in order of use, each with a value of its own; norm k follows conv k."""
    state = {}
    for number, slot in enumerate(slots_of(variant)):
        kind, place = slot.layer[:4], int(slot.layer[4:])
        state[f"{name(kind, place)}.{slot.role[0]}"] = np.full(slot.shape, number, np.float32)
    return state


def values(variables):
    """The number of each array, in order of layers."""
    found = {}
    for layers in variables.values():
        for layer, leaves in layers.items():
            for key, leaf in leaves.items():
                found[layer, key] = float(leaf.ravel()[0])
    return found


def expected(variant):
    return {(slot.layer, slot.key): float(n) for n, slot in enumerate(slots_of(variant))}


def in_blocks(kind, place):
    return f"convblock{place + 1}.{0 if kind == 'conv' else 2}"


def far_apart(kind, place):
    return f"module.{kind}{place + 5}"  # 10 comes before 5 in the alphabet


def unnumbered(kind, place):
    return f"{BLOCKS[place]}.{kind}"


@pytest.mark.parametrize("variant", jaxmnist.VARIANTS)
@pytest.mark.parametrize("name", [in_blocks, far_apart])
def test_numbered_names_decide_in_any_order(variant, name):
    state = state_of(variant, name)
    items = list(state.items())
    random.Random(0).shuffle(items)
    for order in (list(state.items()), sorted(state.items()), items):
        assert values(variables_of(dict(order), variant)) == expected(variant)


def test_names_without_numbers_need_the_order_of_the_modules():
    state = state_of("gap", unnumbered)
    with pytest.raises(ConfigError, match=r"have the same shape, and their order"):
        variables_of(state, "gap")
    modules = ["", *(name.rpartition(".")[0] for name in state)]
    assert values(variables_of(dict(sorted(state.items())), "gap", modules)) == expected("gap")
    # Here the shapes alone decide.
    assert values(variables_of(state_of("skeleton", unnumbered), "skeleton")) == expected(
        "skeleton"
    )


def test_numbers_that_contradict_are_refused():
    def backwards(kind, place):
        return f"{kind}{9 - place}" if kind == "norm" else f"{kind}{place}"

    state = state_of("batch_norm", backwards)
    modules = [name.rpartition(".")[0] for name in state]
    with pytest.raises(ConfigError, match=r"numbers in the names norm7.weight, .* contradict"):
        variables_of(state, "batch_norm", modules)
    state = state_of("less_params", lambda kind, place: f"conv{9 - place}")
    words = r"conv3.weight is \[10, 16, 1, 1\]; expected .*: the names are not numbered in order"
    with pytest.raises(ConfigError, match=words):
        variables_of(state, "less_params")


def test_another_network_is_refused():
    state = state_of("gap", in_blocks)
    counters = {f"convblock{n}.2.num_batches_tracked": np.array(3) for n in range(1, 8)}
    assert values(variables_of(state | counters, "gap")) == expected("gap")
    with pytest.raises(ConfigError, match=r"it has 36 arrays; less_params has 7: is it another"):
        variables_of(state, "less_params")
    with pytest.raises(ConfigError, match=r"it has 7 arrays of 4 dim.* 'weight'; gap has 8"):
        variables_of({**state, "convblock8.0.weight": np.zeros(3)}, "gap")
    with pytest.raises(
        ConfigError, match=r"convblock1.0.weight is \[9, 1, 3, 3\]; expected \[4, 1"
    ):
        variables_of({**state, "convblock1.0.weight": np.zeros((9, 1, 3, 3))}, "gap")
    with pytest.raises(ConfigError, match="has numbers that no var has"):
        variables_of({**state, "convblock1.2.running_var": np.full(4, -1.0)}, "gap")


def test_kernels_are_turned_into_hwio():
    kernel = np.arange(36, dtype=np.float64).reshape(4, 1, 3, 3)
    state = {**state_of("gap", in_blocks), "convblock1.0.weight": kernel}
    found = variables_of(state, "gap")
    np.testing.assert_array_equal(found["params"]["conv0"]["kernel"], kernel.transpose(2, 3, 1, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
