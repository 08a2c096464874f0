"""Import of networks trained elsewhere, as runs."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmnist.metrics import Metrics
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run, Snapshot, finish, make_run, save
from jaxmnist.runs.setup import Setup
from jaxmnist.runs.summary import IMPORTED, row_of_test
from jaxmnist.state import initial_state
from jaxmnist.steps import evaluate


def write_run(
    setup: Setup, variables: dict[str, Any], out: str | os.PathLike | None, source: Path
) -> Run:
    """Write the folder of a finished run for the arrays of a network.

    The run has one row, for the last epoch. Training metrics are unknown and therefore null.

    Args:
        setup: the setup of the run.
        variables: `params` and `batch_stats`, float32.
        out: the folder; None for the next free default folder.
        source: the file of the arrays, for the summary.

    Raises:
        ConfigError: `out` already exists.
        CheckpointError: the checkpoint cannot be written.
        OSError: a file cannot be written.
    """
    config, seed = setup.config, setup.config.seed
    setup = setup._replace(facts={**setup.facts, IMPORTED: source.name})
    state = initial_state(setup.model, setup.tx, seed)
    state = state.replace(step=jnp.int32(setup.total_steps), **jax.tree.map(jnp.asarray, variables))
    tested = jax.jit(functools.partial(evaluate, model=setup.model))(state, setup.test_images)
    row = row_of_test(config, setup.total_steps, tested)
    snapshot = finish(setup, Snapshot(state, Metrics.zero(), 0.0, [row]), compile_seconds=0.0)
    with run_folder.new_folder(config, [seed], out, overwrite=False) as (_, path):
        try:
            save(setup, seed, snapshot, path)
            run_folder.write_rows(path, snapshot.rows)
            run = make_run(config, {seed: snapshot}, path)
            run_folder.write_summary(path, run.summary)
        except BaseException:
            # Otherwise, --resume would train a new network in this folder.
            run_folder.clear(path)
            raise
    return run
