"""Accuracy under shifts: the measurement, its file, the comparison, and the command."""

import importlib
import json
import re
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from jaxmnist import ConfigError, RunOptions
from jaxmnist.analysis import report, results, robustness, robustness_report
from jaxmnist.analysis.plots.robustness import accuracy_by_strength
from jaxmnist.analysis.robustness import DIGITS, PLAIN, Digits, Measured
from jaxmnist.analysis.shifts import SHIFTS, shifted
from tests.test_results import finished

pytestmark = pytest.mark.usefixtures("shared_programs")

DOCS = Path(__file__).parent.parent / "docs"
TINY = ("--robustness", "--dataset", "kmnist", "--epochs", "2")


def measured(moved=90.0, plain=99.0, digits=None):
    """A measurement with one accuracy under every shift, and another on the images as they are."""
    return {
        "accuracy": plain,
        "calibration_error": 1.0,
        "shifts": {
            name: [plain if each == shift.neutral else moved for each in shift.strengths]
            for name, shift in SHIFTS.items()
        },
        "moderate_calibration_error": dict.fromkeys(SHIFTS, 5.0),
        DIGITS: digits,
    }


def write(file, accuracies, **config):
    """Write measurements of networks, whose accuracies under every shift are given by seed."""
    for name, by_seed in accuracies.items():
        for seed, moved in enumerate(by_seed):
            robustness.add(file, finished(name, seed, **config), measured(moved))
    return list(robustness.read(file).values())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "robustness.json"


def test_measures_every_strength_of_every_shift():
    # The label of an image is the number of its brightest row; the network sees that.
    labels = np.arange(40) % 10
    images = np.zeros((40, 28, 28), np.uint8)
    images[np.arange(40), 2 * labels + 4] = 255

    def predict(pixels):
        rows = pixels.sum(axis=2)[:, 4:24:2].astype(float)
        probabilities = np.where(rows == rows.max(axis=1, keepdims=True), 0.7, 0.3 / 9)
        return np.log(probabilities)

    found = robustness.measure(predict, images, labels, Digits(images[:30], labels[:30], 40))
    assert {name: len(values) for name, values in found["shifts"].items()} == {
        name: len(shift.strengths) for name, shift in SHIFTS.items()
    }
    assert found["accuracy"] == 100
    # Sure to 70 %, and always right.
    assert found["calibration_error"] == pytest.approx(30)
    for name, shift in SHIFTS.items():
        assert found["shifts"][name][shift.strengths.index(shift.neutral)] == 100
    # Rows that moved up or down by two pixels show another label; rows move so in half the images.
    right = predict(shifted("shift", images, 2)).argmax(axis=1) == labels
    assert found["shifts"]["shift"][2] == pytest.approx(100 * right.mean())
    assert 0.3 < right.mean() < 0.7
    # Ten of the 40 pictures were not found.
    assert found[DIGITS] == 75
    json.dumps(found)


def test_the_file_has_a_line_per_network_and_seed(file):
    for name, seed in (("gap/record", 0), ("gap", 2), ("less_params", 1), ("gap", 0)):
        robustness.add(file, finished(name, seed), measured())
    lines = [line for line in file.read_text().splitlines() if '"shifts"' in line]
    found = [(run["name"], run["seed"]) for run in (json.loads(line.rstrip(",")) for line in lines)]
    assert found == [("less_params", 1), ("gap", 0), ("gap", 2), ("gap/record", 0)]
    networks = robustness.read(file)
    assert list(networks) == ["less_params", "gap", "gap/record"]
    assert networks["gap"].seeds == [0, 2]
    (run,) = networks["less_params"].runs
    assert run.items() >= measured().items()
    assert run.items() >= {"git_commit": "abc", "test_count": 10000}.items()
    assert "params" not in run


def test_a_measurement_is_not_replaced(file):
    gap = finished()
    assert robustness.missing(file, gap.config, [0, 1]) == [0, 1]
    robustness.add(file, gap, measured())
    before = file.read_bytes()
    robustness.add(file, gap, measured(10.0))
    assert file.read_bytes() == before
    assert robustness.missing(file, gap.config, [0, 1]) == [1]
    assert robustness.missing(file, finished("gap/record").config, [0]) == [0]


def test_other_images_and_other_shifts_are_refused(file):
    robustness.add(file, finished(), measured())
    with pytest.raises(
        ConfigError, match="dataset 'kmnist', epochs 3 does not mix with gap, seed 0"
    ):
        robustness.add(file, finished("dropout", dataset="kmnist"), measured())
    text = file.read_text()
    file.write_text(text.replace('"rotation": [0, 10', '"rotation": [0, 11'))
    with pytest.raises(ConfigError, match="it has other shifts than this version; pass another"):
        robustness.read(file)
    file.write_text(text[:-20])
    with pytest.raises(ConfigError, match="is damaged: JSONDecodeError"):
        robustness.read(file)


def test_a_shift_has_one_accuracy_over_its_strengths_beyond_zero():
    shifts = {"scale": [10, 20, 30, 99, 40, 50, 60], "shear": [99, 5, 5, 5, 5, 10]}
    network = Measured("gap", [{"seed": 3, "shifts": shifts, DIGITS: None}])
    assert network.by_seed("scale") == {3: 35}
    assert network.by_seed("shear") == {3: 6}
    assert network.at("scale", 1.2) == {3: 40}
    assert network.by_seed(DIGITS) == {}


def test_steps_are_paired_and_corrected_together(file):
    networks = write(
        file,
        {
            "fc_layer": [90.0, 91, 92, 93, 94, 95, 96],
            "augmentation": [93.0, 94, 95, 96, 97, 98, 99],
            "gap": [93.5, 93.5, 95.5, 95.5, 97.5, 97.5, 99.5],
            "gap/no_dropout": [90.5, 90.5, 92.5, 92.5, 94.5, 94.5, 96.5],
            "gap/record": [93.5, 93.5, 95.5],
        },
    )
    found = robustness.steps(networks, "rotation")
    pairs = [(step.first.name, step.second.name) for step in found]
    # Other recipes are compared with the variant, not with each other.
    assert pairs == [
        ("fc_layer", "augmentation"),
        ("augmentation", "gap"),
        ("gap", "gap/no_dropout"),
        ("gap", "gap/record"),
    ]
    differences = [step.difference.summary.mean for step in found]
    assert differences == pytest.approx([3, 0.5 / 7, -3, 0])
    assert [step.difference.summary.n for step in found] == [7, 7, 7, 3]
    # Two of 2^7 choices of signs as far from 0 as all seeds of one sign: 1/64, by Holm times 4.
    assert [step.p for step in found] == pytest.approx([4 / 64, 1, 4 / 64, 1])


def test_networks_without_a_common_seed_are_refused(file):
    robustness.add(file, finished("augmentation", 0), measured())
    robustness.add(file, finished("gap", 1), measured(digits=96.0))
    networks = list(robustness.read(file).values())
    with pytest.raises(
        robustness.IncompleteError,
        match=r"rotation has no seed in common of augmentation \(0\) and gap \(1\); measure the",
    ):
        robustness.steps(networks, "rotation")


def test_sentences_on_a_shift_and_a_step(file):
    networks = write(
        file,
        {
            "fc_layer": [90.0, 91, 92, 93, 94, 95, 96],
            "augmentation": [93.0, 94, 95, 96, 97, 98, 99],
            "gap": [92.0, 93, 94, 95, 96, 97, 98],
        },
    )
    compared = {metric: robustness.steps(networks, metric) for metric in (PLAIN, *SHIFTS)}
    sentence = partial(robustness_report.shift_sentence, networks, compared)
    assert sentence("rotation") == (
        "Of images rotated by 30 degrees, `augmentation` reads 96.0 %, the most, and `fc_layer` "
        "93.0 %, the fewest. On average over all strengths, the largest gain that is shown is "
        "`fc_layer` → `augmentation` (+3.00 points, in 7 of 7 seeds); the largest loss that is "
        "shown is `augmentation` → `gap` (\N{MINUS SIGN}1.00 points, in 7 of 7 seeds)."
    )
    assert sentence(PLAIN).startswith("Of the test images as they are, `fc_layer` reads 99.0 %")
    assert sentence(PLAIN).endswith(", the fewest. No step is shown to gain or lose.")
    gain, loss = (
        {metric: compared[metric][place] for metric in (PLAIN, "rotation", "blur")}
        for place in (0, 1)
    )
    assert robustness_report.step_sentence(gain) == (
        "`fc_layer` → `augmentation`: +0.00 points on the images as they are, not shown. Shown to "
        "gain: rotation (+3.00), blur (+3.00)."
    )
    assert robustness_report.step_sentence({**loss, "blur": loss[PLAIN]}) == (
        "`augmentation` → `gap`: +0.00 points on the images as they are, not shown. Shown to lose: "
        "rotation (\N{MINUS SIGN}1.00). Not shown to differ: blur."
    )


def test_what_one_seed_or_three_do_not_show_is_not_claimed(file):
    networks = write(file, {"fc_layer": [90.0, 91, 92], "augmentation": [95.0, 96, 97]})
    block = robustness_report.block(networks)
    assert "On average over all strengths, no step is shown to gain or lose." in block
    assert "| rotation | +5.00 |" in block
    assert "the largest" not in block
    one = [network._replace(runs=network.runs[:1]) for network in networks]
    block = robustness_report.block(one)
    assert "shown" not in block
    assert "One seed of each network does not show how far others differ." in block
    assert "| `augmentation` | 1 | 99.0 | 95.0 |" in block


def test_the_tables(file):
    networks = write(
        file, {"fc_layer": [90.0, 91, 92, 93, 94, 95], "gap": [93.0, 94, 95, 96, 97, 98]}
    )
    block = robustness_report.block(networks)
    assert "| test images | `fc_layer` → `gap` |" in block
    assert "the largest gain" in block
    assert "the largest loss" not in block
    assert "| as they are | +0.00 |\n| rotation | **+3.00** |" in block
    assert "the steps of its row (1) by Holm's" in block  # 2 of 2^6 choices of signs, 0.031
    assert "| `gap` | 6 | 99.0 ± 0.0 | 95.5 ± 1.9 |" in block
    header = next(line for line in block.splitlines() if "rotation 30" in line)
    assert header.startswith("| variant | n | as they are | rotation 30 | shift 4 | scale 0.6 |")
    calibration = block[block.index("## Calibration") :]
    assert "| `gap` | 6 | 1.0 ± 0.0 | 5.0 ± 0.0 |" in calibration
    assert "- Commit: abc" in block
    # Digits by other people are there if all networks were measured on them.
    assert "scikit-learn" not in block
    for network in networks:
        network.runs[0][DIGITS] = 96.5
    assert "- Of scikit-learn's digits, `fc_layer` reads 96.5 %" in robustness_report.block(
        networks
    )


def test_the_plot_has_the_mean_and_the_range(file):
    networks = write(file, {"fc_layer": [90.0, 92.0], "gap": [93.0, 98.0]})
    *panels, digits, legend, _ = accuracy_by_strength(networks).axes
    assert [axes.get_title() for axes in panels] == list(SHIFTS)
    for axes, shift in zip(panels, SHIFTS.values(), strict=True):
        _, fc_layer, gap = axes.lines  # after the moderate strength
        np.testing.assert_allclose(gap.get_xdata(), shift.strengths)
        moved = np.array(shift.strengths) != shift.neutral
        np.testing.assert_allclose(gap.get_ydata()[moved], 95.5)
        np.testing.assert_allclose(fc_layer.get_ydata()[moved], 91)
        band = axes.collections[1].get_paths()[0].vertices[:, 1]
        assert {93.0, 98.0, 99.0} == set(band)
    assert [text.get_text() for text in legend.get_legend().get_texts()] == [
        "fc_layer, n = 2",
        "gap, n = 2",
    ]
    assert not any(len(line.get_xdata()) for line in digits.lines)


def test_the_plot_has_room_for_a_tenth_shift(file, monkeypatch):
    monkeypatch.setitem(SHIFTS, "another", SHIFTS["blur"])
    *panels, digits, legend = accuracy_by_strength(write(file, {"gap": [93.0, 98.0]})).axes
    assert [axes.get_title() for axes in panels] == list(SHIFTS)
    assert (digits.get_legend(), legend.get_legend() is None) == (None, False)


@pytest.fixture(scope="module")
def published():
    """The measurements in docs/robustness.json."""
    return list(robustness.read(DOCS / "robustness.json").values())


AGAIN = "it is stale; python scripts/drilldown.py --robustness --report writes it again"


def test_the_document_and_the_plot_are_current(published):
    file = DOCS / "robustness.md"
    assert report.fill(file, robustness_report.block(published)) == file.read_text(), AGAIN
    assert "(figures/robustness.svg)" in file.read_text()
    digest = robustness.digest(DOCS / "robustness.json").encode()
    assert digest in (DOCS / "figures/robustness.svg").read_bytes(), AGAIN


def test_the_measured_networks_are_those_of_the_results(published):
    results_of = results.read(DOCS / "results.json")
    for network in published:
        by_seed = results_of[network.name].by_seed("final_test_accuracy")
        for seed, accuracy in network.by_seed(PLAIN).items():
            # But for the rounding of another machine.
            assert accuracy == pytest.approx(by_seed[seed], abs=0.3)


@pytest.fixture
def script(monkeypatch):
    """scripts/drilldown.py as a module, which trains its seeds one after another."""
    script = importlib.import_module("drilldown")
    monkeypatch.setattr(script, "RunOptions", partial(RunOptions, seed_mapping="loop"))
    return script


@pytest.fixture
def run(script, command, small_idx_dir, tmp_path):
    """Runs the command in this process: status, output, errors."""
    return partial(command, "drilldown", "--out", tmp_path, "--idx-dir", small_idx_dir)


def test_trains_and_measures_what_is_missing(run, tmp_path, file, script, monkeypatch):
    status, printed, errors = run("tiny", *TINY, "--seeds", "1")
    assert (status, errors) == (0, "")
    assert printed.splitlines()[0] == "tiny: 0 of 1 seeds finished"
    assert not (tmp_path / "results.json").exists()
    (first,) = robustness.read(file)["tiny"].runs
    # The compiled prediction agrees with the training's own evaluation of the test images.
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert [first["accuracy"]] == pytest.approx(summary["final_test_accuracy"], abs=1e-3)
    assert (first["test_count"], first[DIGITS]) == (430, None)

    # Networks in the folder of the runs are measured without being trained again.
    file.unlink()
    trained = (tmp_path / "runs/tiny/checkpoints/seed0/8").stat().st_mtime_ns
    printed = run("tiny", *TINY, "--seeds", "2")[1]
    assert re.search(r"training seeds 0, 1 .* continuing at step 8 of 16", printed)
    assert (tmp_path / "runs/tiny/checkpoints/seed0/8").stat().st_mtime_ns == trained
    again, other = robustness.read(file)["tiny"].runs
    assert (again, other["seed"]) == (first, 1)

    monkeypatch.setattr(script, "train_run", None)
    status, printed, _ = run("tiny", *TINY, "--seeds", "2", "--quiet")
    assert (status, printed) == (0, f"2 runs: {tmp_path / 'robustness.md'}\n")
    text = (tmp_path / "robustness.md").read_text()
    assert text.startswith(f"# What the test set does not show\n\n{report.BEGIN}\n\n## Shift by")
    (tiny,) = robustness.read(file).values()
    rotated = fmean(tiny.at("rotation", 30).values())
    assert f"- Of images rotated by 30 degrees, `tiny` reads {rotated:.1f} %.\n" in text
    (plot,) = (tmp_path / "figures").iterdir()
    assert plot.name == "robustness.svg"
    assert robustness.digest(file).encode() in plot.read_bytes()


def test_the_networks_by_default_are_the_small_ones():
    script = importlib.import_module("drilldown")
    names = [config.name for config in script.requested(script.parse(["--robustness"]))]
    assert names == [
        *("less_params", "batch_norm", "dropout", "fc_layer", "augmentation", "gap"),
        "gap/record",
    ]
    names = script.requested(script.parse(["--robustness", "gap/fast"]))
    assert [config.name for config in names] == ["gap/fast"]


def test_other_images_are_refused_before_anything_is_trained(run, file, script, monkeypatch):
    robustness.add(file, finished(epochs=15, accuracies=[99.0] * 15), measured())
    monkeypatch.setattr(script, "train_run", None)
    status, _, errors = run("gap", *TINY, "--seeds", "1")
    assert status == 2
    assert re.search(r"dataset 'kmnist', epochs 2 does not mix with gap, seed 0, with its", errors)
