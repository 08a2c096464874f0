"""The drill-down: what is finished is never trained again, and what is missing is."""

import importlib
import json
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

import jaxmnist
from jaxmnist import VARIANTS, results
from tests.test_results import finished, write_ladder

SCRIPTS = Path(__file__).parent.parent / "scripts"
# Two epochs of four steps of a network that compiles fast.
TINY = ("--dataset", "kmnist", "--epochs", "2", "--variants", "less_params")


@pytest.fixture(scope="module")
def script():
    """scripts/drilldown.py as a module."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("drilldown")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def out(tmp_path):
    """Where everything goes."""
    return tmp_path / "results"


@pytest.fixture
def run(script, capsys, small_idx_dir, out, monkeypatch):
    """Runs the command in this process, its seeds one after another: status, output, errors."""
    monkeypatch.setattr(script, "train_seeds", partial(jaxmnist.train_seeds, seed_mapping="loop"))
    monkeypatch.setattr(script, "remember_compiled", lambda: None)

    def run(*words):
        status = script.main([*words, "--out", str(out), "--idx-dir", str(small_idx_dir)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def seeds_in(out, variant="less_params"):
    return [run["seed"] for run in results.read(out / "results.json")["variants"][variant]["runs"]]


def others(out):
    """Finished runs of the six other networks, which nobody has to train."""
    out.mkdir()
    for variant in set(VARIANTS) - {"less_params"}:
        results.add(out / "results.json", finished(variant, 0, [90.0], dataset="kmnist"), 1.0)


def test_trains_what_is_missing_and_writes_the_report(run, out, script, monkeypatch):
    others(out)
    status, said, err = run(*TINY, "--seeds", "2")
    assert (status, err) == (0, "")
    assert said.splitlines()[0] == "less_params: 0 of 2 seeds finished"
    assert said.splitlines()[-1] == f"8 runs: {out / 'results.md'}"
    assert seeds_in(out) == [0, 1]
    (first, _) = results.read(out / "results.json")["variants"]["less_params"]["runs"]
    summary = json.loads((out / "runs/less_params/seed0/summary.json").read_text())
    assert [first["final_test_accuracy"]] == pytest.approx(summary["final_test_accuracy"])
    report = (out / "results.md").read_text()
    assert report.startswith("# Results\n")
    assert re.search(r"^\| `less_params` \| 2 \| \*\*\d", report, re.MULTILINE)
    assert len(list((out / "figures").iterdir())) == 12

    # Whoever has the file and nothing else goes on from it.
    shutil.rmtree(out / "runs")
    status, said, _ = run(*TINY, "--seeds", "3")
    assert status == 0
    assert "training seeds 2 (loop)" in said
    assert seeds_in(out) == [0, 1, 2]
    monkeypatch.setattr(script, "train_seeds", None)
    assert run(*TINY, "--seeds", "3", "--quiet") == (0, f"9 runs: {out / 'results.md'}\n", "")
    assert run("--report") == (0, f"9 runs: {out / 'results.md'}\n", "")


def test_a_stopped_one_keeps_what_is_finished_and_goes_on(run, out, script, monkeypatch):
    others(out)

    def is_one_finished(signals):
        return "less_params" in results.read(out / "results.json")["variants"]

    with monkeypatch.context() as stopping:
        stopping.setattr(script.Signals, "should_stop", is_one_finished)
        status, _, err = run(*TINY, "--seeds", "3")
    assert (status, err) == (128 + signal.SIGINT, "stopped; the same command goes on\n")
    assert seeds_in(out) == [0]
    # Its run folders stay, and are taken up, with more seeds than before, too.
    assert run(*TINY, "--seeds", "4")[0] == 0
    assert seeds_in(out) == [0, 1, 2, 3]


def test_a_seed_that_fails_is_named_and_the_others_are_kept(run, out, script, monkeypatch):
    others(out)
    with monkeypatch.context() as failing:
        check = jaxmnist.training.check_finite

        def fail_seed_1(which, loss, step, config):
            if config.seed == 1:
                raise jaxmnist.training.TrainingError("the loss became nan")
            check(which, loss, step, config)

        failing.setattr(jaxmnist.training, "check_finite", fail_seed_1)
        status, _, err = run(*TINY, "--seeds", "2", "--quiet")
    assert status == 1
    assert err == "error: less_params, seed 1: the loss became nan\n"
    assert seeds_in(out) == [0]


def test_what_is_missing_is_refused_by_name(run, out):
    status, _, err = run(*TINY, "--seeds", "4,1", "--quiet")
    assert status == 2
    absent = ", ".join(variant for variant in VARIANTS if variant != "less_params")
    assert err == (
        f"error: there are no finished runs of {absent}; no seed 0, 2, 3 of less_params (0 to 4): "
        "train what is missing with scripts/drilldown.py\n"
    )
    assert seeds_in(out) == [1, 4]


def test_another_config_is_refused_before_anything_is_trained(run, out, script, monkeypatch):
    others(out)
    monkeypatch.setattr(script, "train_seeds", None)
    status, _, err = run("--seeds", "1", "--epochs", "1", "--limit-train", "300")
    assert status == 2
    assert re.match(
        r"error: of the finished run of \w+, seed 0, dataset is 'kmnist' and not 'mnist', "
        r"limit_train is None and not 300; results of several configs do not mix",
        err,
    )


def test_networks_are_compared_and_nothing_is_trained(run, out, script, monkeypatch):
    out.mkdir()
    write_ladder(out / "results.json")
    monkeypatch.setattr(script, "train_seeds", None)
    status, said, err = run("--compare", "dropout", "gap", "--compare", "skeleton", "gap")
    assert (status, err) == (0, "")
    first, second = said.splitlines()
    assert first.startswith("`gap` gained 0.30 points on `dropout`: 95 % interval +0.30 to +0.30")
    assert second.startswith("`gap` gained 0.60 points on `skeleton`:")
    assert run("--compare", "dropuot", "gap")[::2] == (
        2,
        f"error: compare is 'dropuot'; expected one of {', '.join(VARIANTS)}. Did you mean "
        "dropout?\n",
    )
    assert not (out / "results.md").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--variants", "gap,dropuot"), r"variants is 'dropuot'; .* Did you mean dropout\?"),
        (("--seeds", "some"), "seeds is 'some'; expected how many, as 8, or which, as 3,7,11"),
    ],
)
def test_what_cannot_be_read_is_refused(run, words, error):
    status, _, err = run(*words)
    assert status == 2
    assert re.fullmatch(rf"error: {error}\n", err)


def test_the_arithmetic_of_an_image(script):
    gap = (
        26 * 26 * 9 * 1 * 4
        + 24 * 24 * 9 * 4 * 8
        + 12 * 12 * 8 * 10
        + 10 * 10 * 9 * 10 * 16
        + 8 * 8 * 9 * 16 * 16
        + 6 * 6 * 9 * 16 * 18
        + 18 * 16
        + 16 * 10
    )
    assert script.mflop_per_image("gap") == pytest.approx(2 * gap / 1e6)
    assert script.mflop_per_image("skeleton") == 317.961216
