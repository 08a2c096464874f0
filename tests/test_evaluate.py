"""The commands that use what was trained: evaluate, predict and plot, as their users type them."""

import contextlib
import errno
import importlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.analysis import evaluation
from jaxmnist.data import idx
from jaxmnist.inference import pictures
from jaxmnist.inference.predict import make_predict
from jaxmnist.inference.views import ensemble
from tests.conftest import SCRIPTS


@pytest.fixture
def small_run(small_run, tmp_path_factory):
    """A copy: the commands write into a run's folder."""
    copy = tmp_path_factory.mktemp("copies") / "small"
    return small_run._replace(path=shutil.copytree(small_run.path, copy))


@pytest.fixture
def small_seeds(small_seeds, tmp_path_factory):
    """A copy, for the same reason."""
    copy = tmp_path_factory.mktemp("copies") / "seeds"
    return small_seeds._replace(path=shutil.copytree(small_seeds.path, copy))


@pytest.fixture
def of_digits(monkeypatch):
    """Lets predict take the small runs, which are of other data sets."""

    def of_digits(dataset):
        monkeypatch.setattr("jaxmnist.inference.predict.DIGITS", dataset)

    return of_digits


@pytest.fixture
def folder(small_idx_dir, tmp_path):
    """Test images as pictures, dark on light, each named by its label."""
    images = idx.parse_images((small_idx_dir / idx.TEST_IMAGES).read_bytes(), "test")
    labels = idx.parse_labels((small_idx_dir / idx.TEST_LABELS).read_bytes(), "test")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        light = Image.fromarray(255 - images[number]).resize((140, 140), Image.Resampling.NEAREST)
        light.save(pictures / f"{labels[number]}.png")
    return pictures


def test_evaluates_a_run(command, small_run, small_idx_dir):
    status, out, err = command("evaluate", small_run.path, "--idx-dir", small_idx_dir)
    assert (status, err) == (0, "")
    accuracy = small_run.summary["final_test_accuracy"][0]
    last = out.splitlines()[-1]
    assert last.startswith(
        f"{small_run.path}: {accuracy:.2f} % of 430 test images of fashion_mnist (95 % interval "
    )
    folder = small_run.path / "evaluation" / "fashion_mnist"
    files = {"evaluation.json", "reliability.png", "confusion.png", "mistakes.png"}
    assert {file.name for file in folder.iterdir()} == files
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["accuracy"] == pytest.approx(accuracy)
    assert written["loss"] == pytest.approx(small_run.summary["final_test_loss"][0], rel=1e-5)
    assert (written["count"], written["views"]) == (430, 1)
    assert np.sum(written["confusion"]) == 430
    assert written["runs"][0]["config"]["variant"] == "tiny"


def test_the_files_are_written_before_anything_is_printed(
    command, small_seeds, small_idx_dir, monkeypatch
):
    importlib.import_module("evaluate")

    def fail(*arguments):
        raise RuntimeError("nobody reads this")

    monkeypatch.setattr("evaluate.print_table", fail)
    assert command("evaluate", small_seeds.path, "--idx-dir", small_idx_dir)[0] == 1
    place = small_seeds.path / "evaluation" / "kmnist-ensemble"
    assert {file.name for file in place.iterdir()} >= {"evaluation.json", "confusion.png"}


def test_evaluates_runs_and_their_ensemble(command, small_seeds, small_idx_dir):
    words = (small_seeds.path, "--views", "2", "--idx-dir", small_idx_dir)
    status, out, err = command("evaluate", *words)
    assert (status, err) == (0, "")
    names = re.findall(r"^  (\S+ seed \d) +[\d.]+ +[\d.]+ to", out, re.MULTILINE)
    assert names == ["seeds seed 0", "seeds seed 1"]
    assert "corrected for all lines by Holm's method" in out
    assert out.splitlines()[-1].startswith("ensemble of 2: ")
    place = small_seeds.path / "evaluation" / "kmnist-2views-ensemble"
    written = json.loads((place / "evaluation.json").read_text())
    assert [run["config"]["seed"] for run in written["runs"]] == [0, 1]
    each = small_seeds.path / "evaluation" / "seed1" / "kmnist-2views" / "evaluation.json"
    assert json.loads(each.read_text())["views"] == 2


def test_comparisons_of_many_networks_are_corrected(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import evaluate

    labels = np.zeros(40, int)
    networks = []
    for wrong in (0, 6, 7, 40):  # the number of images, from the first, that each gets wrong
        log_probs = np.log(np.full((40, 10), 0.01) + 0.9 * np.eye(10)[(np.arange(40) < wrong) * 1])
        metrics = evaluation.evaluate(log_probs, labels)
        networks.append(evaluate.Evaluated([], log_probs, metrics))
    # Alone p is 2 / 2^6, 2 / 2^7 and 2 / 2^40: times 1, 2 and 3 of the three.
    assert evaluate.differences(networks, labels) == [
        *[("0", "6", "0.031"), ("0", "7", "0.031"), ("0", "40", "< 0.001")]
    ]
    assert evaluate.differences([networks[0], networks[2]], labels) == [("0", "7", "0.016")]


def read_only(monkeypatch, folder):
    """Refuse to make folders below a folder, as for a user who may not write there."""
    mkdir = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.is_relative_to(folder):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)


@pytest.mark.parametrize("words", [("evaluate",), ("export", "--to", "safetensors")])
def test_a_read_only_run_needs_out(command, small_run, small_idx_dir, tmp_path, monkeypatch, words):
    name, *options = words
    read_only(monkeypatch, small_run.path)
    given = [name, small_run.path, *options, "--idx-dir", small_idx_dir]
    status, _, err = command(*given)
    assert (status, err.count("\n")) == (2, 1)
    assert err.endswith("cannot be written: Permission denied; pass --out FOLDER\n")
    out = tmp_path / "elsewhere" / "deep"
    status, _, err = command(*given, "--out", out)
    assert (status, err) == (0, "")
    assert [path.name for path in out.iterdir()] in (["fashion_mnist"], ["model.safetensors"])


def test_other_images_are_normalised_as_the_training_images(command, small_run, small_idx_dir):
    out = small_run.path
    words = (out, "--dataset", "kmnist", "--idx-dir", small_idx_dir)
    status, printed, _ = command("evaluate", *words)
    assert status == 0
    assert printed.splitlines()[-1].startswith(
        f"{out}: {small_run.summary['final_test_accuracy'][0]:.2f} % of 430 test images of kmnist"
    )
    written = json.loads((out / "evaluation" / "kmnist" / "evaluation.json").read_text())
    assert (written["dataset"], written["runs"][0]["path"]) == ("kmnist", str(out))
    assert written["runs"][0]["config"]["dataset"] == "fashion_mnist"


def test_evaluate_refuses_other_runs(command, small_run, small_seeds, tmp_path):
    different = "the runs were trained on fashion_mnist and kmnist; pass --dataset to compare"
    for words, message in (
        ((small_run.path, small_seeds.path), f"{different} them on one"),
        (
            (small_seeds.path, small_seeds.path),
            f"{small_seeds.path} seed 0 is named twice; name each network once",
        ),
        ((tmp_path / "none",), f"{tmp_path / 'none'} does not exist; expected the folder of a run"),
    ):
        status, out, err = command("evaluate", *words)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {message}")


def test_predicts_pictures_of_all_kinds(command, small_run, folder, monkeypatch, of_digits):
    of_digits("fashion_mnist")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    content = (folder / "1.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    words = (folder, "-", folder / "none.png", folder / "2.png", "--json")
    status, out, err = command("predict", small_run.path, *words)
    assert status == 1
    answers = [json.loads(line) for line in out.splitlines()]
    files = [str(folder / name) for name in ("0.png", "1.png", "2.png")]
    assert [answer["file"] for answer in answers] == [*files, "-", files[2]]
    assert all(set(answer) == {"file", "digit", "probabilities"} for answer in answers)
    predict = make_predict(small_run)
    for answer, file in zip(answers, [*files, files[1], files[2]], strict=True):
        expected = np.exp(predict(pictures.read(Path(file))[None])[0])
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["digit"] == expected.argmax()
    first, second = err.splitlines()
    assert first.startswith(f"error: {folder / 'broken.png'}: it cannot be read: ")
    assert second == f"error: {folder / 'none.png'}: No such file or directory"


def test_predict_prints_the_ensemble(command, small_seeds, folder, of_digits):
    of_digits("kmnist")
    status, out, err = command("predict", small_seeds.path, folder / "0.png")
    assert (status, err) == (0, "")
    digit = pictures.read(folder / "0.png")[None]
    log_probs = [make_predict(run)(digit) for run in small_seeds.split()]
    joint = 100 * np.exp(ensemble(log_probs)[0])
    each = "  ".join(f"{place}: {percent:.1f}" for place, percent in enumerate(joint))
    assert out == f"{folder / '0.png'}: {joint.argmax()}   (%  {each})\n"


@pytest.mark.parametrize("name", ["two\nlines.png", "[bold].png", "\udcff.png", "n" * 300 + ".png"])
def test_predict_accepts_any_file_name(command, small_run, folder, tmp_path, name, of_digits):
    of_digits("fashion_mnist")
    file = tmp_path / name
    with contextlib.suppress(OSError):  # one is too long to exist
        shutil.copy(folder / "0.png", file)
    status, out, err = command("predict", small_run.path, file, folder / "1.png")
    assert status == (0 if len(name) < 256 else 1)
    assert len((out + err).splitlines()) == 2
    assert out.splitlines()[-1].startswith(f"{folder / '1.png'}: ")


def test_predict_refuses_empty_folders_and_devices(command, small_run, tmp_path, of_digits):
    of_digits("fashion_mnist")
    empty = tmp_path / "empty"
    empty.mkdir()
    status, out, err = command("predict", small_run.path, empty, "/dev/null")
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        f"error: {empty}: there is no file in this folder",
        "error: /dev/null: it is neither a file nor a folder",
    ]


def test_predict_skips_hidden_and_system_files(command, small_run, folder, tmp_path, of_digits):
    of_digits("fashion_mnist")
    more = tmp_path / "all" / "more"
    more.mkdir(parents=True)
    shutil.copy(folder / "1.png", more / "1.png")
    for name in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini"):
        (more.parent / name).write_bytes(b"\0\1")
    status, out, err = command("predict", small_run.path, more.parent)
    assert (status, err) == (0, "")
    assert out.startswith(f"{more / '1.png'}: ")
    assert len(out.splitlines()) == 1


def test_predict_reads_several_digits_from_left_to_right(
    command, small_run, folder, tmp_path, of_digits
):
    of_digits("fashion_mnist")
    page = Image.new("L", (440, 200), 255)
    ImageDraw.Draw(page).line([(60, 50), (120, 50), (80, 150)], fill=0, width=14)
    ImageDraw.Draw(page).ellipse([200, 50, 270, 150], outline=0, width=14)
    page.save(tmp_path / "two.png")
    status, out, err = command("predict", small_run.path, tmp_path / "two.png", "--json")
    assert (status, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(answer["place"], answer["count"]) for answer in answers] == [(1, 2), (2, 2)]
    status, out, _ = command("predict", small_run.path, tmp_path / "two.png")
    assert "two.png (digit 2 of 2): " in out.splitlines()[1]


def test_predict_refuses_a_network_of_another_data_set(command, small_run, folder):
    status, out, err = command("predict", small_run.path, folder)
    assert (status, out) == (2, "")
    assert "was trained on fashion_mnist; expected a run of mnist" in err


def test_plots_one_run_or_many(command, small_run, small_seeds, tmp_path):
    assert command("plot", small_run.path) == (0, f"{small_run.path / 'curves.png'}\n", "")
    out = tmp_path / "curves.svg"
    words = (small_run.path, small_seeds.path, "--out", out)
    assert command("plot", *words) == (0, f"{out}\n", "")
    drawn = out.read_text()
    assert f"{small_seeds.path}, test" in drawn
    assert f"{small_run.path}, train" in drawn


def test_plot_names_held_out_images(command, small_run, small_seeds, tmp_path):
    for run in (small_run, small_seeds):
        config = json.loads((run.path / "config.json").read_text())
        config.update(holdout=100)
        (run.path / "config.json").write_text(json.dumps(config))
    (small_seeds.path / "config.json").unlink()  # it is not needed
    out = tmp_path / "curves.svg"
    assert command("plot", small_run.path, small_seeds.path, "--out", out)[0] == 0
    drawn = out.read_text()
    assert f"{small_run.path}, held out" in drawn
    assert f"{small_run.path}, test" not in drawn
    assert f"{small_seeds.path}, test" in drawn


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "does not exist; expected the folder of a run"),
        ("", "has no finished epoch yet; there is nothing to draw"),
        *((rows, "is damaged; --resume writes it anew") for rows in ('{"epoch": 1}', "[1]", "{")),
    ],
)
def test_plot_refuses_missing_or_damaged_rows(command, tmp_path, rows, words):
    if rows is not None:
        (tmp_path / "metrics.jsonl").write_text(rows and f"{rows}\n")
    status, out, err = command("plot", tmp_path)
    assert (status, out) == (2, "")
    assert words in err


def test_plot_refuses_other_formats(command, small_run):
    message = "error: out is curves.gif; expected a name that ends with .png or .svg\n"
    assert command("plot", small_run.path, "--out", "curves.gif") == (2, "", message)
