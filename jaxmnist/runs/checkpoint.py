"""Checkpoints: all that the future of a run depends on, on disk, through Orbax.

A checkpoint is a folder named after its step. Its item `arrays` holds the state and the running
metrics; its item `record`, JSON, holds what else there is to know, and the SHA-256 of every array
and of itself. Orbax restores flipped bits without a word; the digests do not.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmnist.config import FORMAT, check_format
from jaxmnist.metrics import Metrics
from jaxmnist.parallel.devices import Devices
from jaxmnist.state import TrainState, wrap_key

# Orbax is imported where it is used: that takes two seconds, which no first step has to wait for.

ARRAYS, RECORD = "arrays", "record"
# Orbax's names, for where the numbers are and for what is half-written.
DATA, TEMPORARY = "d", ".orbax-checkpoint-tmp"

# Room for what Orbax writes beside the arrays: 0.1 to 0.2 MB, generously.
METADATA_BYTES = 1 << 20
MAX_RECORD_BYTES = 16 << 20
# A run has a row an epoch, and its checkpoints have all rows. With this many, of 330 bytes at most,
# a record can be read again.
MAX_EPOCHS = 50_000

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or there is none that is whole and of this network."""


class Checkpoint(NamedTuple):
    """A moment of a run, from which it goes on as if nothing had happened."""

    state: TrainState
    metrics: Metrics  # running over the epoch that the state is in
    notes: dict[str, Any]  # whatever else must survive, as JSON


# From a checkpoint's notes to the shapes of its state.
TemplateOf = Callable[[dict[str, Any]], TrainState]


class Checkpoints:
    """The checkpoints of a run in training; written in the background.

    Args:
        folder: where they are; made with the first one.
        keep: how many, at least 1; older ones are removed.
    """

    def __init__(self, folder: Path, keep: int):
        self._folder, self._keep = folder.absolute(), keep

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self.abandon(error)

    def close(self) -> None:
        """Waits until everything is on disk; there is nothing more to save.

        Raises:
            CheckpointError: the last checkpoint could not be written.
        """
        manager = self.__dict__.pop("_manager", None)
        if manager is not None:
            with self._named():
                manager.close()

    def abandon(self, reason: BaseException) -> None:
        """The same after an error, which one on the way out must not hide, nor be silent.

        Args:
            reason: the error that led here.
        """
        try:
            self.close()
        except CheckpointError as another:
            # A disk that refused the one refuses the other: that needs to be said but once.
            if not isinstance(reason, CheckpointError | OSError):
                _log.warning("%s", another)

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint, after waiting for the one before.

        Raises:
            CheckpointError: this one or the one before could not be written.
            OSError: the disk has no room for it, or the run's folder is gone.
        """
        # Copies: the arrays' own memory is reused by the next step.
        arrays = jax.tree.map(np.array, _arrays(checkpoint.state, checkpoint.metrics))
        step = int(checkpoint.state.step)
        content = {"format": FORMAT, "sha256": _digests(arrays), "notes": checkpoint.notes}
        record = {**content, "sha256_of_record": _digest_of_record(content)}
        if not self._folder.parent.is_dir():
            reason = f"{os.strerror(errno.ENOENT)} (the run's folder was removed)"
            raise OSError(errno.ENOENT, reason, str(self._folder.parent))
        self._folder.mkdir(exist_ok=True)
        _check_room(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        with self._named():
            if jax.process_count() > 1:
                # As arrays of all processes together, of which each writes its part.
                arrays = Devices(jax.device_count()).replicate(arrays)
            _save(self._manager, step, arrays, record)

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            CheckpointError: it is not.
        """
        if "_manager" in self.__dict__:
            with self._named():
                self._manager.wait_until_finished()

    @functools.cached_property
    def _manager(self):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
            # Otherwise, should that fail, the threads that write wait for it for 20 minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        return ocp.CheckpointManager(self._folder, options=options)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says in a line what Orbax says in its own many ways."""
        try:
            yield
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise  # no fault of the disk: another process is gone
            raise CheckpointError(
                f"a checkpoint could not be written to {self._folder}: {_first_line(error)}; "
                "those before it are whole"
            ) from error


def _save(manager: Any, step: int, arrays: Any, record: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    items = {ARRAYS: ocp.args.StandardSave(arrays), RECORD: ocp.args.JsonSave(record)}
    if not manager.save(step, args=ocp.args.Composite(**items)):
        raise RuntimeError(f"Orbax did not accept step {step}")


def steps(folder: Path) -> list[int]:
    """The steps of which there is a folder that has its final name, newest first."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)


def newest_whole(folder: Path, template_of: TemplateOf) -> tuple[Checkpoint, list[str]]:
    """Reads the newest checkpoint that is whole.

    Args:
        folder: the run's checkpoints.
        template_of: makes of a checkpoint's notes the shapes that its state should have; what it
            raises ends the search.

    Returns:
        The checkpoint, its arrays in memory, and why newer ones were passed over, a line each.

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
    """Reads one checkpoint and compares everything in it with its digest.

    Args:
        path: its folder.
        template_of: as for `newest_whole`.

    Raises:
        CheckpointError: it is not whole, or not of this network or version.
        ConfigError: it is of another format.
    """
    record = _read_record(path)
    template = template_of(record["notes"])
    with _unusable(path):
        arrays = _read_arrays(path, jax.eval_shape(_arrays, template, Metrics.zero()))
        digests = _digests(arrays)
        wrong = [name for name in digests if digests[name] != record["sha256"][name]]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays differ from their digests, first {wrong[0]}")
        if str(int(arrays["state"]["step"])) != path.name:
            raise ValueError(f"it is of step {int(arrays['state']['step'])}")
    state = TrainState(**arrays["state"])
    state = state.replace(key=wrap_key(state.key))
    return Checkpoint(state, arrays["metrics"], record["notes"])


def newest_notes(folder: Path) -> dict[str, Any] | None:
    """The notes of the newest checkpoint whose record is whole; None: there is none.

    Raises:
        ConfigError: one is of another format.
    """
    for step in steps(folder):
        with contextlib.suppress(CheckpointError):
            return _read_record(folder / str(step))["notes"]
    return None


def clean(folder: Path, step: int) -> None:
    """Removes what is after a step, and half-written checkpoints: their places will be needed."""
    newer = [folder / str(other) for other in steps(folder) if other > step]
    for path in (*newer, *folder.glob(f"*{TEMPORARY}*")):
        shutil.rmtree(path)


@contextlib.contextmanager
def _unusable(path: Path) -> Iterator[None]:
    """Says of every error what it means; Orbax and TensorStore have many kinds."""
    try:
        yield
    except (MemoryError, PermissionError):  # no fault of the checkpoint
        raise
    except Exception as error:
        raise CheckpointError(f"{path} cannot be used: {_first_line(error)}") from error


def _read_record(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _unusable(path):
        _check_files(path)
        with _checkpointer() as checkpointer:
            args = ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()})
            record = checkpointer.restore(path.absolute(), args=args)[RECORD]
        digest = record.pop("sha256_of_record")
        if digest != _digest_of_record(record):
            raise ValueError("its record differs from its digest")
    # Whole, so that another format is no damage.
    check_format(str(path), record.get("format"))
    return record


def _check_files(path: Path) -> None:
    """Bounds what is read whole: all but the data of arrays, which `_check_same` bounds."""
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
        # As arrays of the host: it may have been written by another number of processes.
        host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), expected)
        args = ocp.args.Composite(**{ARRAYS: ocp.args.StandardRestore(host)})
        return checkpointer.restore(path.absolute(), args=args)[ARRAYS]


def _checkpointer() -> Any:
    """Reads, and unlike a CheckpointManager makes and removes nothing, nor waits for others."""
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
    """Compares names, shapes and dtypes before anything is read; Orbax itself casts silently."""
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
    """Asks before Orbax does: on a full disk its threads print a hundred tracebacks."""
    needed, free = 2 * size + METADATA_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, a checkpoint needs {needed})"
        raise OSError(errno.ENOSPC, reason, str(folder))


def _arrays(state: TrainState, metrics: Metrics) -> dict[str, Any]:
    """Return everything that is written, as a tree of arrays by name; without what is None."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    fields["key"] = jax.random.key_data(state.key)
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
    speaks_for_itself = line and isinstance(error, ValueError | OSError)
    return line if speaks_for_itself else f"{type(error).__name__} {line}".strip()
