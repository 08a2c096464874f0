"""Recipes compared on images held out of the training set, on a few small images."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from jaxmnist import RunOptions, TrainConfig, data
from jaxmnist.analysis import held_out
from jaxmnist.config import parse_experiment
from tests.test_results import finished

pytestmark = pytest.mark.usefixtures("shared_programs")

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def run(command, monkeypatch, small_idx_dir, tmp_path):
    """Runs scripts/drilldown.py, its seeds one after another: status, output, errors."""
    import drilldown

    monkeypatch.setattr(data.idx, "SHA256", {})
    monkeypatch.setattr(drilldown, "RunOptions", partial(RunOptions, seed_mapping="loop"))
    return partial(command, "drilldown", "--idx-dir", small_idx_dir, "--out", tmp_path)


WORDS = ("tiny/record", "tiny/record/rate_0.2", "--holdout", "100", "--epochs", "2", "--seeds", "1")


def test_trains_every_name_on_every_fold_once(run, tmp_path):
    status, printed, errors = run(*WORDS)
    assert (status, errors) == (0, "")
    lines = held_out.read(tmp_path / "search.jsonl")
    found = [(line["recipe"], line["holdout"], line["fold"], line["seed"]) for line in lines]
    assert found == [
        ("record", 100, 0, 100),
        ("record", 100, 1, 100),
        ("record/rate_0.2", 100, 0, 100),
        ("record/rate_0.2", 100, 1, 100),
    ]
    one, other, *_ = lines
    assert one["final_test_loss"] != other["final_test_loss"]  # of other images
    (row,) = re.findall(r"│ tiny/record/rate_0.2 +│ +2 │ 2 │ ([\d.]+) │ +([-+][\d.]+) │", printed)
    loss, base = (
        sum(line["final_test_loss"] for line in two) / 2 for two in (lines[2:], lines[:2])
    )
    assert [float(cell) for cell in row] == pytest.approx([loss, loss - base], abs=1e-4)
    # The file is enough, and nothing is trained again.
    again = run(*WORDS)[1]
    assert again[again.index("┏") :] == printed[printed.index("┏") :]
    assert held_out.read(tmp_path / "search.jsonl") == lines


def test_a_seed_that_fails_is_named_and_the_others_are_compared(run, monkeypatch):
    import drilldown

    train = drilldown.train_run

    def failing_in_the_second_fold(config, *arguments):
        if config.fold == 1:
            raise OSError(28, "no space left")
        return train(config, *arguments)

    monkeypatch.setattr(drilldown, "train_run", failing_in_the_second_fold)
    status, printed, errors = run(*WORDS)
    assert status == 1
    assert errors == (
        "error: tiny/record, fold 1, seed 100: [Errno 28] no space left\n"
        "error: tiny/record/rate_0.2, fold 1, seed 100: [Errno 28] no space left\n"
    )
    assert re.search(r"│ tiny/record/rate_0.2 +│ +2 │ 1 │ [\d.]+ │ +[-+][\d.]+ │ +- │", printed)


def test_lines_of_earlier_versions_are_completed_from_the_recipe(tmp_path):
    """They had the twelve fields of format 1; runs of another length are other runs."""
    file = tmp_path / "search.jsonl"
    fields = [field.name for field in dataclasses.fields(TrainConfig)][:12]
    for epochs, loss in ((1, 0.3), (2, 0.2)):
        config = TrainConfig(recipe="fast", epochs=epochs, holdout=100, seed=epochs)
        line = {name: getattr(config, name) for name in fields} | {"final_test_loss": loss}
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
    two = TrainConfig(recipe="fast", epochs=2, holdout=100, fold=1, seed=5)
    assert held_out.by_run(file, two) == {(0, 2): 0.2}


def test_unfinished_lines_are_skipped(tmp_path):
    file = tmp_path / "search.jsonl"
    held_out.add(file, finished(seed=1))
    whole = file.read_text()
    # A process was killed; one of an earlier version appended to what was left; one was killed.
    file.write_text(whole + whole[:40] + whole + "[1]\n" + whole[:50])
    held_out.add(file, finished(seed=2))
    held_out.add(file, finished(seed=3))
    assert [line["seed"] for line in held_out.read(file)] == [1, 2, 3]


def test_the_seeds_of_a_fold_count_once():
    first = {(0, 100): 0.020, (0, 101): 0.024, (1, 100): 0.022, (1, 101): 0.026, (2, 100): 0.021}
    other = {(0, 100): 0.025, (0, 101): 0.031, (1, 100): 0.023, (1, 101): 0.025, (2, 100): 0.022}
    # Differences of 5 and 7 thousandths in the first fold, 1 and -1 in the second, 1 in the third.
    expected = pytest.approx((0.007 / 3, ttest_rel([0.006, 0.0, 0.001], [0, 0, 0]).pvalue))
    assert held_out.compare(first, other) == expected
    # More seeds of the same folds are no more evidence: two folds are two differences.
    twice = {(fold, seed + 7): loss for (fold, seed), loss in first.items()}
    more = {(fold, seed + 7): loss for (fold, seed), loss in other.items()}
    assert held_out.compare({**first, **twice}, {**other, **more}) == expected
    one_fold = held_out.compare(first, {(0, 100): 0.025, (0, 101): 0.031})
    assert one_fold == (pytest.approx(0.006), None)


def test_the_legend_names_the_assumptions(command):
    words = ("gap/record", "gap/record/decay_1e-3", "--epochs", "6", "--report")
    status, printed, _ = command("drilldown", "--holdout", "5000", *words)
    assert status == 0
    assert re.search(r"│ +6 │ 2 │ 0.0315 │ +\+0.0072 │ 0.294 │", printed)
    legend = " ".join(printed.split("┘")[1].split())
    assert "on 5,000 held-out training images a fold. n: folds, " in legend
    assert "2 folds show nothing (sign-flip test: p is at least 0.5)" in legend


def published_lines():
    """The lines of docs/recipes.md on what was tried: epochs, name, difference and p."""
    epochs, found = None, []
    for line in (DOCS / "recipes.md").read_text().splitlines():
        if command := re.search(r"drilldown.py --holdout 5000 .*gap/record", line):
            epochs = int((re.search(r"--epochs (\d+)", line[command.start() :]) or [30, 30])[1])
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if epochs and line.startswith("| `") and cells[-2]:
            name = cells[0].strip("`")
            name = f"{name}/record" if name.startswith("gap_") else f"gap/record/{name}"
            found.append((epochs, name, cells[-3].replace("\N{MINUS SIGN}", "-"), cells[-2]))
    return found


def test_the_published_search_is_current():
    lines = published_lines()
    assert len(lines) == 18 + 3 + 2
    for epochs, name, difference, p in lines:
        first, losses = (
            held_out.by_run(
                DOCS / "search.jsonl", parse_experiment(each, epochs=epochs, holdout=5000)
            )
            for each in ("gap/record", name)
        )
        found, found_p = held_out.compare(first, losses)
        assert (f"{found:+.4f}", f"{found_p:.2f}") == (difference, p), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gap/fast", "--report"], "search.jsonl has no finished run of gap/fast, which is to be "),
        (["gap/fast", "gap", "gap/fast"], "gap/fast is listed twice; expected each name once"),
        (["gap/fast", "--folds", "0"], "folds is 0; expected a whole number of at least 1"),
        (["gap/fast", "--seeds", "0"], "seeds is empty; expected at least one"),
        (["gap/fast", "gap/fast/no_decay/rate_0.22"], "rate_0.22'; expected one of"),
    ],
)
def test_refuses_invalid_comparisons(run, words, message):
    status, _, errors = run("--holdout", "5000", *words)
    assert status == 2
    assert message in errors
