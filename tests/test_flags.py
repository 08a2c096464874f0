"""Flags of JAX and of other libraries in the environment change no result."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError
from jaxmnist.inference.predict import make_predict
from jaxmnist.models import create_model
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel import devices
from jaxmnist.state import create_state
from tests.conftest import QUICK, SCRIPTS, train

ROOT = Path(__file__).parent.parent
FLAGS = {
    "enable_x64": True,
    "default_prng_impl": "rbg",
    "threefry_partitionable": False,
    "numpy_dtype_promotion": "strict",
    "numpy_rank_promotion": "raise",
}


@pytest.fixture
def other_flags():
    with contextlib.ExitStack() as stack:
        for name, value in FLAGS.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def test_a_run_is_read_and_used_under_other_flags(small_run, other_flags):
    same = jaxmnist.load_run(small_run.path)
    jax.tree.map(np.testing.assert_array_equal, same.variables, small_run.variables)
    pixels = np.zeros((2, 28, 28), np.uint8)
    assert make_predict(same)(pixels).dtype == np.float32


def test_the_key_has_a_fixed_implementation(other_flags):
    config = jaxmnist.TrainConfig("gap")
    tx = make_optimizer(config, 10)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = jax.eval_shape(lambda: create_state(create_model("gap"), tx, 0))
    assert state.key.dtype == jax.random.key(0, impl="threefry2x32").dtype


def test_a_run_is_the_same_under_other_flags(small_config, small_idx_dir, small_run, tmp_path):
    with contextlib.ExitStack() as stack:
        for name, value in FLAGS.items():
            stack.enter_context(getattr(jax, name)(value))
        run = train(small_config, tmp_path / "run", small_idx_dir)
        leaves = jax.tree.leaves(jax.tree.map(np.asarray, (run.state.params, run.state.opt_state)))
    kept = jax.tree.leaves((small_run.state.params, small_run.state.opt_state))
    for leaf, other in zip(leaves, kept, strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def test_a_platform_that_is_not_there_is_named(small_run, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\n: no device")

    monkeypatch.setattr(jax, "local_devices", fail)
    words = r"^JAX_PLATFORMS is .*, which JAX cannot use here: Unable to .* no device; unset it"
    for call in (
        lambda: jaxmnist.load_run(small_run.path),
        lambda: devices.choose_devices(None, "jit"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def start(words, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train", "--dry-run"], ["predict", "RUN", "a.png"]])
def test_commands_name_a_platform_that_is_not_there(words, small_run):
    words = [str(small_run.path) if word == "RUN" else word for word in words]
    done = start([SCRIPTS / f"{words[0]}.py", *words[1:]], JAX_PLATFORMS="nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: JAX_PLATFORMS is 'nowhere', which JAX cannot use here: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_commands_start_as_modules_and_with_a_safe_path():
    for words in (["-m", "scripts.plot", "--help"], [SCRIPTS / "plot.py", "--help"]):
        done = start(words, PYTHONSAFEPATH="1" if "-m" not in words else "")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_commands_under_flags_of_others(small_idx_dir, tmp_path):
    """Figures under a backend that is not installed, and with LaTeX for all text."""
    config = jaxmnist.TrainConfig("quick", "fashion_mnist", epochs=1, network=QUICK)
    train(config, tmp_path / "run", small_idx_dir)
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 7\n")
    done = start(
        [SCRIPTS / "evaluate.py", tmp_path / "run", "--idx-dir", small_idx_dir, "--out", tmp_path],
        MPLBACKEND="nowhere",
        MATPLOTLIBRC=str(tmp_path),
        JAX_ENABLE_X64="1",
        JAX_DEFAULT_PRNG_IMPL="rbg",
        JAX_NUMPY_DTYPE_PROMOTION="strict",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "fashion_mnist" / "confusion.png").exists()
