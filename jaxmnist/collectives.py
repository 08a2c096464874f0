"""JAX's collectives over the devices that share a batch, for one device if `axis` is None.

`axis` names the mesh axis over which the batch is sharded. If it is None, there is one device and a
collective returns its argument. The same step can therefore run on one device or on many.
"""

from typing import TypeVar

import jax

Axis = str | None
Tree = TypeVar("Tree")


def axis_size(axis: Axis) -> int:
    """Return the number of devices."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def axis_index(axis: Axis) -> jax.Array | int:
    """Return the index of this device, from 0."""
    return 0 if axis is None else jax.lax.axis_index(axis)


def psum(tree: Tree, axis: Axis) -> Tree:
    """Return the sum over the devices, leaf by leaf."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def pmean(tree: Tree, axis: Axis) -> Tree:
    """Return the mean over the devices, leaf by leaf."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def shard(tree: Tree, axis: Axis) -> Tree:
    """Return this device's part `[N / size, ...]` of arrays `[N, ...]` replicated on all."""
    if axis is None:
        return tree

    def part(leaf):
        size = len(leaf) // axis_size(axis)
        return jax.lax.dynamic_slice_in_dim(leaf, axis_index(axis) * size, size)

    return jax.tree.map(part, tree)


def pvary(tree: Tree, axis: Axis) -> Tree:
    """Mark values as varying over the devices, so that gradients stay local.

    Otherwise, JAX silently sums the gradient of a replicated array over the devices.
    """
    if axis is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis, to="varying"), tree)
