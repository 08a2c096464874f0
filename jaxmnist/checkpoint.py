"""Training states on disk, through Orbax."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxmnist.state import TrainState

# Room for what Orbax writes beside the arrays: 0.1 to 0.2 MB, generously.
METADATA_BYTES = 1 << 20


class CheckpointError(RuntimeError):
    """There is no checkpoint, or it is not of this network."""


def save(folder: Path, state: TrainState) -> None:
    """Writes the state below `folder`, in a folder named after its step.

    Args:
        folder: the run's checkpoints.
        state: of one seed.

    Raises:
        OSError: the disk has no room for it.
    """
    arrays = _to_arrays(state)
    folder.mkdir(exist_ok=True)
    _check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
    with _manager(folder) as manager:
        manager.save(int(state.step), args=ocp.args.StandardSave(arrays))


def restore(folder: Path, template: TrainState) -> TrainState:
    """Reads the newest state below `folder`.

    Args:
        folder: the run's checkpoints.
        template: a state, or its shapes, of the same network and optimiser.

    Returns:
        The state, on the default device.

    Raises:
        CheckpointError: there is none, or its arrays are not the template's.
    """
    arrays = jax.eval_shape(_to_arrays, template)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; was the run finished?")
    with _manager(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder} holds no checkpoint")
        _check_same(manager.item_metadata(step), arrays, folder / str(step))
        restored = manager.restore(step, args=ocp.args.StandardRestore(arrays))
    return restored.replace(key=jax.random.wrap_key_data(restored.key))


def _check_room(folder: Path, size: int) -> None:
    """Asks before Orbax does: on a full disk its threads print a hundred tracebacks."""
    needed, free = 2 * size + METADATA_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, a checkpoint needs {needed})"
        raise OSError(errno.ENOSPC, reason, str(folder))


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager(
        folder.absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
    )


def _to_arrays(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def _check_same(found: Any, expected: TrainState, origin: Path) -> None:
    """Compares names, shapes and dtypes; Orbax itself casts without a word."""
    found, wanted = _shapes(found.tree), _shapes(expected)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{name} in {origin} is {found.get(name, 'missing')}; "
                f"expected {wanted.get(name, 'no such array')}: it is of another network or version"
            )


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
