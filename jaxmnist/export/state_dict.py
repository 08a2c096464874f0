"""Matching of the arrays in a PyTorch state dict to the layers of a network.

The order of a dict is not reliable: safetensors, for example, returns names in alphabetical order.
The match uses the shapes, most of which occur only once in a network, and the numbers in the names.
If these are ambiguous, it uses the order of modules that PyTorch stores in `model.state_dict()`. If
this is not available either, it raises an error.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.config import ConfigError
from jaxmnist.models import create_model
from jaxmnist.models.description import describe

# From our names to PyTorch's names of a layer's arrays, in PyTorch's order.
TORCH_NAMES = {
    "conv": {"kernel": "weight", "bias": "bias"},
    "norm": {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    "group_norm": {"scale": "weight", "bias": "bias"},
}

# Last part of PyTorch's name, and number of dimensions.
Role = tuple[str, int]
Shape = tuple[int, ...]


class Slot(NamedTuple):
    """An array that a network needs."""

    layer: str  # conv0, norm3
    key: str  # kernel, scale, ...
    role: Role
    shape: Shape  # PyTorch's shape


def variables_of(
    arrays: Mapping[str, np.ndarray], variant: str, modules: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the variables of a network from the arrays of its state dict.

    Args:
        arrays: arrays by PyTorch's names, in any order. Scalars are counters, and are ignored.
        variant: variant of the network.
        modules: names of the modules in the order of their definition, if known.

    Returns:
        `params` and `batch_stats`, float32, kernels as `[kh, kw, I, O]`.

    Raises:
        ConfigError: the arrays belong to another network, or several orders fit.
    """
    arrays = {name: value for name, value in arrays.items() if value.ndim}
    slots = list(slots_of(variant))
    if len(arrays) != len(slots):
        raise ConfigError(
            f"it has {len(arrays)} arrays; {variant} has {len(slots)}: is it another variant?"
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for slot, name in _matched(arrays, slots, variant, modules):
        value = arrays[name].astype(np.float32)
        if not np.isfinite(value).all() or (slot.key == "var" and (value < 0).any()):
            raise ConfigError(f"{name} has numbers that no {slot.key} has")
        collection = variables["batch_stats" if slot.key in ("mean", "var") else "params"]
        ours = value.transpose(2, 3, 1, 0) if slot.key == "kernel" else value
        collection.setdefault(slot.layer, {})[slot.key] = ours
    return variables


def slots_of(variant: str) -> Iterator[Slot]:
    """Yield the arrays of a network in order of use."""
    for layer in describe(create_model(variant)):
        for key, leaf in TORCH_NAMES.get(layer["kind"], {}).items():
            shape: Shape = (layer["features"],)
            if key == "kernel":
                shape = (layer["features"], layer["inputs"], *[layer["kernel_size"]] * 2)
            if key != "bias" or layer.get("use_bias", True):
                yield Slot(layer["name"], key, (leaf, len(shape)), shape)


def _matched(
    arrays: Mapping[str, np.ndarray],
    slots: Sequence[Slot],
    variant: str,
    modules: Sequence[str] | None,
) -> Iterator[tuple[Slot, str]]:
    """Yield each slot with the name of its array."""
    by_role: dict[Role, list[str]] = defaultdict(list)
    for name, value in arrays.items():
        by_role[name.rpartition(".")[2], value.ndim].append(name)
    for role in dict.fromkeys(slot.role for slot in slots):
        wanted = [slot for slot in slots if slot.role == role]
        names = by_role.pop(role, [])
        if len(names) != len(wanted):
            leaf, dimensions = role
            raise ConfigError(
                f"it has {len(names)} arrays of {dimensions} dimensions whose names end in "
                f"{leaf!r}; {variant} has {len(wanted)}: is it another variant?"
            )
        shapes = {name: arrays[name].shape for name in names}
        yield from zip(wanted, _in_order(shapes, wanted, variant, modules), strict=True)


def _in_order(
    shapes: Mapping[str, Shape],
    slots: Sequence[Slot],
    variant: str,
    modules: Sequence[str] | None,
) -> list[str]:
    """Sort the names of arrays of one role in order of use."""
    wanted = [slot.shape for slot in slots]
    fitting = list(itertools.islice(_fitting(_chains(shapes), shapes, wanted), 2))
    defined = _as_defined(shapes, modules)
    if defined and [shapes[name] for name in defined] == wanted:
        # The numbers in the names must not contradict this order, unless no numbered order fits.
        if not fitting or all(_is_rising(chain, defined) for chain in _chains(shapes)):
            return defined
        raise ConfigError(
            f"the numbers in the names {', '.join(fitting[0])} contradict the order in which "
            f"PyTorch defined them, {', '.join(defined)}; rename them in order of use"
        )
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        first, second = next(pair for pair in zip(*fitting, strict=True) if pair[0] != pair[1])
        raise ConfigError(
            f"{first} and {second} have the same shape, and their order is not known; save "
            "model.state_dict() itself, which has the order, or number the names in order of use"
        )
    raise _no_order(defined or sorted(shapes, key=_natural), shapes, slots, variant)


def _no_order(
    names: Sequence[str], shapes: Mapping[str, Shape], slots: Sequence[Slot], variant: str
) -> ConfigError:
    """Return the error for arrays that do not fit in any order."""
    name, slot = next(
        pair for pair in zip(names, slots, strict=True) if shapes[pair[0]] != pair[1].shape
    )
    reason = "is it another variant?"
    if sorted(shapes.values()) == sorted(slot.shape for slot in slots):
        reason = "the names are not numbered in order of use"
    return ConfigError(
        f"{name} is {list(shapes[name])}; expected {list(slot.shape)} for the {slot.key} of "
        f"{slot.layer} of {variant}: {reason}"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts convblock2 before convblock10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _chains(names: Mapping[str, Any]) -> list[list[str]]:
    """Group the names that differ only in their numbers, sorted by these numbers."""
    chains: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=_natural):
        chains[re.sub("[0-9]+", "#", name)].append(name)
    return list(chains.values())


def _fitting(
    chains: list[list[str]], shapes: Mapping[str, Shape], wanted: Sequence[Shape]
) -> Iterator[list[str]]:
    """Yield all orders of the names that fit the wanted shapes and keep each chain's order."""
    if not wanted:
        yield []
        return
    for number, chain in enumerate(chains):
        if chain and shapes[chain[0]] == wanted[0]:
            rest = [*chains[:number], chain[1:], *chains[number + 1 :]]
            for names in _fitting(rest, shapes, wanted[1:]):
                yield [chain[0], *names]


def _as_defined(names: Mapping[str, Any], modules: Sequence[str] | None) -> list[str] | None:
    """Sort the names in the order of their modules; return None if it is unknown."""
    places = {module: place for place, module in enumerate(modules or ())}
    if any(name.rpartition(".")[0] not in places for name in names):
        return None
    return sorted(names, key=lambda name: places[name.rpartition(".")[0]])


def _is_rising(chain: Sequence[str], names: Sequence[str]) -> bool:
    places = [names.index(name) for name in chain]
    return places == sorted(places)
