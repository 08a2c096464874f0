"""The training programs for GPU and TPU, lowered and compiled on a machine that has neither."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import steps
from jaxmnist.config import TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.models import model_of
from jaxmnist.models.layers import Conv
from jaxmnist.optim import make_optimizer
from jaxmnist.state import create_state, is_key


def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def chunk_of(variant, platform):
    """`train_chunk`, and its arguments without their values."""
    config = TrainConfig(variant)
    model = model_of(config).clone(platform=platform)
    tx = make_optimizer(config, 15 * 468)

    def chunk(*arguments):
        return steps.train_chunk(*arguments, config=config, model=model, tx=tx)

    state = jax.eval_shape(lambda: create_state(model, tx, 0))
    pixels, labels = array(np.uint8, 60_000, 28, 28), array(np.uint8, 60_000)
    images = steps.Images(pixels, labels, array(np.float32), array(np.float32))
    metrics = jax.eval_shape(Metrics.zero)
    return chunk, (state, metrics, images, array(np.int32, 60_000), array(np.int32))


@pytest.mark.parametrize("variant", jaxmnist.VARIANTS)
@pytest.mark.parametrize(("name", "platform"), [("cuda", "gpu"), ("tpu", "tpu")])
def test_training_lowers_for_accelerators(variant, name, platform):
    chunk, arguments = chunk_of(variant, platform)
    traced = jax.jit(chunk, donate_argnums=(0, 1)).trace(*arguments)
    text = traced.lower(lowering_platforms=(name,)).as_text()
    layers = jaxmnist.create_model(variant).layers()
    # One forward and two backward for each layer, but the images have no gradient.
    convolutions = 3 * sum(isinstance(layer, Conv) for layer in layers) - 1
    assert text.count("stablehlo.convolution") == convolutions
    # Both factors of each product have all their bits on a GPU.
    highest = text.count("#stablehlo<precision HIGHEST>")
    assert highest == (2 * convolutions if platform == "gpu" else 0)
    assert text.count("stablehlo.while") == 1
    assert "stablehlo.custom_call" not in text  # neither callbacks nor libraries
    assert "f64" not in text
    donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    assert donated == len(jax.tree.leaves(arguments[:2]))


@pytest.fixture(scope="module")
def libtpu(tmp_path_factory):
    """A folder with the TPU's compiler, outside of any environment: JAX would look for a TPU."""
    (requirement,) = (
        line.split(";")[0] for line in importlib.metadata.requires("jax") if "libtpu" in line
    )
    folder = tmp_path_factory.mktemp("libtpu")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    if subprocess.run([*command, requirement], capture_output=True).returncode:
        pytest.skip(f"{requirement} cannot be installed")
    return folder


# In a process of its own: the compiler is loaded once per process.
COMPILE = """
import json, jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tests.test_accelerators import chunk_of

topology = topologies.get_topology_desc(
    "v5e:1x1", platform="tpu", chips_per_host_bounds=[1, 1, 1]
)
(device,) = topology.devices
here = SingleDeviceSharding(device)
chunk, arguments = chunk_of("gap", device.platform)
placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments)
compiled = jax.jit(chunk, donate_argnums=(0, 1)).lower(*placed).compile()
memory, text = compiled.memory_analysis(), compiled.as_text()
print(json.dumps({
    "bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    "donated_bytes": memory.alias_size_in_bytes,
    "microseconds": 1e6 * compiled.cost_analysis()["optimal_seconds"],
    "host": [word for word in ("infeed", "outfeed", "send(", "recv(") if word in text],
}))
"""


@pytest.mark.slow
def test_training_compiles_for_a_tpu(libtpu):
    root = Path(jaxmnist.__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(libtpu)]),
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    }
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["host"] == []
    assert found["bytes"] < 100e6  # 60 MB with jax 0.10.2, of which the images take 47
    _, arguments = chunk_of("gap", "tpu")
    state = [leaf for leaf in jax.tree.leaves(arguments[:2]) if not is_key(leaf)]
    assert found["donated_bytes"] >= sum(leaf.size * leaf.dtype.itemsize for leaf in state)
    assert found["microseconds"] < 800  # the compiler's estimate of a step: 528
