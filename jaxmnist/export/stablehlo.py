"""StableHLO export with `jax.export`: a program with its weights, for CPU, CUDA and TPU."""

import functools
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

from jaxmnist.export.network import ExportError, TrainedNetwork
from jaxmnist.models import model_of
from jaxmnist.network_text import SIZE
from jaxmnist.steps import normalise

# Platforms by JAX's name for lowering: the platform of their devices.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}

# Program that runs the exported file without this package.
USE = """
import sys, numpy, jax.export
program, images, logits = sys.argv[1:]
with open(program, "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
numpy.save(logits, exported.call(numpy.load(images)))
assert "jaxmnist" not in sys.modules
"""


def write(network: TrainedNetwork, file: Path) -> None:
    """Write the network as a program from images, any number, to logits `[N, 10]`.

    Raises:
        ModuleNotFoundError: flatbuffers, which `jax.export` needs, is not installed.
        OSError: the file cannot be written.
    """
    importlib.import_module("flatbuffers")
    model = model_of(network.config)

    def logits(images: jax.Array) -> Any:
        if not network.normalised_input:
            images = normalise(images, network.mean, network.std)
        # The network of each platform, which has its own convolution.
        networks = {
            name: functools.partial(model.clone(platform=platform).apply, network.variables)
            for name, platform in PLATFORMS.items()
        }
        return jax.lax.platform_dependent(images, **networks)

    (count,) = export.symbolic_shape("N")
    shape, dtype = (count, SIZE, SIZE), jnp.uint8
    if network.normalised_input:
        shape, dtype = (*shape, 1), jnp.float32
    exported = export.export(jax.jit(logits), platforms=tuple(PLATFORMS))(
        jax.ShapeDtypeStruct(shape, dtype)
    )
    file.write_bytes(exported.serialize())


def logits_of(network: TrainedNetwork, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits `[N, 10]` with the program, in a process without this package.

    Args:
        network: the exported network.
        file: the program.
        images: uint8 `[N, 28, 28]`.

    Raises:
        ExportError: the program fails in that process.
    """
    given, taken = (file.with_name(f".{name}.npy") for name in ("images", "logits"))
    try:
        np.save(given, network.input_of(images))
        command = [sys.executable, "-P", "-c", USE, str(file), str(given), str(taken)]
        # This process may have reserved all of the accelerator's memory.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no error output"])[-1]
            raise ExportError(f"the exported program fails in a process of its own: {reason}")
        return np.load(taken)
    finally:
        for scratch in (given, taken):
            scratch.unlink(missing_ok=True)
