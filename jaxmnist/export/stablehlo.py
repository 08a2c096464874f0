"""StableHLO, by `jax.export`: a program with its weights, for CPU, CUDA and TPU alike."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxmnist.export.network import ExportError, Network
from jaxmnist.models import create_model
from jaxmnist.models.description import SIZE
from jaxmnist.steps import normalise

PLATFORMS = ("cpu", "cuda", "tpu")

# All that a user of the file needs.
USE = """
import sys, numpy, jax.export
program, images, logits = sys.argv[1:]
with open(program, "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
numpy.save(logits, exported.call(numpy.load(images)))
assert "jaxmnist" not in sys.modules
"""


def write(network: Network, file: Path) -> None:
    """Writes the network as a program: images, any number of them, to logits `[N, 10]`.

    Raises:
        ModuleNotFoundError: flatbuffers is not installed, which `jax.export` needs.
        OSError: the disk does not take it.
    """
    importlib.import_module("flatbuffers")
    model = create_model(network.config.variant, network.config.dropout)

    def logits(images: jax.Array) -> Any:
        if not network.normalised_input:
            images = normalise(images, network.mean, network.std)
        return model.apply(network.variables, images)

    (count,) = export.symbolic_shape("N")
    shape, dtype = (count, SIZE, SIZE), jnp.uint8
    if network.normalised_input:
        shape, dtype = (*shape, 1), jnp.float32
    exported = export.export(jax.jit(logits), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, dtype)
    )
    file.write_bytes(exported.serialize())


def answer(network: Network, file: Path, images: np.ndarray) -> np.ndarray:
    """What the program makes of images in a process without this package: logits `[N, 10]`.

    Args:
        network: what was written.
        file: the program.
        images: uint8 `[N, 28, 28]`.

    Raises:
        ExportError: it fails there.
    """
    given, taken = (file.with_name(f".{name}.npy") for name in ("images", "logits"))
    try:
        np.save(given, network.input_of(images))
        command = [sys.executable, "-P", "-c", USE, str(file), str(given), str(taken)]
        # This process may hold the accelerator, all of it.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise ExportError(f"the exported program fails in a process of its own: {reason}")
        return np.load(taken)
    finally:
        for scratch in (given, taken):
            scratch.unlink(missing_ok=True)
