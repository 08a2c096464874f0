"""The notebook runs from top to bottom, here with a tiny configuration."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

import jaxmnist

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "scripts" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def cell_with(notebook, words):
    (cell,) = [cell for cell in notebook.cells if words in cell.source]
    return cell


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.mark.slow
def test_the_notebook_runs(notebook, small_idx_dir, tmp_path):
    (parameters,) = [
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    ]
    tiny = (
        f"VARIANT, SEEDS, EPOCHS = 'gap', 2, 2\nDATASET, IDX_DIR = 'mnist', {str(small_idx_dir)!r}"
    )
    names = re.compile(r"^([A-Z_]+) =", re.MULTILINE)
    assert set(names.findall(parameters.source)) == {
        *("VARIANT", "SEEDS", "EPOCHS", "DATASET", "LIMIT_TRAIN", "IDX_DIR")
    }
    parameters.source = f"{tiny}\nLIMIT_TRAIN = 300".replace("'mnist'", "'fashion_mnist'")
    (tmp_path / "project").symlink_to(ROOT)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()

    assert "on a cpu runtime" in printed(cell_with(notebook, "def accelerator"))
    assert "Cpu" in printed(cell_with(notebook, "jax.devices()"))
    lines = printed(cell_with(notebook, "jaxmnist.train(")).splitlines()
    done = jaxmnist.load_run(tmp_path / lines[-1].removeprefix("written to "))
    assert [line[:15] for line in sorted(lines[:-1])] == [
        f"seed {seed}, epoch {epoch}" for seed in (0, 1) for epoch in (1, 2)
    ]
    assert len(pictures(cell_with(notebook, "import matplotlib"))) == 1
    table = printed(cell_with(notebook, "import mean, stdev"))
    for accuracy in done.summary["final_test_accuracy"]:
        assert f"{accuracy:.2f}" in table
    assert "7,364 parameters" in table
    digit = cell_with(notebook, "STROKES")
    assert len(pictures(digit)) == 1
    assert re.search(r"the networks read a [0-9]\n", printed(digit))
    (output,) = cell_with(notebook, "make_page").outputs
    frame = output["data"]["text/html"]
    assert "gap seed 0" in html.unescape(frame)
    assert "://" not in frame


@pytest.mark.parametrize("top", ["jaxmnist-main", "."])
def test_a_project_that_was_uploaded_is_found(notebook, tmp_path, top):
    """As a zip of the folder, or of what is in it."""
    package = tmp_path / "files" / top / "jaxmnist"
    package.mkdir(parents=True)
    (package / "steps.py").touch()
    cell = [sys.executable, "-c", cell_with(notebook, "def find_project").source]
    alone = subprocess.run(cell, cwd=tmp_path, capture_output=True, text=True)
    (tmp_path / "colab").mkdir()
    missing = subprocess.run(cell, cwd=tmp_path / "colab", capture_output=True, text=True)
    shutil.make_archive(str(tmp_path / "colab" / "jaxmnist"), "zip", tmp_path / "files")
    found = subprocess.run(cell, cwd=tmp_path / "colab", capture_output=True, text=True)
    assert alone.stdout.startswith("project: ")
    assert "Upload it as jaxmnist.zip" in missing.stderr
    assert found.stdout.startswith(f"project: {tmp_path / 'colab' / 'jaxmnist-project'}")


def test_a_folder_that_may_not_be_read_is_passed_over(notebook, tmp_path):
    """The superuser may read everything: here the system call is replaced."""
    (tmp_path / "locked").mkdir()
    before = (
        "import os, errno, pathlib; stat = os.stat\n"
        "def refuse(path, *a, **k):\n"
        "    if 'locked' + os.sep in os.fspath(path): raise PermissionError(errno.EACCES, 'no')\n"
        "    return stat(path, *a, **k)\n"
        "os.stat = refuse\n"
    )
    cell = before + cell_with(notebook, "def find_project").source
    done = subprocess.run(
        [sys.executable, "-c", cell], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Upload it as jaxmnist.zip" in done.stderr
    assert "PermissionError" not in done.stderr


def test_the_notebook_is_committed_as_it_is_opened(notebook):
    """Without results of somebody's machine, and with the defaults of the real thing."""
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
    source = cell_with(notebook, 'DATASET = "mnist"').source
    assert 'VARIANT = "gap"' in source
    assert "EPOCHS = 15" in source
