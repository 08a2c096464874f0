"""The report of results worked by hand, and the committed documents."""

import itertools
import re
from pathlib import Path

import pytest

from jaxmnist import RECIPES, VARIANTS, ConfigError, TrainConfig
from jaxmnist.analysis import report, results, stats
from jaxmnist.analysis.results import PUBLISHED
from jaxmnist.recipes import ABLATIONS, IDEAS
from tests.test_results import finished, write_seven

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
AGAIN = "it is stale; python scripts/drilldown.py --report (--ablate gap) writes it again"


def seven(tmp_path, finals, seeds=3):
    """The seven networks with the original's recipe and these final test accuracies by seed."""
    file = tmp_path / "results.json"
    for variant in VARIANTS:
        epochs = TrainConfig(variant).epochs
        for seed, final in enumerate(finals.get(variant, [99.0] * seeds)):
            accuracies = [*[90.0] * (epochs - 2), final + 0.05, final]
            results.add(file, finished(variant, seed, accuracies))
    return results.seven_variants(results.read(file))


def row(block, start, heading=""):
    """The first row of a table that starts so, after a heading; minus signs as hyphens."""
    rest = block[block.index(heading) :].replace("\N{MINUS SIGN}", "-")
    return next(line for line in rest.splitlines() if line.startswith(f"| {start} |"))


def compared(networks, *pairs):
    by_name = {network.name: network for network in networks}
    return report.compare([(by_name[one], by_name[other]) for one, other in pairs])


def test_sentences_on_a_gain_and_a_loss(tmp_path):
    networks = seven(tmp_path, {"gap": [99.5, 99.51, 99.52, 99.53, 99.54, 99.55, 99.56]}, seeds=7)
    gain, loss = compared(networks, ("dropout", "gap"), ("gap", "skeleton"))
    # Two of the 2^7 choices of signs: p is 1/64, Holm's twice that.
    assert report.sentence(gain) == (
        "`gap` is 0.53 points better than `dropout`, in 7 of 7 seeds, 95 % interval +0.51 to "
        "+0.55, p = 0.031 after correction for 2 comparisons (0.016 alone)."
    )
    assert report.sentence(loss) == (
        "`skeleton` is 0.53 points worse than `gap`, in 7 of 7 seeds, 95 % interval "
        "\N{MINUS SIGN}0.55 to \N{MINUS SIGN}0.51, p = 0.031 after correction for 2 "
        "comparisons (0.016 alone)."
    )


def test_sentence_on_no_shown_difference(tmp_path):
    (comparison,) = compared(seven(tmp_path, {"gap": [98.9, 99.0, 99.4]}), ("dropout", "gap"))
    assert report.sentence(comparison) == (
        "`gap` is not shown to differ from `dropout` with 3 seeds: +0.10 points, higher in 1 of 3 "
        "seeds, 95 % interval \N{MINUS SIGN}0.56 to +0.76, p = 1.000; it takes at least 6 seeds to "
        "show any."
    )


def test_enough_seeds_need_no_remark(tmp_path):
    networks = seven(tmp_path, {"gap": [98.9, 99.0, 99.4] * 2}, seeds=6)
    (comparison,) = compared(networks, ("dropout", "gap"))
    assert report.sentence(comparison).endswith("p = 0.500.")


def test_comparisons_are_corrected_together(tmp_path):
    # Differences 0.1, 0.2 and 0.3: two of the 2^3 choices of signs; Holm: times 2.
    finals = {"gap": [99.1, 99.2, 99.3], "dropout": [98.9, 98.8, 98.7], "skeleton": [99.2]}
    pairs = (("augmentation", "gap"), ("augmentation", "dropout"), ("skeleton", "augmentation"))
    comparisons = compared(seven(tmp_path, finals), *pairs)
    assert [c.p for c in comparisons] == [0.5, 0.5, None]
    # One seed is not tested: it is no comparison to correct for.
    assert {c.tested for c in comparisons} == {2}
    assert report.sentence(comparisons[0]).endswith(
        "p = 0.500 after correction for 2 comparisons (0.250 alone); it takes at least 7 seeds to "
        "show any."
    )
    assert " | 0.500 | " in row(report.steps_table(comparisons), "`augmentation` → `gap`")


def test_sentence_on_a_single_seed(tmp_path):
    networks = seven(tmp_path, {"skeleton": [99.2], "gap": [99.5, 99.5, 99.5]})
    one, same = compared(networks, ("skeleton", "gap"), ("dropout", "gap"))
    assert report.sentence(one) == (
        "`gap` minus `skeleton`: +0.30 points, n = 1; not judged, because one seed does not show "
        "the spread over seeds."
    )
    # Differences that are all the same are tested as any others are.
    assert "+0.50 points, higher in 3 of 3 seeds, " in report.sentence(same)
    assert same.p == 0.25


def test_networks_without_a_common_seed_are_refused(tmp_path):
    networks = seven(tmp_path, {})
    other = networks[1]._replace(
        runs=[{**run, "seed": run["seed"] + 7} for run in networks[1].runs]
    )
    words = "skeleton has the seeds 0 to 2 and less_params 7 to 9; expected one in common"
    with pytest.raises(ConfigError, match=words):
        report.compare([(networks[0], other)])


@pytest.mark.parametrize(
    ("finals", "expected"),
    [
        ([99.5, 99.51, 99.52] * 2, "holds up"),  # the original's is 0.03 above its augmentation
        ([98.5, 98.51, 98.52] * 2, "**does not hold up**: the other way round"),
        ([98.9, 99.0, 99.4] * 2, "**not shown** with 6 seeds"),
        ([99.5, 99.51, 99.52], "**not shown** with 3 seeds"),
        ([99.5], "not judged"),
    ],
)
def test_a_verdict(tmp_path, finals, expected):
    networks = seven(tmp_path, {"gap": finals}, seeds=len(finals))
    (comparison,) = compared(networks, ("augmentation", "gap"))
    assert report.verdict(comparison) == expected


def test_a_trial_is_not_compared_with_the_original(tmp_path):
    file = tmp_path / "results.json"
    write_seven(file)
    networks = results.seven_variants(results.read(file))
    verdicts = {report.verdict(one) for one in report.compare(list(itertools.pairwise(networks)))}
    assert verdicts == {"not judged"}
    block = report.results_block(networks)
    assert row(block, "`gap`").endswith("| - | - |")
    assert (
        row(block, "`gap`", "## Training accuracy")
        == "| `gap` | 98.10 ± 0.00 | - | -0.53 ± 0.04 | - |"
    )


def test_accuracies(tmp_path):
    finals = {"gap": [99.3, 99.4, 99.5], "less_params": [98.5] * 3, "dropout": [98.4] * 3}
    block = report.results_block(seven(tmp_path, {**finals, "skeleton": [99.0]}))
    assert row(block, "`gap`") == (
        "| `gap` | 3 | **99.40 ± 0.10** | 99.15 to 99.65 | 99.30 to 99.50 | 0 of 3 "
        "| 0.0212 ± 0.0000 | 99.45 ± 0.10 | 99.35 to 99.55 | 99.42 | yes |"
    )
    assert row(block, "`less_params`").endswith("| 98.23 | **below** |")
    assert row(block, "`dropout`").endswith("| 98.52 | **above** |")
    assert row(block, "`skeleton`").startswith("| `skeleton` | 1 | **99.00** | - |")
    assert row(block, "`skeleton`").endswith("| 99.28 | - |")  # one run has no range


def test_training_accuracy(tmp_path):
    block = report.results_block(seven(tmp_path, {"gap": [99.3, 99.4, 99.5]}))
    # Train accuracies of these runs end at 99.4; the original's gap has 98.31 and 99.40.
    expected = "| `gap` | 99.40 ± 0.00 | 98.31 | +0.00 ± 0.10 | -1.09 |"
    assert row(block, "`gap`", "## Training accuracy") == expected


def test_steps_and_claims(tmp_path):
    networks = seven(tmp_path, {"gap": [99.3, 99.4, 99.5] * 3, "skeleton": [99.0]}, seeds=9)
    block = report.results_block(networks)
    # Nine gains of 0.3 to 0.5: p is 2^-8, corrected for the five steps that have several seeds. Of
    # their standard deviation, sqrt(6 * 0.01 / 8), 0.02 is 0.231.
    step = "`augmentation` → `gap`"
    assert row(block, step) == (
        f"| {step} | 9 | +0.40 | +0.33 to +0.47 | +4.6 | 0.020 | 100% | -0.40 ± 0.09 | 150 |"
    )
    claims = "## What the original"
    assert row(block, step, claims) == (
        f"| {step} | +0.03 | +0.40 ± 0.09 | +0.40 ± 0.09 | holds up |"
    )
    assert row(block, "`dropout` → `fc_layer`", claims).endswith(
        "| +0.69 | +0.00 ± 0.00 | +0.00 ± 0.00 | **not shown** with 9 seeds |"
    )
    # The original's best epochs: 99.35 and 98.23, though it publishes 99.28 of skeleton.
    claim = row(block, "`skeleton` → `less_params`", claims)
    assert claim == "| `skeleton` → `less_params` | -1.12 | +0.00 | +0.00 | not judged |"


def test_claims_are_of_best_epochs_and_verdicts_of_final_ones(tmp_path):
    networks = seven(tmp_path, {"gap": [98.5, 98.51, 98.52] * 3}, seeds=9)
    for run in networks[-1].runs:
        run["best_test_accuracy"] = 99.55
    claim = row(report.results_block(networks), "`augmentation` → `gap`", "## What the original")
    assert claim.endswith(
        "| +0.50 ± 0.00 | -0.49 ± 0.01 | **does not hold up**: the other way round |"
    )


def test_costs_and_conditions(tmp_path):
    block = report.results_block(seven(tmp_path, {}))
    assert row(block, "`gap`", "## What it costs") == "| `gap` | 7,364 | 1.17 | 4.7 | 1 | 15 |"
    assert "- Device: cpu, 2 cores, x86_64\n" in block
    assert "- Images: mnist, tested on 10,000\n- Steps of a run: 936 of 128 images\n" in block
    assert block.endswith("- Versions: python 3.11.7, jax 0.10.2\n- Commit: abc")


def test_numbers_in_conditions_are_in_order(tmp_path):
    networks = seven(tmp_path, {})
    for network, steps, cores in zip(networks, (14040, 936, 5622), (10, 2, 2), strict=False):
        for run in network.runs:
            run.update(steps=steps, device=f"cpu, {cores} cores", test_count=steps)
    block = report.results_block(networks)
    assert "\n- Steps of a run: 936 of 128; 5,622 of 128; 14,040 of 128 images\n" in block
    assert "\n- Device: cpu, 2 cores; cpu, 2 cores, x86_64; cpu, 10 cores\n" in block
    assert "tested on 936; 5,622; 10,000; 14,040\n" in block


def test_ablation_has_the_smallest_difference_to_show(tmp_path):
    few, many = ({"gap": [99.3, 99.4, 99.5] * n, "dropout": [99.1, 99.0] * 2} for n in (1, 3))
    networks = seven(tmp_path, {**many, "dropout": [98.9, 99.2, 99.0] * 3}, seeds=9)
    block = report.ablation_block([networks[2], networks[6], networks[3]])
    least = [
        stats.least_to_show([points - 99 for points in finals], 2)
        for finals in ([99.3, 99.4, 99.5] * 3, [98.9, 99.2, 99.0] * 3)
    ]
    assert None not in least
    assert (
        "the correction for 2 comparisons, the smallest mean difference that can be shown is "
        f"{least[0]:.2f} points (`gap`) to {least[1]:.2f} (`dropout`), "
    ) in block
    (tmp_path / "results.json").unlink()
    networks = seven(tmp_path, {"gap": few["gap"]})
    assert "No difference at all can be shown with fewer than 6 seeds." in report.ablation_block(
        [networks[2], networks[6]]
    )


def test_the_number_of_seeds_is_limited(tmp_path):
    (comparison,) = compared(seven(tmp_path, {"gap": [10.0, 99.0, 50.0]}), ("dropout", "gap"))
    assert report.steps_table([comparison]).endswith("| over 1,000,000 |")


def test_the_table_of_the_readme(tmp_path):
    block = report.readme_block(seven(tmp_path, {"gap": [99.3, 99.4, 99.5]}))
    # The median is that of seed 1, whose 15 epochs take 4.0 to 5.4 s.
    assert row(block, "`gap`") == (
        "| `gap` | more width in late layers, one-cycle schedule | 7,364 | 1.17 | 4.7 (1) | 3 "
        "| **99.40 ± 0.10** | 0 of 3 | 99.45 ± 0.10 | 99.42 |"
    )


def test_fill_replaces_only_the_block(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    filled = f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.fill(file, "new") == filled
    file.write_text(filled)
    assert report.fill(file, "new") == filled
    file.write_text(filled.replace(report.END, ""))
    with pytest.raises(ConfigError, match=r"README\.md has no <!-- results: .* put both lines"):
        report.fill(file, "new")


@pytest.fixture(scope="module")
def found():
    """The results in docs/results.json."""
    return results.read(DOCS / "results.json")


def test_the_documents_are_current(found):
    networks, recipes = results.seven_variants(found), results.other_recipes(found)
    blocks = {
        ROOT / "README.md": report.readme_block([*networks, *recipes]),
        DOCS / "results.md": report.results_block(networks, recipes),
        DOCS / "ablation.md": report.ablation_block(results.select(found, ABLATIONS["gap"])),
    }
    for file, block in blocks.items():
        assert report.fill(file, block) == file.read_text(), f"{AGAIN}: {file}"


def test_the_tour_has_the_results(found):
    """docs/drill-down.md is written by hand."""
    _, *texts = re.split(r"^## \d\. ", (DOCS / "drill-down.md").read_text(), flags=re.MULTILINE)
    sections = dict(zip(VARIANTS, texts, strict=True))
    means = {}
    for variant, section in sections.items():
        accuracy = found[variant].summary("final_test_accuracy")
        spread = "" if accuracy.sd is None else f" ± {accuracy.sd:.2f}"
        assert section.startswith(f"`{variant}`: ")
        assert f"- **Result**: {accuracy.mean:.2f}{spread} %" in section
        means[variant] = accuracy.mean
    for before, after in itertools.pairwise(VARIANTS):
        gain = round(means[after] - means[before], 4)  # 0.645, not 0.64499999
        assert gain < 0 or f"+{gain:.2f}" in sections[after]


def test_the_plots_are_current_and_shown(found):
    digest = results.digest(found).encode()
    # test_robustness.py has its own plot.
    plots = sorted({*(DOCS / "figures").iterdir()} - {DOCS / "figures/robustness.svg"})
    assert len(plots) == 6
    for plot in plots:
        assert digest in plot.read_bytes(), f"{AGAIN}: {plot}"
    shown = re.findall(r"\(figures/([a-z-]+)\.svg\)", (DOCS / "results.md").read_text())
    assert set(shown) == {plot.stem for plot in plots}


def test_the_results_have_the_original_recipe(found):
    networks = results.seven_variants(found)
    assert [network.published for network in networks] == list(PUBLISHED.values())
    counts = [6379786, 4572, 4652, 4708, 6124, 6124, 7364]
    assert [network.parameters for network in networks] == counts


def test_every_network_has_an_idea():
    own = {
        TrainConfig(variant, recipe=recipe).name
        for recipe in RECIPES
        for variant in RECIPES[recipe].keys() & set(VARIANTS)
    }
    assert own.union(*ABLATIONS.values()) <= set(IDEAS)
