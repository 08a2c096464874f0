"""Checkpoints with Orbax: everything needed to continue the training of a seed.

A checkpoint is a folder named after its step. Its item `arrays` holds the state and the running
metrics. Its item `record` holds, as JSON, the metadata and SHA-256 digests of every array and of
the record. The digests detect flipped bits, which Orbax restores silently.

One process writes checkpoints, synchronously: every process holds the full state, and writing takes
0.1 s, or 0.5 s for the largest network.
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

from jaxmnist.config import FORMAT, READABLE_FORMATS, check_format
from jaxmnist.metrics import Metrics
from jaxmnist.state import TrainState, wrap_key

# Orbax is imported where it is used, since the import takes two seconds.

ARRAYS, RECORD = "arrays", "record"
# Orbax's names for the folder of array data and for incomplete checkpoints.
DATA, TEMPORARY = "d", ".orbax-checkpoint-tmp"

# Space for Orbax's files besides the arrays, which take 0.1 to 0.2 MB.
ORBAX_BYTES = 1 << 20
MAX_RECORD_BYTES = 16 << 20
# Checkpoints hold one row per epoch, of at most 330 bytes. With this number of epochs, the record
# stays below `MAX_RECORD_BYTES`.
MAX_EPOCHS = 50_000


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is damaged or belongs to another network."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint, from which training continues with the same results."""

    state: TrainState
    metrics: Metrics  # metrics of the epoch so far
    metadata: dict[str, Any]  # JSON values


# Function from a checkpoint's metadata to the expected shapes of its state.
TemplateOf = Callable[[dict[str, Any]], TrainState]


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> None:
    """Write a checkpoint, then remove the oldest ones.

    Args:
        folder: the folder of a seed's checkpoints, in the run's folder; created if missing.
        checkpoint: the checkpoint to write.
        keep: the number of checkpoints to keep, at least 1.

    Raises:
        CheckpointError: the checkpoint could not be written.
        OSError: there is not enough disk space, or the run's folder was removed.
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
    """Return the steps of the checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)


def newest_whole(folder: Path, template_of: TemplateOf) -> tuple[Checkpoint, list[str]]:
    """Read the newest complete checkpoint.

    Args:
        folder: the folder of a seed's checkpoints.
        template_of: returns the expected shapes of the state for a checkpoint's metadata; its
            errors end the search.

    Returns:
        The checkpoint, with arrays in host memory, and a message for each newer one skipped.

    Raises:
        CheckpointError: no checkpoint is complete.
        ConfigError: a checkpoint has another format.
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
    """Read one checkpoint and verify its digests.

    Args:
        path: the folder of the checkpoint.
        template_of: as for `newest_whole`.

    Raises:
        CheckpointError: it is incomplete, or belongs to another network or version.
        ConfigError: it has another format.
    """
    record = _read_record(path)
    template = template_of(record["notes"])
    # Format 1 uses another name for the moving average.
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
    """Return the metadata of the newest checkpoint with a valid record, or None.

    Raises:
        ConfigError: a checkpoint has another format.
    """
    for step in steps(folder):
        with contextlib.suppress(CheckpointError):
            return _read_record(folder / str(step))["notes"]
    return None


def clean(folder: Path, step: int) -> None:
    """Remove checkpoints after a step, and incomplete ones, before training continues."""
    newer = [folder / str(other) for other in steps(folder) if other > step]
    for path in (*newer, *folder.glob(f"*{TEMPORARY}*")):
        shutil.rmtree(path)


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    """Convert errors of Orbax and TensorStore to a CheckpointError of one line."""
    try:
        yield
    except (MemoryError, PermissionError):  # not caused by the checkpoint
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
    # Outside of `_as_checkpoint_error`, since another format is not damage.
    check_format(str(path), record.get("format"), *READABLE_FORMATS)
    return record


def _check_files(path: Path) -> None:
    """Check the size of files that are read at once; `_check_same` checks the arrays."""
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
    """Return a checkpointer for this process, which does not wait for other processes."""
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
    """Compare names, shapes and dtypes before reading, since Orbax casts silently."""
    wanted = _named_leaves(expected)
    there = _named_leaves(found.tree)
    for name in sorted(there.keys() | wanted.keys()):
        shape, want = _shape(there.get(name)), _shape(wanted.get(name))
        if shape != want:
            raise ValueError(
                f"{name} is {shape}; expected {want}: it is of another network or version"
            )
        # A chunk is read at once: a larger one would take more memory than the array.
        chunk = there[name].storage.chunk_shape
        if any(length > most for length, most in zip(chunk, there[name].shape, strict=True)):
            raise ValueError(f"{name} is stored in chunks of {list(chunk)}")


def _shape(leaf: Any) -> str:
    return "no such array" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"


def _check_room(folder: Path, size: int) -> None:
    """Check the free disk space; on a full disk, Orbax's threads would print 200 lines."""
    needed, free = 2 * size + ORBAX_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, a checkpoint needs {needed})"
        raise OSError(errno.ENOSPC, reason, str(folder))


def _arrays(state: TrainState, metrics: Metrics, ema: str = "ema") -> dict[str, Any]:
    """Return the arrays to write, by name, without fields that are None."""
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
