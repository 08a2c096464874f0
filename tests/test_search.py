"""The search among changes of a recipe, on a few small images."""

import dataclasses
import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from jaxmnist import TrainConfig, data
from jaxmnist.config import by_name
from tests.conftest import SCRIPTS

pytestmark = pytest.mark.usefixtures("shared_programs")

RECIPES = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture
def search(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    import search

    monkeypatch.setattr(data.idx, "SHA256", {})
    monkeypatch.setattr(search, "HOLDOUT", 100)
    monkeypatch.setattr(search, "RUNS", tmp_path / "runs")
    return search


@pytest.fixture
def words(small_idx_dir, tmp_path):
    few = ["gap/fast", "gap/fast/rate_0.2", "--epochs", "2", "--seeds", "1", "--folds", "2"]
    return [*few, "--idx-dir", small_idx_dir, "--out", tmp_path / "search.jsonl"]


def test_every_name_is_trained_on_every_fold_once(search, command, words, tmp_path, monkeypatch):
    status, said, errors = command("search", *words)
    assert (status, errors) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    found = [(line["recipe"], line["holdout"], line["fold"], line["seed"]) for line in lines]
    assert found == [
        ("fast", 100, 0, 100),
        ("fast", 100, 1, 100),
        ("fast/rate_0.2", 100, 0, 100),
        ("fast/rate_0.2", 100, 1, 100),
    ]
    one, other, *_ = lines
    assert one["final_test_loss"] != other["final_test_loss"]  # of other images
    (row,) = re.findall(r"│ gap/fast/rate_0.2 +│ +2 │ +2 +│ +([\d.]+) +│ +([-+][\d.]+) +│", said)
    loss, base = (
        sum(line["final_test_loss"] for line in two) / 2 for two in (lines[2:], lines[:2])
    )
    assert [float(cell) for cell in row] == pytest.approx([loss, loss - base], abs=1e-4)

    # What is in the file is finished, and a line more makes a run more.
    trained = []
    monkeypatch.setattr(search, "train_seeds", lambda config, seeds, **_: trained.append(seeds))
    assert command("search", *words)[:2] == (0, said.split("seeds [100]\n")[-1])
    assert trained == []


def test_runs_of_other_lengths_are_not_compared(search, tmp_path):
    file = tmp_path / "search.jsonl"
    for epochs, loss in ((1, 0.3), (2, 0.2)):
        config = TrainConfig(recipe="fast", epochs=epochs, holdout=100, seed=epochs)
        line = {**json.loads(config.to_json()), "final_test_loss": loss}
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
    two = TrainConfig(recipe="fast", epochs=2, holdout=100, fold=1, seed=5)
    assert search.by_run(file, two) == {(0, 2): 0.2}


def test_a_torn_line_is_passed_over_and_the_next_begins_on_its_own(search, tmp_path):
    file = tmp_path / "search.jsonl"
    figures = {**{name: [0.1] for name in search.FIGURES}, "train_seconds": 1.0}
    runs = [
        Namespace(config=TrainConfig(recipe="fast", holdout=100, seed=seed), summary=figures)
        for seed in (1, 2, 3)
    ]
    search.add(file, runs[0])
    whole = file.read_text()
    # A process was killed; one of an earlier version appended to what was left; one was killed.
    file.write_text(whole + whole[:40] + whole + "[1]\n" + whole[:50])
    search.add(file, runs[1])
    search.add(file, runs[2])
    assert [line["seed"] for line in search.read(file)] == [1, 2, 3]


def test_a_seed_that_fails_is_named_and_the_others_are_compared(
    search, command, words, tmp_path, monkeypatch
):
    trained = []

    def train_seeds(config, seeds, report, **_):
        """Fails in the second fold."""
        trained.append((config.fold, tuple(seeds)))
        if config.fold == 0:
            figures = {**{name: [0.1] for name in search.FIGURES}, "train_seconds": 1.0}
            done = dataclasses.replace(config, seed=seeds[0])
            search.add(tmp_path / "search.jsonl", Namespace(config=done, summary=figures))
        return Namespace(failures={} if config.fold == 0 else {seeds[0]: "no space left"})

    monkeypatch.setattr(search, "train_seeds", train_seeds)
    status, said, errors = command("search", *words)
    assert (status, trained) == (1, [(0, (100,)), (1, (100,))] * 2)
    assert errors == (
        "error: gap/fast, fold 1, seed 100: no space left\n"
        "error: gap/fast/rate_0.2, fold 1, seed 100: no space left\n"
    )
    assert re.search(r"│ gap/fast/rate_0.2 │ +2 │ 1 │ 0.1000 │ +\+0.0000 │ +- │", said)


def test_the_seeds_of_a_fold_count_once(search):
    first = {(0, 100): 0.020, (0, 101): 0.024, (1, 100): 0.022, (1, 101): 0.026, (2, 100): 0.021}
    other = {(0, 100): 0.025, (0, 101): 0.031, (1, 100): 0.023, (1, 101): 0.025, (2, 100): 0.022}
    # Differences of 5 and 7 thousandths in the first fold, 1 and -1 in the second, 1 in the third.
    p = ttest_rel([0.006, 0.0, 0.001], [0, 0, 0]).pvalue
    assert search.against(first, other) == ("+0.0023", f"{p:.3f}")
    # Seeds more of the same folds are no more evidence: two folds are two differences.
    twice = {(fold, seed + 7): loss for (fold, seed), loss in first.items()}
    more = {(fold, seed + 7): loss for (fold, seed), loss in other.items()}
    assert search.against({**first, **twice}, {**other, **more}) == ("+0.0023", f"{p:.3f}")
    assert search.against(first, {(0, 100): 0.025, (0, 101): 0.031}) == ("+0.0060", "-")


def test_the_table_says_what_its_p_rests_on(search, command):
    words = ("gap/record", "gap/record/decay_1e-3", "--epochs", "6", "--report")
    search.HOLDOUT = 5000
    status, said, _ = command("search", *words)
    assert status == 0
    assert re.search(r"│ +6 │ 2 │ 0.0315 │ +\+0.0072 │ 0.294 │", said)
    legend = " ".join(said.split("┘")[1].split())
    assert "on 5,000 held-out training images a fold. n: folds, " in legend
    assert "2 folds show nothing (sign-flip test: p is at least 0.5)" in legend


def published_lines():
    """The lines of docs/recipes.md on what was tried: epochs, name, difference and p."""
    epochs, found = None, []
    for line in RECIPES.read_text().splitlines():
        if command := re.search(r"scripts/search.py .*gap/record", line):
            epochs = int((re.search(r"--epochs (\d+)", line[command.start() :]) or [30, 30])[1])
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if epochs and line.startswith("| `") and cells[-2]:
            name = cells[0].strip("`")
            name = f"{name}/record" if name.startswith("gap_") else f"gap/record/{name}"
            found.append((epochs, name, cells[-3].replace("\N{MINUS SIGN}", "-"), cells[-2]))
    return found


def test_what_is_published_of_the_search_is_not_stale(search):
    lines = published_lines()
    assert len(lines) == 18 + 3 + 2
    for epochs, name, difference, p in lines:
        first, losses = (
            search.by_run(search.OUT, by_name(each, epochs=epochs, holdout=5000))
            for each in ("gap/record", name)
        )
        found, found_p = search.against(first, losses)
        assert (found, f"{float(found_p):.2f}") == (difference, p), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gap/fast", "--report"], "search.jsonl has no finished run of gap/fast, which is to be "),
        (["gap/fast", "gap", "gap/fast"], "gap/fast is there twice; expected each name once"),
        (["gap/fast", "--folds", "0"], "folds is 0; expected a whole number of at least 1"),
        (["gap/fast", "--seeds", "0"], "seeds is empty; expected at least one"),
    ],
)
def test_what_cannot_be_compared_is_refused(search, command, tmp_path, monkeypatch, words, message):
    monkeypatch.setattr(search, "train_seeds", None)  # nothing is trained
    status, _, errors = command("search", *words, "--out", tmp_path / "search.jsonl")
    assert status == 2
    assert message in errors


def test_names_that_do_not_exist(search, command):
    status, _, errors = command("search", "gap/fast", "gap/fast/no_decay/rate_0.22")
    assert status == 2
    assert "rate_0.22'; expected one of" in errors
    assert errors.endswith("Did you mean rate_0.2?\n")
