"""What `scripts/demo.py` writes and opens, and what it refuses."""

import os
import re
import shutil
import webbrowser

import pytest

import jaxmnist
from jaxmnist import TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.inference import pretrained
from jaxmnist.page import make_page
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
        setup = make_setup(config, jaxmnist.RunOptions(idx_dir=small_idx_dir))
        imported.write_run(setup, golden_variables(variant), path, path)
        os.utime(path / "summary.json", (ended, ended))
        return path

    return make_run


@pytest.fixture
def opened(monkeypatch):
    """The addresses that the browser was opened with."""
    addresses = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    return addresses


def test_the_page_of_a_run_is_written_and_opened(
    command, make_run, opened, small_idx_dir, tmp_path
):
    run, out = make_run(tmp_path / "run", "less_params"), tmp_path / "new" / "a page.html"
    words = (run, "--idx-dir", small_idx_dir, "--out", out)
    status, said, errors = command("demo", *words)
    page = out.read_text()
    assert (status, errors) == (0, "")
    assert said == f"{out}: {len(page.encode()):,} bytes\n"
    assert opened == [f"file://{tmp_path}/new/a%20page.html"]
    images = data.load("mnist", idx_dir=small_idx_dir)
    assert page == make_page([jaxmnist.load_run(run)], images)
    assert command("demo", *words, "--no-browser")[0] == 0
    assert len(opened) == 1


def test_without_arguments_the_pretrained_networks(
    command, demo, make_run, opened, small_idx_dir, tmp_path, monkeypatch
):
    runs = jaxmnist.load_run(make_run(tmp_path / "run", "gap")).split()
    asked = []
    monkeypatch.setattr(demo, "load_runs", lambda name: asked.append(name) or runs)
    monkeypatch.chdir(tmp_path)
    status, said, _ = command("demo", "--idx-dir", small_idx_dir)
    assert status == 0
    assert asked == list(pretrained.NAMES)
    assert said.startswith("runs/demo.html: ")
    assert opened == [(tmp_path / "runs/demo.html").as_uri()]


def test_without_test_images_there_is_a_note(command, make_run, tmp_path, monkeypatch):
    run, out = make_run(tmp_path / "run", "gap"), tmp_path / "page.html"

    def load(*words):
        raise data.DataError("mnist could not be fetched")

    monkeypatch.setattr(data, "load", load)
    status, _, errors = command("demo", run, "--out", out, "--no-browser")
    assert status == 0
    assert errors == "note: the page has no test images: mnist could not be fetched\n"
    assert out.read_text() == make_page([jaxmnist.load_run(run)])


def test_the_newest_run_of_every_variant_in_their_order(demo, make_run, tmp_path, capsys):
    def copy(run, path, ended):
        shutil.copytree(run, tmp_path / path)
        os.utime(tmp_path / path / "summary.json", (ended, ended))
        return tmp_path / path

    old = make_run(tmp_path / "runs/old", "batch_norm", ended=1)
    make_run(tmp_path / "runs/fashion", "batch_norm", "fashion_mnist", ended=9)
    copy(old, "runs/seeds/seed3", ended=2)
    gap = make_run(tmp_path / "docs/gap", "gap", ended=1)
    make_run(tmp_path / "docs/less", "less_params", ended=5)
    (tmp_path / "runs/unfinished/checkpoints").mkdir(parents=True)
    torn = copy(gap, "runs/torn", ended=8)
    (torn / "config.json").write_text("{")
    damaged = copy(gap, "runs/damaged", ended=7)
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--drilldown", "nowhere"],
            "there is no finished run of mnist in nowhere; python scripts/drill",
        ),
        (
            ["--drilldown"],
            "there is no finished run of mnist in runs or docs/runs; python scripts/drill",
        ),
        (["nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_shown(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = command("demo", *words)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert re.match(f"error: {message}", errors), errors


def test_what_is_not_digits_is_not_shown(command, make_run, tmp_path):
    clothes = make_run(tmp_path / "clothes", "gap", "fashion_mnist")
    status, _, errors = command("demo", clothes, "--out", tmp_path / "page.html")
    assert status == 2
    assert f"{clothes} was trained on fashion_mnist; expected a run of mnist" in errors


def test_a_damaged_run_is_an_error(command, make_run, tmp_path):
    run = make_run(tmp_path / "run", "gap")
    shutil.rmtree(next((run / "checkpoints" / "seed0").iterdir()) / "arrays")
    status, _, errors = command("demo", run, "--out", tmp_path / "page.html")
    assert status == 1
    assert re.fullmatch(f"error: .*{run}.*\n", errors)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("out", ["file/page.html", "folder"])
def test_an_output_that_cannot_be_written(command, make_run, small_idx_dir, tmp_path, out):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    run = make_run(tmp_path / "run", "gap")
    words = (run, "--idx-dir", small_idx_dir, "--no-browser", "--out", tmp_path / out)
    status, _, errors = command("demo", *words)
    assert status == 1
    assert re.fullmatch(f"error: .*{tmp_path / out.split('/')[0]}.*\n", errors)
