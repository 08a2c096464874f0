"""A network that was trained elsewhere becomes a run like any other."""

import json

import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError, TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.runs.setup import make_setup
from tests.conftest import golden_variables, train


@pytest.fixture
def job(small_idx_dir):
    config = TrainConfig("batch_norm", "kmnist", epochs=2)
    return make_setup(config, jaxmnist.RunOptions(idx_dir=small_idx_dir))


def test_an_imported_network_is_a_finished_run(job, tmp_path, command, small_idx_dir):
    out, variables = tmp_path / "run", golden_variables("batch_norm")
    run = imported.write_run(job, variables, out, tmp_path / "notebook.pt")
    assert run.summary["imported_from"] == "notebook.pt"
    same = jaxmnist.load_run(out)
    np.testing.assert_array_equal(
        same.state.params["conv0"]["kernel"], variables["params"]["conv0"]["kernel"]
    )
    np.testing.assert_array_equal(
        same.state.batch_stats["norm0"]["var"], variables["batch_stats"]["norm0"]["var"]
    )
    assert int(same.state.step) == job.total_steps == 8
    (row,) = same.rows
    assert row["train_loss"] is row["train_accuracy"] is None
    assert same.summary["final_test_accuracy"] == [row["test_accuracy"]]
    assert same.summary["images_per_second"] is None
    # The files for people say the same, and other commands take it.
    assert json.loads((out / "summary.json").read_text()) == same.summary
    status, said, _ = command("evaluate", out, "--idx-dir", small_idx_dir)
    assert status == 0
    assert f"{row['test_accuracy']:.2f} % of 430 test images" in said.replace("\n", " ")
    status, said, _ = command("plot", out)
    assert (status, said) == (0, f"{out / 'curves.png'}\n")


def test_what_cannot_be_written_leaves_no_run(job, tmp_path, monkeypatch):
    """Otherwise --resume would train another network in its place."""

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(imported, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        imported.write_run(job, golden_variables("batch_norm"), tmp_path / "run", tmp_path / "a.pt")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == []


def test_an_imported_network_cannot_be_trained_on(job, tmp_path, small_idx_dir):
    out = tmp_path / "run"
    imported.write_run(job, golden_variables("batch_norm"), out, tmp_path / "notebook.pt")
    longer = TrainConfig("batch_norm", "kmnist", epochs=3)
    with pytest.raises(
        ConfigError, match=r"the network comes from notebook.pt; it cannot be trained further"
    ):
        train(longer, out, small_idx_dir, resume=True)


def test_the_command(job, command, small_idx_dir, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from jaxmnist.export import pytorch
    from jaxmnist.export.network import TrainedNetwork

    file, out = tmp_path / "notebook.pt", tmp_path / "run"
    network = TrainedNetwork(TrainConfig("fc_layer"), golden_variables("fc_layer"), 0.1, 0.3, False)
    pytorch.write(network, file)
    monkeypatch.setattr(data.idx, "SHA256", {})
    status, said, err = command(
        "export", out, "--from-torch", file, "--variant", "fc_layer", "--idx-dir", small_idx_dir
    )
    assert (status, err) == (0, "")
    assert said.startswith(f"{out}: fc_layer, ")
    assert torch.load(file, weights_only=True)["0.weight"].shape == (8, 1, 3, 3)
    assert jaxmnist.load_run(out).config == TrainConfig("fc_layer")
