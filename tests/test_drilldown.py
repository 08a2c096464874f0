"""The drill-down trains the missing runs, and no finished one again."""

import importlib
import json
import re
import shutil
import signal
from functools import partial
from types import SimpleNamespace

import pytest

import jaxmnist
from jaxmnist import VARIANTS
from jaxmnist.analysis import report, results
from jaxmnist.recipes import ABLATIONS, RECIPES
from jaxmnist.runs import loop, run_folder
from jaxmnist.runs.setup import SeedDone
from tests.conftest import SCRIPTS
from tests.test_results import finished, write_seven

# Two epochs of four steps of a network that compiles fast.
TINY = ("less_params", "--dataset", "kmnist", "--epochs", "2")


@pytest.fixture
def script(monkeypatch):
    """scripts/drilldown.py as a module, which trains its seeds one after another."""
    monkeypatch.syspath_prepend(SCRIPTS)
    script = importlib.import_module("drilldown")
    options = partial(jaxmnist.RunOptions, seed_mapping="loop")
    monkeypatch.setattr(script, "RunOptions", options)
    return script


@pytest.fixture
def out(tmp_path):
    """Folder of the results."""
    return tmp_path / "results"


@pytest.fixture
def run(script, command, small_idx_dir, out):
    """Runs the command in this process: status, output, errors."""
    return partial(command, "drilldown", "--out", out, "--idx-dir", small_idx_dir)


def read(out):
    return results.read(out / "results.json")


def seeds_in(out):
    return read(out)["less_params"].seeds


def others(out, seeds=1):
    """Write finished runs of the six other networks."""
    out.mkdir()
    for variant in set(VARIANTS) - {"less_params"}:
        for seed in range(seeds):
            run = finished(variant, seed, [89.0, 90.0 + seed], dataset="kmnist")
            results.add(out / "results.json", run)


def test_trains_what_is_missing_and_writes_the_report(run, out, script, monkeypatch):
    others(out, seeds=2)
    status, printed, err = run(*TINY, "--seeds", "1")
    assert (status, err) == (0, "")
    assert printed.splitlines()[0] == "less_params: 0 of 1 seeds finished"
    assert printed.splitlines()[-1] == (
        "no report yet: there is no finished seed 1 of less_params; scripts/drilldown.py trains "
        "what is missing"
    )
    assert seeds_in(out) == [0]
    (first,) = read(out)["less_params"].runs
    summary = json.loads((out / "runs/less_params/summary.json").read_text())
    assert [first["final_test_accuracy"]] == pytest.approx(summary["final_test_accuracy"])

    # The file alone is enough to continue.
    shutil.rmtree(out / "runs")
    status, printed, _ = run(*TINY, "--seeds", "2")
    assert status == 0
    assert "training 8 steps over 600 images into " in printed
    assert printed.splitlines()[-1] == f"14 runs: {out / 'results.md'}"
    assert seeds_in(out) == [0, 1]
    report = (out / "results.md").read_text()
    assert report.startswith("# Results\n")
    assert re.search(r"^\| `less_params` \| 2 \| \*\*\d", report, re.MULTILINE)
    assert len(list((out / "figures").iterdir())) == 6

    # Nothing is left to train, and the report is written from the file alone.
    monkeypatch.setattr(script, "train_run", None)
    monkeypatch.setattr(script.drilldown, "draw_all", lambda *_: None)
    (out / "results.md").write_text(report.replace("99", "11"))
    assert run("--report") == (0, f"14 runs: {out / 'results.md'}\n", "")
    assert (out / "results.md").read_text() == report
    assert run(*TINY, "--seeds", "2", "--quiet") == (0, f"14 runs: {out / 'results.md'}\n", "")


def test_the_readme_is_written_with_docs(run, out, script, monkeypatch, tmp_path):
    others(out)
    monkeypatch.setattr(script.drilldown, "draw_all", lambda *_: None)
    assert run(*TINY, "--seeds", "1", "--quiet")[0] == 0
    monkeypatch.setattr(script, "DOCS", out)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("no place for results")
    status, _, err = run(*TINY, "--seeds", "2")
    assert status == 2
    assert err.startswith(f"error: {readme} has no <!-- results: ")
    assert seeds_in(out) == [0]  # refused before anything is trained
    for file in (readme, out / script.TOUR):
        file.write_text(f"# Top\n{script.report.BEGIN}\n{script.report.END}\n")
    assert run("--report")[0] == 0
    assert "| `conv7` | 1x1x10 | 1x1 | 160 |" in (out / script.TOUR).read_text()
    assert re.search(
        r"^\| `less_params` \| narrow layers .* \| 1 \| \*\*\d", readme.read_text(), re.M
    )


def test_a_stopped_command_resumes(run, out, script, monkeypatch):
    others(out)
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0)

    def is_one_finished(signals):
        return "less_params" in read(out)

    with monkeypatch.context() as stopping:
        stopping.setattr(script.TrainingCommand, "should_stop", is_one_finished)
        status, _, err = run(*TINY, "--seeds", "2")
    assert status == 128 + signal.SIGINT
    assert err == "stopped; to continue, run the same command again\n"
    assert seeds_in(out) == [0]
    # A begun seed is resumed even if it is not requested; the folder of a finished one is removed.
    status, printed, _ = run(*TINY, "--seeds", "4,7")
    assert status == 0
    assert re.search(r"training seeds 1, 4, 7 .* continuing at step 4 of 24", printed)
    assert not (out / "runs/less_params/checkpoints/seed0").exists()
    assert seeds_in(out) == [0, 1, 4, 7]


def test_a_command_that_was_killed_before_its_first_checkpoint_resumes(run, out):
    """It had made the seed's folder, as when the disk is full."""
    others(out)
    folder = out / "runs" / "less_params"
    (folder / "checkpoints" / "seed0").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    status, _, errors = run(*TINY, "--seeds", "1")
    assert (status, errors) == (0, "")
    assert seeds_in(out) == [0]


def test_stops_between_two_networks(run, out, script, monkeypatch):
    others(out)
    monkeypatch.setattr(script, "train_run", lambda *_: SimpleNamespace(failures={}))
    monkeypatch.setattr(script.TrainingCommand, "should_stop", lambda signals: True)
    assert run(*TINY, "--seeds", "1")[0] == 128 + signal.SIGINT


def test_a_seed_that_fails_is_named_and_the_others_are_kept(run, out, script, monkeypatch):
    others(out)
    check = loop.check_finite

    def fail_seed_0(which, loss, step, seed, setup):
        if seed == 0:
            raise loop.TrainingError("the loss became nan")
        check(which, loss, step, seed, setup)

    monkeypatch.setattr(loop, "check_finite", fail_seed_0)
    status, printed, err = run(*TINY, "--seeds", "2", "--quiet")
    assert (status, printed) == (1, "")
    assert err == "error: less_params, seed 0: the loss became nan\n"
    assert seeds_in(out) == [1]


def test_the_others_are_trained_if_one_cannot(run, out, script, monkeypatch):
    (out / "runs/gap").mkdir(parents=True)
    words = ("--dataset", "kmnist", "--epochs", "2", "--seeds", "1", "--quiet")
    with run_folder.locked(out / "runs/gap"):
        status, _, err = run("less_params", "gap", *words)
    assert status == 1
    assert err.startswith("error: gap: another process is training into ")
    assert seeds_in(out) == [0]


def test_a_report_names_missing_networks(run, out):
    others(out)
    assert run("--report") == (
        2,
        "",
        "error: there is no finished run of less_params; scripts/drilldown.py trains what is "
        "missing\n",
    )


def test_another_config_is_refused_before_anything_is_trained(run, out, script, monkeypatch):
    others(out)
    monkeypatch.setattr(script, "train_run", None)
    status, _, err = run("--seeds", "1", "--epochs", "1", "--limit-train", "300")
    assert status == 2
    assert re.fullmatch(
        r"error: skeleton with epochs 1, limit_train 300 does not mix with \w+, seed 0, with "
        r"dataset 'kmnist', epochs 2: pass another --out\n",
        err,
    )


def test_compares_without_training(run, out, script, monkeypatch):
    out.mkdir()
    write_seven(out / "results.json")
    monkeypatch.setattr(script, "train_run", None)
    status, printed, err = run("--compare", "dropout", "gap", "--compare", "skeleton", "gap")
    assert (status, err) == (0, "")
    first, second, _, header, _, *rows, _, legend = printed.splitlines()
    # Differences 0.3 and 0.33, and 0.6 and 0.66.
    assert first.startswith(
        "`gap` is not shown to differ from `dropout` with 2 seeds: +0.32 points, "
    )
    assert second.startswith(
        "`gap` is not shown to differ from `skeleton` with 2 seeds: +0.63 points"
    )
    assert header.startswith("| step | n | points | 95 % interval | d | p |")
    assert [row.split(" | ")[0] for row in rows] == ["| `dropout` → `gap`", "| `skeleton` → `gap`"]
    assert legend == report.STEPS_LEGEND
    explained = (
        "Points",
        "Intervals",
        " p ",
        " d ",
        "*Order*",
        "*Train minus test*",
        "last column",
    )
    assert all(word in legend for word in explained)
    known = ", ".join(RECIPES["notebook"])
    assert run("--compare", "dropuot", "gap")[::2] == (
        2,
        f"error: variant is 'dropuot'; expected one of {known}. Did you mean dropout?\n",
    )
    assert (
        run("--compare", "gap", "gap")[2] == "error: compare has gap twice; expected two networks\n"
    )
    assert not (out / "results.md").exists()


def test_ablation_trains_what_is_missing(run, out, script, monkeypatch):
    names = ("gap", "gap_without_norm", "gap/no_dropout", "gap_late_pool")
    monkeypatch.setitem(ABLATIONS, "gap", names)
    out.mkdir()
    for name in names:
        for seed in range(9 if name != "gap/no_dropout" else 8):
            final = {"gap": 99.4, "gap_late_pool": 99.1 + seed / 100}.get(name, 99.0)
            run_ = finished(accuracies=[98.0, final + seed / 100], name=name, seed=seed)
            results.add(out / "results.json", run_)
    asked = []

    def train_runs(config, out, seeds, options, callbacks):
        asked.append((config.name, list(seeds), out.name))
        for seed in seeds:
            done = finished(accuracies=[98.0, 99.0], name=config.name, seed=seed)
            callbacks.report(SeedDone(done))
        return SimpleNamespace(failures={})

    monkeypatch.setattr(script, "train_run", train_runs)
    words = ("--ablate", "gap", "--epochs", "2", "--seeds", "9", "--quiet")
    assert run(*words) == (0, f"36 runs: {out / 'ablation.md'}\n", "")
    assert asked == [("gap/no_dropout", [8], "gap-no_dropout")]
    report = (out / "ablation.md").read_text()
    assert report.startswith("# Ablation\n")
    # Late pooling differs by -0.3, -0.29 ... -0.22: a loss, and less of one than all others.
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith("| ")][2:6]
    assert rows[0][:5] == ["| nothing", "`gap`", "99.44 ± 0.03", "-", "9"]
    assert sorted(row[1] for row in rows) == sorted(f"`{name}`" for name in names)
    assert rows[-1][:6] == [
        *("| the average one layer later", "`gap_late_pool`"),
        *("99.18 ± 0.05", "-", "9", "\N{MINUS SIGN}0.26"),
    ]
    assert "- `gap_late_pool` is 0.26 points worse than `gap`, in 9 of 9 seeds, " in report
    # The file is enough for the report, and its networks can be compared.
    monkeypatch.setattr(script, "train_run", None)
    (out / "ablation.md").unlink()
    assert run("--ablate", "gap", "--report")[0] == 0
    assert (out / "ablation.md").read_text() == report
    for name in ("gap", "gap/notebook"):
        printed = run("--compare", name, "gap_late_pool")[1]
        assert printed.startswith("`gap_late_pool` is 0.26 points worse than `gap`, ")


def test_the_report_has_other_recipes(run, out, script, monkeypatch):
    out.mkdir()
    monkeypatch.setattr(script.drilldown, "draw_all", lambda *_: None)
    write_seven(out / "results.json", dataset="kmnist")
    for seed, final in enumerate((99.5, 99.4)):
        fast = finished("gap/fast", seed, [99.0, final], dataset="kmnist")
        results.add(out / "results.json", fast)
        # It may have fewer seeds than the seven.
        assert run("--report")[0] == 0
    assert run("--report") == (0, f"16 runs: {out / 'results.md'}\n", "")
    assert "| `gap/fast` | 2 | **99.45 ± 0.07** |" in (out / "results.md").read_text()
    networks = results.select(read(out), ["gap", "gap/fast"])
    gap, fast = report.readme_block(networks).splitlines()[2:]
    assert gap.startswith("| `gap` | more width in late layers, ")
    assert fast.startswith("| `gap --recipe fast` | a recipe of our own, few epochs | 7,364 |")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("gap", "dropuot"), r"variant is 'dropuot'; .* Did you mean dropout\?"),
        (
            ("gap/recrod",),
            r"recipe or change of it is 'recrod'; .* Did you mean record\?",
        ),
        (("--seeds", "0"), "seeds is empty; expected at least one"),
        (("--seeds", "1,1"), "seeds has 1 more than once; each seed is one run"),
        (
            ("--seeds", "some"),
            "seeds is 'some'; expected a count, such as 8, or a list, such as 3,7,11",
        ),
    ],
)
def test_refuses_invalid_names_and_seeds(run, words, error):
    status, _, err = run(*words)
    assert status == 2
    assert re.fullmatch(rf"error: {error}\n", err)
