"""What `scripts/demo.py` shows, and what it refuses, without a browser."""

import os
import re
import shutil
import socket
import sys
import webbrowser
from types import SimpleNamespace

import numpy as np
import pytest

import jaxmnist
from jaxmnist import TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.runs.setup import make_setup
from tests.conftest import SCRIPTS, golden_variables


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import demo

    return demo


@pytest.fixture
def make_run(small_idx_dir, monkeypatch):
    """A finished run of some variant that ended at some time."""
    monkeypatch.setattr(data.idx, "SHA256", {})

    def make_run(path, variant, dataset="mnist", ended=0):
        config = TrainConfig(variant, dataset)
        job = make_setup(config, jaxmnist.RunOptions(idx_dir=small_idx_dir))
        imported.write_run(job, golden_variables(variant), path, path)
        os.utime(path / "summary.json", (ended, ended))
        return path

    return make_run


def test_the_newest_run_of_every_variant_in_their_order(demo, make_run, tmp_path, capsys):
    make_run(tmp_path / "runs/old", "batch_norm", ended=1)
    make_run(tmp_path / "runs/fashion", "batch_norm", "fashion_mnist", ended=9)
    make_run(tmp_path / "runs/seeds/seed3", "batch_norm", ended=2)
    make_run(tmp_path / "docs/gap", "gap", ended=1)
    make_run(tmp_path / "docs/less", "less_params", ended=5)
    (tmp_path / "runs/unfinished/checkpoints").mkdir(parents=True)
    torn = make_run(tmp_path / "runs/torn", "gap", ended=8)
    (torn / "config.json").write_text("{")
    damaged = make_run(tmp_path / "runs/damaged", "gap", ended=7)
    shutil.rmtree(next((damaged / "checkpoints" / "seed0").iterdir()) / "arrays")
    folders = [tmp_path / "runs", tmp_path / "docs", tmp_path / "nowhere"]
    found = demo.newest_of_every_variant(folders)
    notes = capsys.readouterr().err.splitlines()
    assert re.match(f"note: passed over: .*{torn}", notes[0])
    assert re.match(f"note: passed over: .*{damaged}", notes[1])
    assert notes[2:] == [
        "note: there is no finished run of skeleton, dropout, fc_layer, augmentation"
    ]
    names = [str(run.path.relative_to(tmp_path)) for run in found]
    assert names == ["docs/less", "runs/seeds/seed3", "docs/gap"]
    assert [run.config.variant for run in found] == ["less_params", "batch_norm", "gap"]


def test_what_is_shown_of_networks_and_examples(demo, make_run, small_idx_dir, tmp_path):
    run = jaxmnist.load_run(make_run(tmp_path / "run", "gap"))
    images = data.load("mnist", idx_dir=small_idx_dir)
    shown = demo.what_is_shown([run, run], images, demo.says([run, run]))
    assert shown["networks"][0] == {
        "name": "gap run",  # since there are two
        "idea": "width where it pays, one-cycle schedule",
        "parameters": 7364,
        "accuracy": run.summary["final_test_accuracy"][0],
    }
    assert len(shown["networks"]) == 2
    assert demo.names([run]) == ["gap"]
    for example in shown["examples"]:
        place = example["number"]
        assert example["label"] == images.test_labels[place]
        assert example["image"] == images.test_images[place].ravel().tolist()
        first, second = example["probabilities"]
        assert first == second
        assert sum(first) == pytest.approx(1, abs=1e-3)
    said = demo.says([run])(images.test_images)[0].argmax(axis=1)
    assert np.count_nonzero(said != images.test_labels) >= 10
    wrong = [said[each["number"]] != each["label"] for each in shown["examples"]]
    assert sum(wrong) == 10


def test_an_address_that_is_taken(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = command("demo", tmp_path, "--port", port)
    assert status == 2
    assert errors.startswith(f"error: 127.0.0.1:{port} cannot be listened at: ")
    assert errors.endswith("pass another --host or --port (0: any that is free)\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RUN is missing; expected the folder of a finished run, or --drilldown"),
        (
            ["--drilldown", "nowhere"],
            "there is no finished run of mnist in nowhere; python scripts/drill",
        ),
        (
            ["--drilldown"],
            "there is no finished run of mnist in runs or docs/runs; python scripts/drill",
        ),
        (["nowhere"], "nowhere does not exist"),
        (["--port", "99999"], r"port is 99999; expected 0 \(any that is free\) to 65535"),
        (["--host", ""], "host is empty; expected an address, as 127.0.0.1 or 0.0.0.0"),
        (["--host", "no.such.invalid"], "no.such.invalid:0 cannot be listened at: "),
    ],
)
def test_what_cannot_be_shown(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    port = [] if "--port" in words else ["--port", 0]
    status, _, errors = command("demo", *words, *port)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert re.match(f"error: {message}", errors), errors


def test_what_is_not_digits_is_not_shown(command, make_run, tmp_path):
    clothes = make_run(tmp_path / "clothes", "gap", "fashion_mnist")
    status, _, errors = command("demo", clothes, "--port", 0)
    assert status == 2
    assert f"{clothes} was trained on fashion_mnist; expected a run of mnist" in errors


def test_all_is_compiled_before_the_page_opens(
    demo, command, make_run, small_idx_dir, tmp_path, monkeypatch
):
    from page import server

    run = make_run(tmp_path / "run", "less_params")
    happened = []

    def says(runs):
        def say(pixels):
            happened.append(len(pixels))
            return np.zeros((1, len(pixels), 10))

        return say

    class Thread:
        def __init__(self, target, args, daemon):
            assert target is webbrowser.open
            self.start = lambda: happened.append(args[0])

    monkeypatch.setattr(demo, "says", says)
    monkeypatch.setattr(demo, "threading", SimpleNamespace(Thread=Thread))
    monkeypatch.setattr(server, "serve", lambda app, listening: happened.append("served"))
    status, said, errors = command("demo", run, "--port", 0, "--idx-dir", small_idx_dir)
    assert (status, errors) == (0, "")
    address = said.split()[-4]
    assert happened == [430, 1, address, "served"]
    assert re.fullmatch(rf"less_params: {run}\nthe page is at {address} \(Ctrl-C ends it\)\n", said)
    happened.clear()
    command("demo", run, "--port", 0, "--idx-dir", small_idx_dir, "--no-browser")
    assert happened == [430, 1, "served"]


def test_a_server_that_is_not_installed(command, monkeypatch, tmp_path):
    for name in ("page", "page.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "flask", None)
    status, _, errors = command("demo", tmp_path)
    assert status == 2
    assert "flask is not installed; pip install -e '.[demo]' installs it" in errors
