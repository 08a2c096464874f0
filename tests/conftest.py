"""What several test files share: small images, a small run, and golden numbers drawn by name."""

import contextlib
import ctypes
import dataclasses
import gc
import importlib
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file as load_safetensors

import jaxmnist
from jaxmnist import Callbacks, RunOptions
from jaxmnist.data import idx
from jaxmnist.models import NETWORKS, variants
from jaxmnist.models.layers import max_pool
from jaxmnist.parallel.devices import ONE
from jaxmnist.parallel.programs import compile_programs
from jaxmnist.recipes import RECIPES

# The programs of the tests run for a moment: compiling them is what takes time. XLA_FLAGS= in the
# environment brings the compiler's defaults back; .ci/run tests both.
# JAX 0.12 ends at a flag that it does not know any more.
COMPILED_QUICKLY = "--xla_backend_optimization_level=1"
if jax.__version_info__ < (0, 11):
    COMPILED_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", COMPILED_QUICKLY)

GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = Path(__file__).parent.parent / "scripts"
SCRIPT = SCRIPTS / "train.py"


class Tiny(variants.Network):
    """A layer of each kind, and 1,484 parameters: for tests of what is around a network."""

    def layers(self):
        return [
            *variants.conv_relu_norm_drop(4, self.dropout_rate),
            max_pool,
            max_pool,
            variants.conv(10, kernel_size=6),
        ]


# A small network as text, with every kind of layer: among others a sum of paths that see different
# pixels, strides that leave a remainder, and a saved dropout.
OWN = """
save / conv 1 5x5 pad 2 / add                              # 28x28
conv 6 stride 3 pad 2 / relu / drop                        # 10x10
save / depthwise pad 1 / group_norm 2 / relu
save / conv 6 1x1 / layer_norm / drop 0.1 / add / add
depthwise stride 2 pad 2 bias / ghost_norm 2 / pool        # 3x3
conv 8 1x1 bias / norm / relu / max / save / add     # 1x1
conv 10 1x1 / mean
"""

# A network that is compiled in a moment, for tests that start many processes.
QUICK = "conv 4 5x5 stride 3 / relu / norm / drop 0.1 / conv 10 8x8"

# The seven variants; the largest takes as long as the others together.
SKELETON_SLOW = [
    pytest.param(variant, marks=pytest.mark.slow) if variant == "skeleton" else variant
    for variant in jaxmnist.VARIANTS
]
NETWORKS["tiny"] = Tiny
RECIPES["notebook"]["tiny"] = RECIPES["notebook"]["gap"]
RECIPES["record"]["tiny"] = RECIPES["record"]["gap"]


@pytest.fixture(autouse=True)
def no_real_data_dir(monkeypatch, tmp_path):
    """No test sees or changes what the user keeps."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tensorflow_datasets"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks every test that starts the command in a process as slow."""
    for item in items:
        if "start" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Compiles a program that several tests use once, for both test processes."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Frees the compiled programs of a test file when it is done."""
    yield
    jax.clear_caches()
    gc.collect()
    # The C library keeps what is freed: of 950 MB after one file, 330 are in use.
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def drawn(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """The golden files' drawing rule: uniform float32, seeded by the crc32 of the name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return (low + (high - low) * rng.random_sample(shape)).astype(np.float32)


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def golden_batch(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The golden files' images `[N, 28, 28, 1]`, normalised, and labels `[N]`."""
    images = (drawn("batch/golden/images", (count, 1, 28, 28), 0, 1) - 0.1307) / 0.3081
    labels = drawn("batch/golden/labels", (count,), 0, 10).astype(np.int64)
    return images.astype(np.float32).transpose(0, 2, 3, 1), labels


def golden_variables(variant: str) -> dict:
    """The weights that the golden files were computed with, in the networks' own names."""
    return drawn_variables(jaxmnist.create_model(variant), variant)


def drawn_variables(model: variants.Network, name: str) -> dict:
    """Weights and running statistics of a network, drawn by name."""
    images = np.zeros((1, 28, 28, 1), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return {
        collection: {
            layer: {kind: _weight(name, layer, kind, leaves) for kind in leaves}
            for layer, leaves in layers.items()
        }
        for collection, layers in shapes.items()
    }


def _weight(network, layer, kind, leaves):
    name = f"{network}/{layer}/{kind}"
    if layer.startswith("norm"):
        low, high = (0.5, 1.5) if kind in ("scale", "var") else (-0.5, 0.5)
        return drawn(name, leaves[kind].shape, low, high)
    height, width, inputs, outputs = leaves["kernel"].shape
    bound = 1.7 / np.sqrt(height * width * inputs)
    if kind == "bias":
        return drawn(name, (outputs,), -bound, bound)
    kernel = drawn(
        f"{network}/{layer}/weight_oihw", (outputs, inputs, height, width), -bound, bound
    )
    return kernel.transpose(2, 3, 1, 0)


def small_files(train_count: int = 600, test_count: int = 430) -> dict[str, bytes]:
    """A small data set that can be learnt: each class is a bright square in a place of its own."""
    rng = np.random.default_rng(0)

    def part(count):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = 4 + 10 * (label // 5), 4 + 4 * (label % 5)
            image[row : row + 6, column : column + 4] = 255
        return idx.to_bytes(images), idx.to_bytes(labels)

    train_images, train_labels = part(train_count)
    test_images, test_labels = part(test_count)
    return dict(zip(idx.NAMES, (train_images, train_labels, test_images, test_labels), strict=True))


@pytest.fixture(scope="session")
def small_idx_dir(tmp_path_factory) -> Path:
    """The four IDX files of the small data set."""
    folder = tmp_path_factory.mktemp("idx")
    for name, content in small_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def shared_programs():
    """Compiles what the trainings of a test file have in common once."""
    compiled = {}

    def compile_once(config, model, tx, train_images, test_images, seeds=1, devices=ONE):
        shapes = tuple(images.pixels.shape for images in (train_images, test_images))
        # Programs depend neither on the seed, an argument, nor on which images are held out.
        key = dataclasses.replace(config, seed=0, fold=0), shapes, seeds, devices
        if key not in compiled:
            compiled[key] = compile_programs(
                config, model, tx, train_images, test_images, seeds, devices
            )
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxmnist.runs.train.compile_programs", compile_once)
        yield


@pytest.fixture(scope="session")
def small_config() -> jaxmnist.TrainConfig:
    """Three epochs of 18 steps, with everything that a recipe can have."""
    return jaxmnist.TrainConfig("tiny", "fashion_mnist", epochs=3, batch_size=32, learning_rate=0.1)


def train(config, out, idx_dir, seeds=None, report=None, should_stop=None, **options):
    """Calls `jaxmnist.train` with the fields of its options and callbacks."""
    given = {"report": report, "should_stop": should_stop}
    callbacks = Callbacks(**{name: call for name, call in given.items() if call is not None})
    return jaxmnist.train(config, out, seeds, RunOptions(idx_dir=idx_dir, **options), callbacks)


@pytest.fixture(scope="session")
def small_run(small_config, small_idx_dir, tmp_path_factory) -> jaxmnist.Run:
    """A finished run; tests may read it, not change it."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return train(small_config, out, small_idx_dir)


def trained_variables() -> dict:
    """`gap` as seed 0 of docs/results.json left it, by `scripts/export.py --to safetensors`."""
    file = Path(__file__).parent / "fixtures" / "gap_seed0.safetensors"
    return unflatten_dict(load_safetensors(file), sep="/")


@pytest.fixture(scope="session")
def small_seeds(small_idx_dir, tmp_path_factory) -> jaxmnist.Run:
    """A finished run of two seeds; tests may read it, not change it."""
    config = jaxmnist.TrainConfig("less_params", "kmnist", epochs=1)
    out = tmp_path_factory.mktemp("runs") / "seeds"
    return train(config, out, small_idx_dir, seeds=[0, 1], seed_mapping="loop")


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a script in this process: its status, output and errors."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def run(name, *words):
        script = importlib.import_module(name)
        if hasattr(script, "use_compilation_cache"):
            monkeypatch.setattr(script, "use_compilation_cache", lambda: None)
        status = script.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


# Where the tests run in the background or under nohup, children begin with these signals ignored.
START = (
    "import os, runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "del sys.argv[0]; sys.path[0] = os.path.dirname(sys.argv[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where all processes that tests start keep what they compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tmp_path, small_idx_dir, cache):
    """Starts the command; what is still running afterwards is killed."""
    started = []

    def start(*words, folder=tmp_path, devices=1, flags="", script_errors=subprocess.PIPE):
        process = subprocess.Popen(
            [sys.executable, "-c", START, SCRIPT, "--idx-dir", small_idx_dir, *words],
            cwd=folder,
            env={
                **os.environ,
                "XDG_CACHE_HOME": str(cache),
                # With the flags of this process, since the runs of both are compared to the bit.
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
                f"--xla_force_host_platform_device_count={devices} {flags}",
            },
            stdout=subprocess.PIPE,
            stderr=script_errors,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        with contextlib.suppress(ValueError):  # the test closed its output, and waited
            process.communicate()


def finish(process):
    """Waits for the end of the command: its status, output and errors."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_line(process, pattern):
    """Reads the command's output up to a line."""
    for line in process.stdout:
        if re.match(pattern, line):
            return
    raise AssertionError(f"ended without {pattern}: {process.stderr.read()}")


def wait_until(condition, process):
    """Waits while the command runs."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
