"""A device's share of a batch: what a function that runs on one of many knows of the others.

`axis` names the axis of devices over which a batch is shared out, in equal parts. None: there is
one device, which has all of it, and nothing here does anything.
"""

from typing import TypeVar

import jax

Axis = str | None
Tree = TypeVar("Tree")


def count(axis: Axis) -> int:
    """How many devices share the batch."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def index(axis: Axis) -> jax.Array | int:
    """Which of them this one is, from 0."""
    return 0 if axis is None else jax.lax.axis_index(axis)


def total(tree: Tree, axis: Axis) -> Tree:
    """The sums of what the devices have, leaf by leaf."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def mean(tree: Tree, axis: Axis) -> Tree:
    """The means of what the devices have, leaf by leaf: a sum, divided by their number."""
    return jax.tree.map(lambda leaf: leaf / count(axis), total(tree, axis))


def share(tree: Tree, axis: Axis) -> Tree:
    """This device's part of arrays `[N, ...]` that every device has whole: `[N / count, ...]`."""

    def part(leaf):
        size = len(leaf) // count(axis)
        return jax.lax.dynamic_slice_in_dim(leaf, index(axis) * size, size)

    return tree if axis is None else jax.tree.map(part, tree)


def own(tree: Tree, axis: Axis) -> Tree:
    """The same values as this device's own, with gradients of its own.

    JAX would otherwise sum the gradient of what all devices share, without a word.
    """
    if axis is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis, to="varying"), tree)
