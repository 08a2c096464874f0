"""Pretrained networks of the package: seed 0 of six variants, and of two more recipes for gap.

A network is a safetensors file with its arrays and the metadata of its last checkpoint: config,
digest of the images, rows and summary. SHA256SUMS holds the digest of each file.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

from jaxmnist.config import ConfigError, check_choice
from jaxmnist.metrics import Metrics
from jaxmnist.runs import checkpoint, run_folder
from jaxmnist.runs.run import Run, Snapshot, config_of, make_run
from jaxmnist.state import KEY_IMPL, TrainState

NAMES = (
    *("less_params", "batch_norm", "dropout", "fc_layer", "augmentation", "gap"),
    *("gap/fast", "gap/record"),
)
# The recipes of gap also have short names: fast, record.
SHORT_NAMES = {name.split("/")[-1]: name for name in NAMES if "/" in name}
FOLDER = Path(__file__).parent.parent / "pretrained"
DIGESTS = "SHA256SUMS"
# Folder for the output of commands that use a pretrained network.
OUTPUT = Path("runs", "pretrained")
_METADATA = "jaxmnist"


def is_pretrained(path: str | os.PathLike) -> bool:
    """Return whether a path names a pretrained network; an existing path takes precedence."""
    name = os.fspath(path)
    return name in (*NAMES, *SHORT_NAMES) and not os.path.exists(name)


def load_pretrained(name: str) -> Run:
    """Return a pretrained network of the package, as a finished run.

    Args:
        name: one of `NAMES` or `SHORT_NAMES`.

    Raises:
        ConfigError: there is no such network, or its file is damaged.
        OSError: the file cannot be read.
    """
    check_choice("pretrained network", name, [*NAMES, *SHORT_NAMES])
    file = FOLDER / _file_name(SHORT_NAMES.get(name, name))
    if f"{_digest(file)}  {file.name}\n" not in (FOLDER / DIGESTS).read_text():
        raise ConfigError(f"{file} differs from its digest in {DIGESTS}; install the package again")
    with safe_open(file, "numpy") as opened:
        metadata = json.loads(opened.metadata()[_METADATA])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    config, rows = config_of(metadata), metadata["rows"]
    variables = jax.tree.map(jnp.asarray, unflatten_dict(arrays, sep="/"))
    state = TrainState(
        step=jnp.int32(rows[-1]["step"]),
        key=jax.random.key(config.seed, impl=KEY_IMPL),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optax.EmptyState(),
    )
    snapshot = Snapshot(state, Metrics.zero(), 0.0, rows, metadata["summary"])
    return make_run(config, {config.seed: snapshot}, OUTPUT / file.stem)


def write_pretrained(runs: Sequence[Run], folder: Path = FOLDER) -> list[Path]:
    """Write pretrained networks from finished runs of seed 0, and the digests of the files.

    Args:
        runs: runs of one seed, one for each of `NAMES`, in any order.
        folder: the output folder.

    Returns:
        The files, in the order of `NAMES`.

    Raises:
        ConfigError: a run of seed 0 is missing.
        OSError: a file cannot be written.
    """
    by_name = {run.config.name: run for run in runs if run.config.seed == 0}
    missing = [name for name in NAMES if name not in by_name]
    if missing:
        raise ConfigError(
            f"there is no run of seed 0 of {', '.join(missing)}; expected one of each"
        )
    folder.mkdir(exist_ok=True)
    files = [_write(by_name[name], folder / _file_name(name)) for name in NAMES]
    digests = "".join(f"{_digest(file)}  {file.name}\n" for file in files)
    run_folder.write(folder / DIGESTS, digests)
    return files


def _write(run: Run, file: Path) -> Path:
    metadata = checkpoint.newest_metadata(run_folder.checkpoint_folder(run.path, run.config.seed))
    named = flatten_dict(run.variables, sep="/")
    arrays = {name: np.ascontiguousarray(value) for name, value in named.items()}
    file.write_bytes(save(arrays, {_METADATA: json.dumps(metadata)}))
    return file


def _file_name(name: str) -> str:
    return f"{name.replace('/', '-')}.safetensors"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
