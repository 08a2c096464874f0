"""What is said of results: worked by hand, and that what is published is not stale."""

import re
from pathlib import Path

import pytest

from jaxmnist import VARIANTS, ConfigError, TrainConfig, findings, results
from jaxmnist.results import PUBLISHED
from tests.test_results import finished, write_ladder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
AGAIN = "it is stale; python scripts/drilldown.py --report writes it anew"


def ladder(tmp_path, finals, seeds=3):
    """The ladder of the original's recipe whose final test accuracies are given, a list each."""
    file = tmp_path / "results.json"
    for variant in VARIANTS:
        epochs = TrainConfig(variant).epochs
        for seed, final in enumerate(finals.get(variant, [99.0] * seeds)):
            accuracies = [*[90.0] * (epochs - 2), final + 0.05, final]
            results.add(file, finished(variant, seed, accuracies), 1.25)
    return results.ladder(results.read(file))


def cells(block, start):
    """The cells of the first line of a table that starts so."""
    line = next(line for line in block.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def compared(rungs, *pairs):
    by_name = {rung.variant: rung for rung in rungs}
    return findings.compare([(by_name[one], by_name[other]) for one, other in pairs])


def test_a_gain_and_a_loss_in_words(tmp_path):
    rungs = ladder(tmp_path, {"gap": [99.5, 99.52, 99.54]})
    gain, loss = compared(rungs, ("dropout", "gap"), ("gap", "skeleton"))
    # The differences are 0.5, 0.52, 0.54: t is 0.52/0.02*sqrt(3) = 45, p 0.0005, Holm's twice that.
    assert findings.sentence(gain) == (
        "`gap` gained 0.52 points on `dropout`: 95 % interval +0.47 to +0.57, 3 of 3 seeds, "
        "p < 0.001 after correction for 2 comparisons."
    )
    assert findings.sentence(loss).startswith(
        "`skeleton` lost 0.52 points on `gap`: 95 % interval \N{MINUS SIGN}0.57 to "
        "\N{MINUS SIGN}0.47, 3 of 3 seeds, "
    )


def test_what_cannot_be_told_apart_in_words(tmp_path):
    (comparison,) = compared(ladder(tmp_path, {"gap": [98.9, 99.0, 99.4]}), ("dropout", "gap"))
    assert findings.sentence(comparison) == (
        "`gap` and `dropout` cannot be told apart with 3 seeds: +0.10 points, 95 % interval "
        "\N{MINUS SIGN}0.56 to +0.76, higher in 1 of 3 seeds, p = 0.580."
    )


def test_one_seed_in_words(tmp_path):
    (comparison,) = compared(ladder(tmp_path, {"skeleton": [99.2]}), ("skeleton", "gap"))
    assert findings.sentence(comparison) == (
        "`gap` less `skeleton`: \N{MINUS SIGN}0.20 points in the one seed that both have: of one "
        "seed nobody can say how far others would differ."
    )


def test_networks_without_a_common_seed_are_refused(tmp_path):
    rungs = ladder(tmp_path, {})
    other = rungs[1]._replace(runs=[{**run, "seed": run["seed"] + 7} for run in rungs[1].runs])
    words = "skeleton has the seeds 0 to 2 and less_params 7 to 9; expected one in common"
    with pytest.raises(ConfigError, match=words):
        findings.compare([(rungs[0], other)])


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ([99.5, 99.51, 99.52], "holds up"),  # the original's gap is 0.03 above its augmentation
        ([98.5, 98.51, 98.52], "**does not hold up**: the order is the other way round"),
        ([98.9, 99.0, 99.4], "**not shown**: within the spread of seeds"),
        ([99.5], "not judged"),
    ],
)
def test_a_verdict(tmp_path, finals, expected):
    (comparison,) = compared(ladder(tmp_path, {"gap": finals}), ("augmentation", "gap"))
    assert findings.verdict(comparison) == expected


def test_a_trial_is_not_held_against_the_original(tmp_path):
    file = tmp_path / "results.json"
    write_ladder(file)
    rungs = results.ladder(results.read(file))
    assert {findings.verdict(one) for one in findings.compare(findings.neighbours(rungs))} == {
        "not judged"
    }
    assert cells(findings.results_block(rungs), "`gap`")[-2:] == ["-", "-"]


def test_the_tables(tmp_path):
    rungs = ladder(tmp_path, {"gap": [99.3, 99.4, 99.5], "less_params": [98.5], "dropout": [98.4]})
    block = findings.results_block(rungs)
    assert cells(block, "`gap`") == [
        "`gap`",
        "3",
        "**99.40 ± 0.10**",
        "99.15 to 99.65",
        "99.30 to 99.50",
        "0.0212 ± 0.0000",
        "99.45 ± 0.10",
        "99.35 to 99.55",
        "99.42",
        "yes",
    ]
    assert cells(block, "`less_params`")[-2:] == ["98.23", "**below**"]
    assert cells(block, "`dropout`")[-2:] == ["98.52", "**above**"]
    # Gains 0.3, 0.4 and 0.5; of nine pairs of runs the later network wins all.
    step = cells(block, "`augmentation` → `gap`")
    assert step[1:5] == ["3", "+0.40", "+0.15 to +0.65", "+4.0"]
    assert step[6] == "100%"
    assert step[-1] == "199"  # 0.02 is a fifth of 0.1: see the tables in test_stats.py
    claim = block[block.index("## What the original claims") :]
    assert cells(claim, "`augmentation` → `gap`")[1] == "+0.03"
    costs = block[block.index("## What it costs") :]
    assert cells(costs, "`gap`") == ["`gap`", "7,364", "1.25", "3.0", "1", "15"]
    assert "- Device: cpu, 2 cores, x86_64\n" in block


def test_the_table_of_the_readme(tmp_path):
    row = cells(findings.readme_block(ladder(tmp_path, {"gap": [99.3, 99.4, 99.5]})), "`gap`")
    assert row == [
        "`gap`",
        "width where it pays, one-cycle schedule",
        "7,364",
        "1.25",
        "3.0",
        "3",
        "**99.40 ± 0.10**",
        "99.45 ± 0.10",
        "99.42",
    ]


def test_a_block_is_filled_in_and_nothing_else_changes():
    text = f"before\n{findings.BEGIN}\nstale\n{findings.END}\nafter\n"
    filled = f"before\n{findings.BEGIN}\n\nnew\n\n{findings.END}\nafter\n"
    assert findings.fill(text, "new") == filled
    assert findings.fill(filled, "new") == filled
    with pytest.raises(ConfigError, match=r"there is no <!-- results: .* put both lines back"):
        findings.fill(text.replace(findings.END, ""), "new")


@pytest.fixture
def published():
    """The seven networks of docs/results.json."""
    found = results.read(DOCS / "results.json")
    if set(found["variants"]) != set(VARIANTS):
        pytest.skip("docs/results.json has no finished run of some network yet")
    return results.ladder(found)


def test_what_is_published_is_not_stale(published):
    for file, block in (
        (ROOT / "README.md", findings.readme_block(published)),
        (DOCS / "results.md", findings.results_block(published)),
    ):
        text = file.read_text()
        assert findings.fill(text, block) == text, f"{AGAIN}: {file}"


def test_the_figures_are_of_these_results_and_all_are_shown(published):
    digest = results.digest(DOCS / "results.json")
    report = (DOCS / "results.md").read_text()
    figures = sorted((DOCS / "figures").iterdir())
    assert len(figures) == 12
    for figure in figures:
        assert digest.encode() in figure.read_bytes(), (
            f"python scripts/drilldown.py --report: {figure}"
        )
    shown = set(re.findall(r"\(figures/([a-z-]+)\.svg\)", report))
    assert shown == {figure.stem for figure in figures}


def test_the_published_results_are_of_the_original_recipe(published):
    assert [rung.published for rung in published] == [PUBLISHED[variant] for variant in VARIANTS]
    assert [rung.parameters for rung in published] == [6379786, 4572, 4652, 4708, 6124, 6124, 7364]
