"""A network of the user goes through every command as the package's own networks do."""

import importlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import jaxmnist
from jaxmnist import data
from jaxmnist.inference.predict import load_runs, make_predict

pytestmark = pytest.mark.usefixtures("shared_programs")

TEXT = """
conv 10 8x8 stride 4   # 6x6
relu
mean
"""
LINE = "conv 10 8x8 stride 4 / relu / mean"
SHORT = ("--epochs", "1", "--batch-size", "100", "--schedule", "constant", "--no-augment")


@pytest.fixture
def own(small_idx_dir, command, tmp_path, monkeypatch):
    """Runs a command in a folder with mine.txt, on small images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.idx, "SHA256", {})
    Path("mine.txt").write_text(TEXT)
    return lambda name, *words: command(name, *words, "--idx-dir", small_idx_dir)


def test_a_file_is_trained_resumed_evaluated_and_exported(own, small_idx_dir):
    status, out, err = own("train", "--network", "mine.txt", *SHORT)
    assert (status, err) == (0, "")
    assert "mine, seed 0:" in out
    assert "640 parameters" in out
    assert json.loads(Path("runs/mine-seed0/config.json").read_text())["network"] == LINE
    (run,) = load_runs("runs/mine-seed0")
    log_probs = make_predict(run)(np.zeros((3, 28, 28), np.uint8))
    assert log_probs.shape == (3, 10)
    resumed = ("train", *SHORT[:-1], "--no-augment", "--out", "runs/mine-seed0", "--resume")
    assert own(*resumed, "--network", "mine.txt")[0] == 0
    Path("mine.txt").write_text("conv 10 / mean")
    status, _, err = own(*resumed, "--network", "mine.txt")
    assert status == 2
    assert f"network was '{LINE}' and is 'conv 10 / mean'" in err
    status, out, _ = own("evaluate", "runs/mine-seed0")
    assert status == 0
    assert "% of 430 test images" in out
    assert own("export", "runs/mine-seed0", "--to", "safetensors")[0] == 0
    assert own("demo", "runs/mine-seed0", "--out", "page.html", "--no-browser")[0] == 0
    assert '"variant":"mine"' in Path("page.html").read_text().replace(" ", "")


def test_text_is_named_by_its_digest_unless_it_has_a_name(own):
    status, out, _ = own("train", "--network", LINE, *SHORT, "--dry-run")
    assert status == 0
    assert '"variant": "own-' in out
    _, out, _ = own("train", "--network", LINE, "--variant", "strided", *SHORT, "--dry-run")
    assert '"variant": "strided"' in out


def test_a_budget_refuses_with_the_table(own):
    status, out, err = own("train", "--network", "mine.txt", "--budget", "500", "--dry-run")
    assert (status, err) == (
        2,
        "error: mine has 640 parameters, 140 more than --budget allows (500); make it smaller, or "
        "raise --budget\n",
    )
    assert "conv0" in out
    assert own("train", "--network", "mine.txt", "--budget", "640", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none.txt", "network is 'none.txt', which is neither a file nor a network"),
        ("conv 8 / pol", "network, layer 2: 'pol' is not a layer"),
        ("binary.txt", "binary.txt is not a text file; expected one layer per line"),
        ("a b.txt", "variant is 'a b'; expected a name"),
    ],
)
def test_a_bad_network_is_one_line(own, words, message):
    Path("binary.txt").write_bytes(b"\xff\xfe")
    Path("a b.txt").write_text(TEXT)
    status, _, err = own("train", "--network", words)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_compared_with_another_network_seed_by_seed(own, monkeypatch):
    options = partial(jaxmnist.RunOptions, seed_mapping="loop")
    monkeypatch.setattr(importlib.import_module("drilldown"), "RunOptions", options)
    tiny = ("--dataset", "kmnist", "--epochs", "2", "--out", "found", "--seeds", "2")
    Path("other.txt").write_text("conv 10 4x4 stride 4 / mean")
    status, out, err = own("drilldown", "other.txt", "mine.txt", *tiny, "--quiet")
    assert (status, err) == (0, "")
    _, out, _ = own("drilldown", "--compare", "other", "mine", "--out", "found")
    assert "`mine`" in out
    assert "n = 2" in out or "2 seeds" in out
    Path("mine.txt").write_text("conv 10 / mean")
    status, _, err = own("drilldown", "mine.txt", *tiny)
    assert status == 2
    assert "mine names two networks" in err


def test_the_summary_of_a_run_a_name_and_a_text(command, tmp_path):
    sums = {}
    for words in ("gap", "record", "less_params", LINE):
        status, out, _ = command("summary", words, "--json")
        assert status == 0
        sums[words] = sum(row["parameters"] for row in json.loads(out))
    assert sums == {"gap": 7364, "record": 7364, "less_params": 4572, LINE: 640}
    status, out, _ = command("summary", "gap")
    assert "7,364" in out
    status, _, err = command("summary", tmp_path)
    assert status == 2
    assert "expected the folder of a run" in err
