"""The file of results: what is in it is finished, and nothing else."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxmnist import VARIANTS, ConfigError, Run, TrainConfig
from jaxmnist.analysis import results
from jaxmnist.config import parse_experiment
from jaxmnist.runs.run import Snapshot

ENVIRONMENT = {
    "compile_seconds": 2.5,
    "train_seconds": 9.0,
    "steps": 936,
    "test_count": 10000,
    "cores": 1,
    "device": "cpu, 2 cores, x86_64",
    "git_commit": "abc",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
}


def finished(name="gap", seed=0, accuracies=(99.0, 99.5, 99.4), **config) -> Run:
    """A run that ends with such test accuracies, one an epoch, without having been trained."""
    trained = parse_experiment(name, seed=seed, **{"epochs": len(accuracies), **config})
    rows = [
        {
            "epoch": epoch,
            "train_loss": 0.06,
            "train_accuracy": 98.0 + epoch / 10,
            "test_loss": 0.0212345678,
            "test_accuracy": accuracy,
            "train_seconds": 3.0 + epoch / 10 + seed,
        }
        for epoch, accuracy in enumerate(accuracies)
    ]
    summary = {
        "parameters": 6379786 if name == "skeleton" else 7364,
        "final_test_accuracy": [accuracies[-1]],
        "best_test_accuracy": [max(accuracies)],
        "final_test_loss": [rows[-1]["test_loss"]],
        "final_train_accuracy": [rows[-1]["train_accuracy"]],
        **ENVIRONMENT,
    }
    snapshot = Snapshot(None, None, 0.0, rows, summary)  # type: ignore[arg-type]
    return Run(trained, {seed: snapshot}, {}, summary, Path("run"))


def write_ladder(file, counts=None, **config):
    """Results of all seven networks: of each so many seeds, by default two."""
    for place, variant in enumerate(VARIANTS):
        for seed in range((counts or {}).get(variant, 2)):
            accuracies = (98.0, round(98 + place / 10 + seed * place / 100, 2))
            results.add(file, finished(variant, seed, accuracies, **config), 1.0 + place)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.json"


def changed(file, change):
    """Changes the first run of gap in the file."""
    content = json.loads(file.read_text())
    change(content["variants"]["gap"]["runs"][0])
    file.write_text(json.dumps(content))


def test_a_run_comes_back(file):
    results.add(file, finished(), 1.17)
    (run,) = results.read(file)["variants"]["gap"].pop("runs")
    config = json.loads(TrainConfig("gap", epochs=3).to_json())
    assert run == {
        "seed": 0,
        "final_test_accuracy": 99.4,
        "best_test_accuracy": 99.5,
        "final_test_loss": 0.021235,
        "final_train_accuracy": 98.2,
        **ENVIRONMENT,
        "config": config,
        "curves": {
            "train_loss": [0.06, 0.06, 0.06],
            "train_accuracy": [98.0, 98.1, 98.2],
            "test_loss": [0.021235] * 3,
            "test_accuracy": [99.0, 99.5, 99.4],
            "train_seconds": [3.0, 3.1, 3.2],
        },
    }


def test_a_line_a_run_in_order(file):
    for variant, seed in (("gap", 2), ("less_params", 0), ("gap", 0)):
        results.add(file, finished(variant, seed), 1.17)
    lines = [line for line in file.read_text().splitlines() if '"curves"' in line]
    runs = [json.loads(line.rstrip(",")) for line in lines]
    found = [(run["config"]["variant"], run["seed"]) for run in runs]
    assert found == [("less_params", 0), ("gap", 0), ("gap", 2)]
    head = results.read(file)["variants"]["gap"]
    assert (head["parameters"], head["mflop_per_image"]) == (7364, 1.17)


def test_what_is_finished_stays(file):
    results.add(file, finished(), 1.17)
    before = file.read_bytes()
    results.add(file, finished(accuracies=(1.0, 2.0, 3.0)), 1.17)
    assert file.read_bytes() == before


def test_what_is_missing(file):
    assert results.missing(results.read(file), "gap", (0, 1)) == [0, 1]
    results.add(file, finished(seed=1), 1.17)
    assert results.missing(results.read(file), "gap", range(3)) == [0, 2]
    assert results.missing(results.read(file), "dropout", (0,)) == [0]


def test_many_add_at_once(file):
    with ThreadPoolExecutor(8) as pool:
        runs = [finished(seed=seed) for seed in range(24)]
        list(pool.map(lambda run: results.add(file, run, 1.17), runs))
    assert results.missing(results.read(file), "gap", range(24)) == []


def test_a_ladder(file):
    write_ladder(file, {"skeleton": 1})
    rungs = results.ladder(results.read(file))
    assert [rung.name for rung in rungs] == list(VARIANTS)
    assert [len(rung.runs) for rung in rungs] == [1, 2, 2, 2, 2, 2, 2]
    gap = rungs[-1]
    assert (gap.parameters, gap.mflop_per_image, gap.epochs, gap.dataset) == (7364, 7, 2, "mnist")
    assert gap.by_seed("final_test_accuracy") == pytest.approx({0: 98.6, 1: 98.66})
    assert gap.by_seed("train_test_gap") == pytest.approx({0: -0.5, 1: -0.56})


def test_seconds_are_of_the_place_where_most_runs_were(file):
    for seed, cores, device in ((0, 2, "cpu"), (1, 1, "cpu"), (2, 1, "cpu"), (3, 1, "gpu")):
        run = finished(seed=seed)
        run.summary.update(cores=cores, device=device)
        results.add(file, run, 1.17)
    (rung,) = results.ladder(results.read(file), ["gap"])
    assert (rung.cores, rung.seconds_per_epoch) == (
        1,
        4.6,
    )  # of 4 to 4.2 and 5 to 5.2


def test_published_figures_are_of_the_published_recipe(file):
    write_ladder(file)
    assert {rung.published for rung in results.ladder(results.read(file))} == {None}
    file.unlink()
    for variant in VARIANTS:
        epochs = TrainConfig(variant).epochs
        results.add(file, finished(variant, 0, [99.0] * epochs), 1.0)
    published = [rung.published for rung in results.ladder(results.read(file))]
    assert published[0] == (99.93, 99.28, 99.35, 99.26)
    assert published[-1] == (98.31, 99.42, 99.42, 99.40)
    # All but the first publish their best epoch.
    assert [of.headline == of.best for of in published] == [False, *[True] * 6]


def refused(file, words, variants=VARIANTS):
    with pytest.raises(results.IncompleteError, match=f"^{re.escape(words)}; scripts/drilldown.py"):
        results.ladder(results.read(file), variants)


def test_a_missing_network_or_seed_is_named(file):
    write_ladder(file, {"dropout": 0, "fc_layer": 3, "gap": 1, "skeleton": 0})
    refused(file, "there is no finished run of skeleton, no finished run of dropout")
    refused(
        file,
        "there is no finished seed 2 of batch_norm, no finished seed 1, 2 of gap",
        ["fc_layer", "batch_norm", "gap"],
    )
    assert len(results.ladder(results.read(file), ["less_params", "batch_norm"])) == 2
    refused(file, "there is no finished seed 1 of gap", ["gap", "batch_norm"])


def test_configs_that_do_not_mix_are_refused_before_any_is_trained():
    whole, short = parse_experiment("gap", epochs=15), parse_experiment("gap/fast", epochs=15)
    results.check_together(
        [whole, parse_experiment("skeleton"), parse_experiment("gap/no_dropout")]
    )
    words = r"gap would be \{.*'as in the recipe': True\} and gap/fast \{.*False\}; .*--out each"
    with pytest.raises(ConfigError, match=words):
        results.check_together([whole, short])


def test_what_is_trained_otherwise_has_lines_after_its_network(file):
    names = ("gap/record", "gap_wide/record", "gap_late_pool", "gap/affine", "gap", "gap/fast")
    for name in names:
        results.add(file, finished(name, accuracies=[99.0] * parse_experiment(name).epochs), 1.0)
    found = results.read(file)
    assert list(found["variants"]) == [
        *("gap", "gap/affine", "gap/fast", "gap/record", "gap_late_pool", "gap_wide/record")
    ]
    assert [rung.name for rung in results.other_recipes(found)] == ["gap/fast", "gap/record"]
    assert results.rungs_of(found, ["gap/fast"])[0].published is None


def test_by_name_each_comes_with_the_seeds_that_it_has(file):
    write_ladder(file, {"gap": 1})
    found = results.read(file)
    assert [rung.seeds for rung in results.rungs_of(found, ["gap", "dropout"])] == [[0], [0, 1]]
    with pytest.raises(results.IncompleteError, match=r"^there is no finished run of gap/fast;"):
        results.rungs_of(found, ["gap", "gap/fast"])


def test_skeleton_may_have_fewer_seeds_but_no_others(file):
    write_ladder(file, {"skeleton": 1})
    assert len(results.ladder(results.read(file))) == 7
    content = json.loads(file.read_text())
    run = content["variants"]["skeleton"]["runs"][0]
    run["seed"] = run["config"]["seed"] = 1
    file.write_text(json.dumps(content))
    refused(file, "there is no finished seed 0 of skeleton")


def test_any_seeds_will_do_if_all_have_them(file):
    for variant in VARIANTS:
        for seed in (3, 2**32 - 1):
            results.add(file, finished(variant, seed), 1.0)
    assert [rung.seeds for rung in results.ladder(results.read(file))] == [[3, 2**32 - 1]] * 7


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        ({"learning_rate": 0.5}, "learning_rate is 0.015, not 0.5 as in the new one"),
        (
            {"dropout": 0.1, "batch_size": 64},
            "batch_size is 128, not 64, dropout is 0.05, not 0.1 as",
        ),
        (
            {"name": "gap/fast", "holdout": 100, "accuracies": [99.0] * 6},
            "holdout is None, not 100, as in the recipe is False, not True as",
        ),
        ({"dataset": "kmnist"}, "dataset is 'mnist', not 'kmnist' as in the new one"),
        ({"accuracies": (99.0,)}, "epochs is 3, not 1 as in the new one"),
        ({"name": "dropout", "limit_train": 600}, "limit_train is None, not 600 as in"),
        (
            {"name": "dropout", "accuracies": [99.0] * 15},
            "as in the recipe is False, not True",
        ),
    ],
)
def test_configs_do_not_mix(file, other, differing):
    results.add(file, finished(), 1.17)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=rf"the finished run of gap, seed 0, {differing}.*--out"):
        results.add(file, finished(**{"seed": 1, **other}), 1.17)
    assert file.read_bytes() == before


def test_a_mixed_file_is_refused_by_name(file):
    write_ladder(file)
    changed(file, lambda run: run["config"].update(dropout=0.1))
    words = r"of gap, seed 1, dropout is 0\.05, not 0\.1 as in that of gap, seed 0; such runs"
    with pytest.raises(ConfigError, match=words):
        results.ladder(results.read(file))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run["curves"]["test_loss"].pop(), "it is not finished: test_loss has 1 of 2"),
        (
            lambda run: run.update(final_test_accuracy=9),
            "final_test_accuracy is 9, but by its ",
        ),
        (
            lambda run: run.update(best_test_accuracy=98.0),
            "best_test_accuracy is 98.0, but by ",
        ),
        (lambda run: run.update(final_test_loss=9), "final_test_loss is 9, but by its curve 0.0"),
        (lambda run: run.update(final_train_accuracy=9), "final_train_accuracy is 9, but by its "),
        (lambda run: run["config"].update(epochs=0), "epochs is 0; expected a whole number"),
        (lambda run: run["config"].update(seed=7), "it has the config of gap, seed 7"),
        (lambda run: run.pop("git_commit"), "it has .*; expected .*git_commit"),
    ],
)
def test_a_run_that_is_not_whole_is_refused_by_name(file, change, words):
    write_ladder(file)
    changed(file, change)
    with pytest.raises(ConfigError, match=rf"results\.json: the run of gap, seed 0: {words}"):
        results.read(file)


def test_a_seed_that_is_there_twice_is_refused(file):
    write_ladder(file)
    content = json.loads(file.read_text())
    content["variants"]["gap"]["runs"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="gap has a seed more than once: 0, 1, 0, 1"):
        results.read(file)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', "{" * 9999, '{"format": 1, "vari'])
def test_a_damaged_file_is_refused(file, content):
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"results\.json is damaged: .*; take back an older one"):
        results.read(file)


def test_another_format_is_refused(file):
    file.write_text('{"format": 2, "variants": {}}')
    with pytest.raises(ConfigError, match="is of format 2, but this version of jaxmnist reads"):
        results.read(file)


def test_the_digest_is_that_of_the_file(file):
    write_ladder(file)
    assert results.digest(results.read(file)) == hashlib.sha256(file.read_bytes()).hexdigest()
