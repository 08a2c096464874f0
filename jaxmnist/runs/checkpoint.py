"""Checkpoints through Orbax: everything that the future of a seed's training depends on.

A checkpoint is a folder named after its step. Its item `arrays` holds the state and the running
metrics; its item `record`, JSON, holds the metadata and the SHA-256 of every array and of itself.
Orbax restores flipped bits silently; the digests do not.

Checkpoints are written synchronously and by one process: they take 0.1 s, or 0.5 s of the largest
network, and every process holds the whole state.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmnist.config import FORMAT, check_format
from jaxmnist.metrics import Metrics
from jaxmnist.state import TrainState, wrap_key

# Orbax is imported where it is used: that takes two seconds, and the first step need not wait.

ARRAYS, RECORD = "arrays", "record"
# Orbax's names for the folder of the numbers and for what is half-written.
DATA, TEMPORARY = "d", ".orbax-checkpoint-tmp"

# Room for what Orbax writes beside the arrays: 0.1 to 0.2 MB, generously.
ORBAX_BYTES = 1 << 20
MAX_RECORD_BYTES = 16 << 20
# A run has a row per epoch, and its checkpoints hold all rows, of 330 bytes at most. With this many
# the record stays below `MAX_RECORD_BYTES`.
MAX_EPOCHS = 50_000


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none is whole and of this network."""


class Checkpoint(NamedTuple):
    """A moment of a seed's training, from which it continues as if nothing had happened."""

    state: TrainState
    metrics: Metrics  # running over the epoch of the state
    metadata: dict[str, Any]  # as JSON


# From a checkpoint's metadata to the shapes of its state.
TemplateOf = Callable[[dict[str, Any]], TrainState]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint, then remove the oldest ones.

    Args:
        folder: the checkpoints of a seed, in the run's folder; made if it is missing.
        checkpoint: what to write.
        keep: the number of checkpoints that stay, at least 1.

    Raises:
        CheckpointError: it could not be written.
        OSError: the disk has no room for it, or the run's folder was removed.
    """
    step = int(checkpoint.state.step)
    arrays = jax.tree.map(np.asarray, _arrays(checkpoint.state, checkpoint.metrics))
    content = {"format": FORMAT, "sha256": _digests(arrays), "notes": checkpoint.metadata}
    record = {**content, "sha256_of_record": _digest_of_record(content)}
    run = folder.parent.parent
    if not run.is_dir():
        reason = f"{os.strerror(errno.ENOENT)} (the run's folder was removed)"
        raise OSError(errno.ENOENT, reason, str(run))
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
    try:
        _write(folder / str(step), arrays, record)
    except Exception as error:
        raise CheckpointError(
            f"a checkpoint could not be written to {folder}: {_first_line(error)}; "
            "those before it are whole"
        ) from error
    for old in steps(folder)[keep:]:
        shutil.rmtree(folder / str(old))


def _write(path: Path, arrays: Any, record: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    items = {ARRAYS: ocp.args.StandardSave(arrays), RECORD: ocp.args.JsonSave(record)}
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.Composite(**items), force=True)


def steps(folder: Path) -> list[int]:
    """Return the steps with a folder of final name, newest first."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)


def newest_whole(folder: Path, template_of: TemplateOf) -> tuple[Checkpoint, list[str]]:
    """Read the newest checkpoint that is whole.

    Args:
        folder: the checkpoints of a seed.
        template_of: from a checkpoint's metadata to the shapes that its state should have; its
            errors end the search.

    Returns:
        The checkpoint, its arrays in host memory, and a line for each newer one passed over.

    Raises:
        CheckpointError: there is none.
        ConfigError: one is of another format.
    """
    skipped: list[str] = []
    for step in steps(folder):
        try:
            return read(folder / str(step), template_of), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    reasons = "; ".join(skipped) if skipped else "there is none"
    raise CheckpointError(f"no checkpoint in {folder} is whole: {reasons}")


def read(path: Path, template_of: TemplateOf) -> Checkpoint:
    """Read one checkpoint and compare everything in it with its digest.

    Args:
        path: its folder.
        template_of: as for `newest_whole`.

    Raises:
        CheckpointError: it is not whole, or not of this network or version.
        ConfigError: it is of another format.
    """
    record = _read_record(path)
    template = template_of(record["notes"])
    # Format 1 had another name for the moving average.
    ema = "average" if record["format"] == 1 else "ema"
    with _as_checkpoint_error(path):
        name_arrays = functools.partial(_arrays, ema=ema)
        expected = jax.eval_shape(name_arrays, template, Metrics.zero())
        arrays = _read_arrays(path, expected)
        digests = _digests(arrays)
        wrong = [name for name in digests if digests[name] != record["sha256"][name]]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays differ from their digests, first {wrong[0]}")
        state = arrays["state"]
        if str(int(state["step"])) != path.name:
            raise ValueError(f"it is of step {int(state['step'])}")
    fields = {"ema" if name == ema else name: value for name, value in state.items()}
    fields["key"] = wrap_key(fields["key"])
    return Checkpoint(TrainState(**fields), arrays["metrics"], record["notes"])


def newest_metadata(folder: Path) -> dict[str, Any] | None:
    """Return the metadata of the newest checkpoint with a whole record; None: there is none.

    Raises:
        ConfigError: one is of another format.
    """
    for step in steps(folder):
        with contextlib.suppress(CheckpointError):
            return _read_record(folder / str(step))["notes"]
    return None


def clean(folder: Path, step: int) -> None:
    """Remove checkpoints after a step and half-written ones: their places will be needed."""
    newer = [folder / str(other) for other in steps(folder) if other > step]
    for path in (*newer, *folder.glob(f"*{TEMPORARY}*")):
        shutil.rmtree(path)


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    """Raise every error of Orbax and TensorStore as a CheckpointError of one line."""
    try:
        yield
    except (MemoryError, PermissionError):  # no fault of the checkpoint
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be used: {_first_line(error)}") from error


def _read_record(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _as_checkpoint_error(path):
        _check_files(path)
        with _checkpointer() as checkpointer:
            args = ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()})
            record = checkpointer.restore(path.absolute(), args=args)[RECORD]
        digest = record.pop("sha256_of_record")
        if digest != _digest_of_record(record):
            raise ValueError("its record differs from its digest")
    # After the digest: another format is no damage.
    check_format(str(path), record.get("format"))
    return record


def _check_files(path: Path) -> None:
    """Bound the size of files that are read whole; `_check_same` bounds the arrays."""
    for file in path.rglob("*"):
        if file.is_dir():
            continue
        if not file.is_file():
            raise ValueError(f"{file.name} is no file")
        size = file.stat().st_size
        if file.parent.name != DATA and size > MAX_RECORD_BYTES:
            raise ValueError(f"{file.name} has {size} bytes; expected at most {MAX_RECORD_BYTES}")


def _read_arrays(path: Path, expected: Any) -> Any:
    import orbax.checkpoint as ocp

    with _checkpointer() as checkpointer:
        _check_same(checkpointer.metadata(path.absolute()).item_metadata[ARRAYS], expected)
        host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), expected)
        args = ocp.args.Composite(**{ARRAYS: ocp.args.StandardRestore(host)})
        return checkpointer.restore(path.absolute(), args=args)[ARRAYS]


def _checkpointer() -> Any:
    """Return a checkpointer of this process alone, which waits for no other process."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone: dict[str, Any] = {
        "multiprocessing_options": ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
        )
    }
    items = {
        ARRAYS: ocp.StandardCheckpointHandler(**alone),
        RECORD: ocp.JsonCheckpointHandler(**alone),
    }
    together = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(**alone), **items
    )
    return ocp.Checkpointer(together, **alone)


def _check_same(found: Any, expected: Any) -> None:
    """Compare names, shapes and dtypes before anything is read; Orbax itself casts silently."""
    wanted = _named_leaves(expected)
    there = _named_leaves(found.tree)
    for name in sorted(there.keys() | wanted.keys()):
        shape, want = _shape(there.get(name)), _shape(wanted.get(name))
        if shape != want:
            raise ValueError(
                f"{name} is {shape}; expected {want}: it is of another network or version"
            )
        # A chunk is read whole: a larger one would take more memory than the array.
        chunk = there[name].storage.chunk_shape
        if any(length > most for length, most in zip(chunk, there[name].shape, strict=True)):
            raise ValueError(f"{name} is stored in chunks of {list(chunk)}")


def _shape(leaf: Any) -> str:
    return "no such array" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _check_room(folder: Path, size: int) -> None:
    """Check the free space before Orbax does: on a full disk its threads print 200 lines."""
    needed, free = 2 * size + ORBAX_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, a checkpoint needs {needed})"
        raise OSError(errno.ENOSPC, reason, str(folder))


def _arrays(state: TrainState, metrics: Metrics, ema: str = "ema") -> dict[str, Any]:
    """Return everything that is written, by name, without fields that are None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    fields["key"] = jax.random.key_data(state.key)
    fields[ema] = fields.pop("ema")
    named = {name: value for name, value in fields.items() if value is not None}
    return {"state": named, "metrics": metrics}


def _digests(arrays: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(leaf.tobytes()).hexdigest()
        for name, leaf in _named_leaves(arrays).items()
    }


def _digest_of_record(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    is_clear = line and isinstance(error, ValueError | OSError)
    return line if is_clear else f"{type(error).__name__} {line}".strip()
