"""Runs of networks that were trained elsewhere."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmnist.metrics import Metrics
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import Checkpoints
from jaxmnist.runs.run import IMPORTED, Job, Position, Run, finished, finished_run, new_run
from jaxmnist.runs.summary import row_of_test
from jaxmnist.runs.training import save
from jaxmnist.state import initial_state
from jaxmnist.steps import evaluate


def write_run(
    job: Job, variables: dict[str, Any], out: str | os.PathLike | None, source: Path
) -> Run:
    """Makes the folder of a finished run from the arrays of a network.

    Of the training nothing is known: its figures are null, and there is one row, of the end.

    Args:
        job: what the run is said to have been.
        variables: `params` and `batch_stats`, float32.
        out: the folder; None: the next free default one.
        source: where the arrays come from, for the summary.

    Returns:
        The run.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the checkpoint could not be written.
        OSError: the disk does not take it.
    """
    state = initial_state(job.model, job.tx, job.config.seed)
    state = state.replace(step=jnp.int32(job.total_steps), **jax.tree.map(jnp.asarray, variables))
    tested = jax.jit(functools.partial(evaluate, model=job.model))(state, job.test_images)
    row = row_of_test(job.config, job.total_steps, tested)
    position = finished(job, Position(state, Metrics.zero(), 0.0, [row]), compile_seconds=0.0)
    assert position.summary is not None
    summary = {**position.summary, IMPORTED: source.name}
    position = position._replace(summary=summary)
    with new_run(job, out, overwrite=False) as begun:
        try:
            with Checkpoints(begun.path / run_folder.CHECKPOINTS, keep=1) as checkpoints:
                save(job, position, checkpoints)
            run_folder.write_rows(begun.path / run_folder.METRICS, position.rows)
            run_folder.write_summary(begun.path / run_folder.SUMMARY, summary)
        except BaseException:
            # Otherwise --resume would train another network in its place.
            run_folder.clear(begun.path)
            raise
    return finished_run(job, position, begun.path)
