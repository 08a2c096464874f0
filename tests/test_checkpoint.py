import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import TrainConfig, checkpoint, create_model
from jaxmnist.checkpoint import CheckpointError
from jaxmnist.optim import make_optimizer
from jaxmnist.state import create_state, initial_state


def functions(variant):
    model = create_model(variant)
    tx, _ = make_optimizer(TrainConfig(variant), 100)
    return functools.partial(initial_state, model, tx), jax.eval_shape(
        functools.partial(create_state, model, tx), 0
    )


@pytest.fixture(scope="module")
def state():
    create, _ = functions("batch_norm")
    return create(3).replace(step=jnp.int32(17))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(folder, state)
    return folder


def test_what_was_saved_comes_back_to_the_bit(state, saved):
    _, template = functions("batch_norm")
    restored = checkpoint.restore(saved, template)
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    chex.assert_trees_all_equal(
        restored.replace(key=jax.random.key_data(restored.key)),
        state.replace(key=jax.random.key_data(state.key)),
    )
    assert int(restored.step) == 17


def test_another_network_is_refused(saved):
    _, template = functions("less_params")
    with pytest.raises(
        CheckpointError,
        match=r"batch_stats/norm0/mean in .* is float32\[16\]; expected no such array",
    ):
        checkpoint.restore(saved, template)


def test_another_dtype_is_refused_not_cast(saved):
    _, template = functions("batch_norm")
    template = template.replace(step=jax.ShapeDtypeStruct((), np.int16))
    with pytest.raises(CheckpointError, match=r"step in .* is int32\[\]; expected int16\[\]"):
        checkpoint.restore(saved, template)


def test_no_checkpoint(tmp_path, state):
    with pytest.raises(CheckpointError, match="does not exist; was the run finished"):
        checkpoint.restore(tmp_path / "none", state)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path, state)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, state, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"No space left on device \(1000 bytes free, .*checkpoints"):
        checkpoint.save(tmp_path / "checkpoints", state)
    assert list((tmp_path / "checkpoints").iterdir()) == []
