"""The file of results holds the finished runs, and nothing else."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxmnist import VARIANTS, ConfigError, Run, TrainConfig, create_model
from jaxmnist.analysis import results
from jaxmnist.config import parse_experiment
from jaxmnist.models.description import mflop_per_image
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


def write_seven(file, counts=None, **config):
    """Write results of all seven networks, by default of two seeds each."""
    for place, variant in enumerate(VARIANTS):
        for seed in range((counts or {}).get(variant, 2)):
            accuracies = (98.0, round(98 + place / 10 + seed * place / 100, 2))
            results.add(file, finished(variant, seed, accuracies, **config))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.json"


def change(file, function, name="gap"):
    """Change the first run of a network in the file."""
    content = json.loads(file.read_text())
    function(content["variants"][name]["runs"][0])
    file.write_text(json.dumps(content))


def test_reads_what_was_added(file):
    results.add(file, finished())
    (run,) = results.read(file)["gap"].runs
    config = TrainConfig("gap", epochs=3).to_dict()
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


def test_each_run_has_a_line_in_order(file):
    for variant, seed in (("gap", 2), ("less_params", 0), ("gap", 0)):
        results.add(file, finished(variant, seed))
    lines = [line for line in file.read_text().splitlines() if '"curves"' in line]
    runs = [json.loads(line.rstrip(",")) for line in lines]
    found = [(run["config"]["variant"], run["seed"]) for run in runs]
    assert found == [("less_params", 0), ("gap", 0), ("gap", 2)]
    gap = results.read(file)["gap"]
    assert (gap.parameters, gap.mflop_per_image) == (7364, mflop_per_image(create_model("gap")))


def test_a_finished_run_is_not_replaced(file):
    results.add(file, finished())
    before = file.read_bytes()
    results.add(file, finished(accuracies=(1.0, 2.0, 3.0)))
    assert file.read_bytes() == before


def test_missing_seeds(file):
    gap, dropout = TrainConfig("gap"), TrainConfig("dropout")
    assert results.missing(file, gap, (0, 1)) == [0, 1]
    results.add(file, finished(seed=1))
    assert results.missing(file, gap, range(3)) == [0, 2]
    assert results.missing(file, dropout, (0,)) == [0]


def test_many_add_at_once(file):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: results.add(file, finished(seed=seed)), range(24)))
    assert results.missing(file, TrainConfig("gap"), range(24)) == []


def test_seven_variants(file):
    write_seven(file, {"skeleton": 1})
    networks = results.seven_variants(results.read(file))
    assert [network.name for network in networks] == list(VARIANTS)
    assert [len(network.runs) for network in networks] == [1, 2, 2, 2, 2, 2, 2]
    gap = networks[-1]
    assert gap.config == TrainConfig("gap", epochs=2)
    assert gap.by_seed("final_test_accuracy") == pytest.approx({0: 98.6, 1: 98.66})
    assert gap.by_seed("train_test_gap") == pytest.approx({0: -0.5, 1: -0.56})
    assert gap.summary("train_test_gap").mean == pytest.approx(-0.53)


def test_seconds_are_those_on_the_most_frequent_machine(file):
    for seed, cores, device in ((0, 2, "cpu"), (1, 1, "cpu"), (2, 1, "cpu"), (3, 1, "gpu")):
        run = finished(seed=seed)
        run.summary.update(cores=cores, device=device)
        results.add(file, run)
    gap = results.read(file)["gap"]
    assert gap.place == ("cpu", 1)
    assert gap.seconds_per_epoch == 4.6  # of 4 to 4.2 and 5 to 5.2


def test_published_accuracies_are_those_of_the_published_recipe(file):
    write_seven(file)
    assert {network.published for network in results.read(file).values()} == {None}
    file.unlink()
    for variant in VARIANTS:
        results.add(file, finished(variant, 0, [99.0] * TrainConfig(variant).epochs))
    published = [network.published for network in results.read(file).values()]
    assert published[0] == (99.93, 99.28, 99.35, 99.26)
    assert published[-1] == (98.31, 99.42, 99.42, 99.40)
    # All but the first publish their best epoch.
    assert [of.headline == of.best for of in published] == [False, *[True] * 6]


def refuses(file, words):
    with pytest.raises(results.IncompleteError, match=f"^{re.escape(words)}; scripts/drilldown.py"):
        results.seven_variants(results.read(file))


def test_names_missing_networks(file):
    write_seven(file, {"dropout": 0, "skeleton": 0})
    refuses(file, "there is no finished run of skeleton, no finished run of dropout")


def test_names_missing_seeds(file):
    write_seven(file, {"fc_layer": 3, "gap": 1, **dict.fromkeys(VARIANTS[:3], 3)})
    seeds = "seed 2 of dropout, no finished seed 2 of augmentation, no finished seed 1, 2 of gap"
    refuses(file, f"there is no finished {seeds}")


def test_skeleton_may_have_only_the_first_seeds(file):
    write_seven(file, {"skeleton": 1})
    assert len(results.seven_variants(results.read(file))) == 7

    def set_seed(run):
        run["seed"] = run["config"]["seed"] = 1

    change(file, set_seed, "skeleton")
    refuses(file, "there is no finished seed 0 of skeleton")


def test_other_recipes_and_changes_follow_their_network(file):
    names = ("gap/record", "gap_wide/record", "gap_late_pool", "gap/affine", "gap", "gap/fast")
    for name in names:
        results.add(file, finished(name, accuracies=[99.0] * parse_experiment(name).epochs))
    found = results.read(file)
    assert list(found) == [
        *("gap", "gap/affine", "gap/fast", "gap/record", "gap_late_pool", "gap_wide/record")
    ]
    assert [network.name for network in results.other_recipes(found)] == ["gap/fast", "gap/record"]
    assert found["gap/fast"].published is None


def test_selects_networks_with_the_seeds_that_each_has(file):
    write_seven(file, {"gap": 1})
    found = results.read(file)
    assert [network.seeds for network in results.select(found, ["gap", "dropout"])] == [[0], [0, 1]]
    with pytest.raises(results.IncompleteError, match=r"^there is no finished run of gap/fast;"):
        results.select(found, ["gap", "gap/fast"])


def test_all_may_have_other_seeds(file):
    for variant in VARIANTS:
        for seed in (3, 2**32 - 1):
            results.add(file, finished(variant, seed))
    networks = results.seven_variants(results.read(file))
    assert [network.seeds for network in networks] == [[3, 2**32 - 1]] * 7


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"learning_rate": 0.5}, "gap with epochs 3, learning_rate 0.5"),
        ({"dropout": 0.1, "batch_size": 64}, "gap with epochs 3, batch_size 64, dropout 0.1"),
        ({"name": "gap/fast", "accuracies": [99.0] * 6}, "gap/fast with its recipe"),
        ({"dataset": "kmnist"}, "gap with dataset 'kmnist', epochs 3"),
        ({"accuracies": (99.0,)}, "gap with epochs 1"),
        ({"name": "dropout", "limit_train": 600}, "dropout with epochs 3, limit_train 600"),
        ({"name": "dropout", "accuracies": [99.0] * 15}, "dropout with its recipe"),
    ],
)
def test_different_configs_do_not_mix(file, other, words):
    results.add(file, finished())
    before = file.read_bytes()
    words = rf"{words} does not mix with gap, seed 0, with epochs 3: pass another --out"
    with pytest.raises(ConfigError, match=words):
        results.add(file, finished(**{"seed": 1, **other}))
    assert file.read_bytes() == before


def test_configs_to_train_do_not_mix():
    whole, short = parse_experiment("gap", epochs=15), parse_experiment("gap/fast", epochs=15)
    results.check_mix({}, [whole, parse_experiment("skeleton"), parse_experiment("gap/no_dropout")])
    words = "^gap/fast with epochs 15 does not mix with gap, seed 0, with its recipe: pass "
    with pytest.raises(ConfigError, match=words):
        results.check_mix({}, [whole, short])


def test_a_mixed_file_is_refused(file):
    write_seven(file)
    change(file, lambda run: run["config"].update(dropout=0.1))
    with pytest.raises(ConfigError, match=r"results\.json: gap with epochs 2, dropout 0\.1 does"):
        results.read(file)


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run["curves"]["test_loss"].pop(),
        lambda run: run.update(final_test_accuracy=9),
        lambda run: run.update(best_test_accuracy=98.0),
        lambda run: run.update(final_test_loss=9),
        lambda run: run.update(final_train_accuracy=9),
        lambda run: run["config"].update(epochs=3),
        lambda run: run["config"].update(seed=7),
        lambda run: run.pop("git_commit"),
    ],
)
def test_an_incomplete_run_is_refused(file, damage):
    write_seven(file)
    change(file, damage)
    with pytest.raises(
        ConfigError, match=r"results\.json: the run of gap, seed 0, is not finished"
    ):
        results.read(file)


def test_a_repeated_seed_is_refused(file):
    write_seven(file)
    content = json.loads(file.read_text())
    content["variants"]["gap"]["runs"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="gap has a seed more than once: 0, 1, 0, 1"):
        results.read(file)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', "{" * 9999, '{"format": 1, "vari'])
def test_a_damaged_file_is_refused(file, content):
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"results\.json is damaged: .*; restore an older one"):
        results.read(file)


def test_another_format_is_refused(file):
    file.write_text('{"format": 2, "variants": {}}')
    with pytest.raises(ConfigError, match="is of format 2, but this version of jaxmnist reads"):
        results.read(file)


def test_the_digest_is_the_one_of_the_file(file):
    write_seven(file)
    assert results.digest(results.read(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_arithmetic_of_an_image():
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
    assert mflop_per_image(create_model("gap")) == pytest.approx(2 * gap / 1e6)
    assert mflop_per_image(create_model("skeleton")) == 317.961216
