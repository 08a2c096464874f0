"""Markdown report of a drill-down: tables, and sentences for students."""

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

from jaxmnist.analysis import stats
from jaxmnist.analysis.results import PUBLISHED, VariantResults
from jaxmnist.analysis.stats import Difference, Summary
from jaxmnist.analysis.verdict import Target, is_steady, judge
from jaxmnist.config import ConfigError, format_seeds
from jaxmnist.models import create_model
from jaxmnist.models.description import describe, tabulate
from jaxmnist.recipes import IDEAS, VARIANTS

# A negligible difference, in percentage points; tables list the number of seeds needed to show it.
SMALL = 0.02
STEPS_LEGEND = (
    "Points are percentage points of the final epoch's test accuracy, second minus first. "
    "Intervals are 95 % intervals of the mean of each comparison alone, by Student's t, which "
    "assumes that the differences are normally distributed. p is that of the exact sign-flip test "
    f"of the mean over seeds (for more than {stats.MAX_EXACT} seeds, of a random sample of the "
    "sign flips), which assumes no distribution. It is corrected for all comparisons of the table "
    f"by Holm's method; a difference counts as shown if p is below {stats.LEVEL}. d is Cohen's "
    "d_z, the mean difference over its standard deviation. *Order*: of all pairs of one run each, "
    "the share in which the second network is the better one (ties count half). This is what a "
    "single run of each would have shown. *Train minus test*: the change of train accuracy minus "
    "test accuracy, in points. The last column: the number of seeds needed to detect a difference "
    f"of {SMALL} points with a power of 80 %, in a test of its own at 5 %, if the differences are "
    "normally distributed with the standard deviation found here."
)
STEADY_LEGEND = (
    f"*Steady*: the number of seeds whose last {Target().last} epochs all reach "
    f"{Target().accuracy:.2f} %, the course's target for small networks "
    f"(`scripts/check.py docs/results.json` also checks parameters and epochs)."
)


Item = TypeVar("Item")
Column = tuple[str, Callable[[Item], str]]  # the header, and the function from an item to a cell
Columns = Sequence[Column[Item]]


class Comparison(NamedTuple):
    """Differences between two networks; each is the second minus the first."""

    first: VariantResults
    second: VariantResults
    final: Difference  # test accuracy after the last epoch
    best: Difference  # test accuracy of the best epoch
    gap: Difference  # train accuracy minus test accuracy
    p: float | None  # p-value of `final`, corrected for all comparisons tested together
    tested: int  # number of these comparisons


def compare(pairs: Sequence[Sequence[VariantResults]]) -> list[Comparison]:
    """Compare pairs of networks, seed by seed.

    Args:
        pairs: all pairs for which p-values are corrected together.

    Raises:
        ConfigError: a pair has no seed in common.
    """
    metrics = ("final_test_accuracy", "best_test_accuracy", "train_test_gap")
    found = []
    for first, second in pairs:
        if not set(first.seeds) & set(second.seeds):
            raise ConfigError(
                f"{first.name} has the seeds {format_seeds(first.seeds)} and {second.name} "
                f"{format_seeds(second.seeds)}; expected one in common"
            )
        found.append([stats.compare(first.by_seed(name), second.by_seed(name)) for name in metrics])
    corrected = stats.holm([final.p for final, _, _ in found])
    tested = sum(p is not None for p in corrected)
    return [
        Comparison(first, second, final, best, gap, p, tested)
        for (first, second), (final, best, gap), p in zip(pairs, found, corrected, strict=True)
    ]


def sentence(comparison: Comparison) -> str:
    """Return a sentence on the result of a comparison, for readers who do not know p-values."""
    first, second = comparison.first.name, comparison.second.name
    final, summary = comparison.final, comparison.final.summary
    points, n = number(summary.mean, "+.2f"), summary.n
    if comparison.p is None:
        return (
            f"`{second}` minus `{first}`: {points} points, n = {n}; not judged, because one seed "
            "does not show the spread over seeds."
        )
    p = p_value(comparison.p) if comparison.p < 0.001 else f"= {p_value(comparison.p)}"
    tested = f"95 % interval {_interval(summary, '+.2f')}, p {p}"
    if comparison.tested > 1:
        tested += (
            f" after correction for {comparison.tested} comparisons ({p_value(final.p)} alone)"
        )
    if comparison.p >= stats.LEVEL:
        least = stats.seeds_to_show(comparison.tested)
        remark = f"; it takes at least {least} seeds to show any" if n < least else ""
        return (
            f"`{second}` is not shown to differ from `{first}` with {n} seeds: {points} points, "
            f"higher in {final.gains} of {n} seeds, {tested}{remark}."
        )
    word, count = ("better", final.gains) if summary.mean > 0 else ("worse", final.losses)
    return (
        f"`{second}` is {abs(summary.mean):.2f} points {word} than `{first}`, in {count} of {n} "
        f"seeds, {tested}."
    )


def verdict(comparison: Comparison) -> str:
    """Return whether this project's seeds confirm the direction of the original's step."""
    step = _published_step(comparison)
    if step is None or comparison.p is None:
        return "not judged"
    if comparison.p >= stats.LEVEL:
        return f"**not shown** with {comparison.final.summary.n} seeds"
    if (step > 0) != (comparison.final.summary.mean > 0):
        return "**does not hold up**: the other way round"
    return "holds up"


def readme_block(networks: Sequence[VariantResults]) -> str:
    """Return the table of README.md."""
    return table(networks, OVERVIEW, left=2)


def results_block(
    networks: Sequence[VariantResults], recipes: Sequence[VariantResults] = ()
) -> str:
    """Return the tables and sentences of docs/results.md.

    Args:
        networks: the seven networks.
        recipes: networks trained with other recipes, for the tables of accuracies and conditions.
    """
    comparisons = compare(list(pairwise(networks)))
    parts = [
        table([*networks, *recipes], ACCURACIES),
        "Mean ± standard deviation over the seeds (n - 1); the interval is the 95 % interval of "
        "the mean, by Student's t, which assumes that seeds are normally distributed. The best "
        "epoch is chosen on the test set: it is the optimistic figure that the original reports, "
        "here for comparison only. The published figure of `skeleton` is not that of its best "
        f"epoch, which has {PUBLISHED['skeleton'].best:.2f}. *Inside* says whether the original's "
        "best epoch lies between the lowest and the highest best epoch of our seeds. "
        + STEADY_LEGEND,
        "## Training accuracy",
        table(networks, TRAINING),
        "Train accuracy is the running one over the last epoch, with augmentation and dropout on, "
        "so that a test accuracy above it is no contradiction. The published difference is that of "
        "its train figure and its final test figure. Points are percentage points.",
        "## What each step buys",
        "\n".join(f"- {sentence(comparison)}" for comparison in comparisons),
        steps_table(comparisons),
        "Most steps change more than one thing: the figures are those of the whole step. "
        + STEPS_LEGEND,
        "## What the original claims",
        table(comparisons, CLAIMS),
        "The original's steps are those between its best epochs, one run each; ours beside them "
        "are the mean differences of best epochs. The verdict is on the direction alone, by final "
        f"epochs, at a corrected p of {stats.LEVEL}.",
        *([_last_three(networks[-1])] if networks[-1].published else []),
        "## What it costs",
        table(networks, COSTS),
        "MFLOP: additions and multiplications of the convolutions' forward pass for one image. "
        "Seconds: the median over all epochs of all seeds, without evaluation, on the given number "
        "of cores for each seed. Seeds train side by side on a shared machine; its other work is "
        "part of these seconds.",
        "## Where it was run",
        conditions(_runs([*networks, *recipes])),
    ]
    return "\n\n".join(parts)


def _last_three(network: VariantResults) -> str:
    """Return a sentence on the original's claim that its last epochs are steady."""
    target = Target(last=3)
    curves = [run["curves"]["test_accuracy"] for run in network.runs]
    found = judge(target, network.parameters, curves)
    return (
        f"The original also says that its last network is at {target.accuracy:.2f} % or above in "
        f"each of its last three epochs. Of the seeds of `{network.name}`, this holds for {found}."
    )


def layers_block() -> str:
    """Return the tables of the seven networks' layers, without those that only act on values."""
    parts = []
    for variant in VARIANTS:
        rows = tabulate(describe(create_model(variant)))
        acting = [row for row in rows if row["parameters"] or row["kernel"] or _changes_shape(row)]
        parts += [f"### Layers of `{variant}`", table(acting, LAYERS)]
    return "\n\n".join(parts)


def _changes_shape(row: dict[str, Any]) -> bool:
    return "pool" in row["layer"]


def ablation_block(networks: Sequence[VariantResults]) -> str:
    """Return the tables and sentences of docs/ablation.md.

    Args:
        networks: the unchanged network, then the networks with one change each.
    """
    whole, *changed = networks
    comparisons = compare([(whole, network) for network in changed])
    parts = [
        _changes(comparisons),
        STEADY_LEGEND,
        _least(comparisons),
        "\n".join(f"- {sentence(comparison)}" for comparison in comparisons),
        "## All statistics",
        steps_table(comparisons),
        table(networks, ACCURACIES),
        "## Where it was run",
        conditions(_runs(networks)),
    ]
    return "\n\n".join(parts)


def fill(file: Path, block: str) -> str:
    """Return the text of a document, with the block between its two markers replaced.

    Args:
        file: the path of the document.
        block: the new block.

    Raises:
        ConfigError: the markers are missing.
        OSError: the file cannot be read.
    """
    before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{file} has no {BEGIN} ... {END}; put both lines where results belong")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


BEGIN = "<!-- results: written by scripts/drilldown.py -->"
END = "<!-- end of results -->"


def table(items: Iterable[Item], columns: Columns[Item], left: int = 1) -> str:
    """Return a Markdown table with a row for each item; the first `left` columns are texts."""
    header = [title for title, _ in columns]
    rule = ["---" if place < left else "---:" for place in range(len(columns))]
    rows = ([cell(item) for _, cell in columns] for item in items)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def _changes(comparisons: Sequence[Comparison]) -> str:
    """Return the table of an ablation's changes and their effects, largest loss first."""
    by_loss = sorted(comparisons, key=lambda both: both.final.summary.mean)
    header, rule, *rows = table(by_loss, CHANGES, left=2).splitlines()
    whole = comparisons[0].first
    final = whole.summary("final_test_accuracy")
    cells = ["nothing", f"`{whole.name}`", mean_and_sd(final), _steady(whole), str(final.n)]
    unchanged = f"| {' | '.join(cells)} |  |  |  |"
    return "\n".join([header, rule, unchanged, *rows])


def _least(comparisons: Sequence[Comparison]) -> str:
    """Return a paragraph on the smallest difference that these comparisons can show."""
    found = [(stats.least_to_show(c.final.values, c.tested), c) for c in comparisons]
    least = sorted((points, c.second.name) for points, c in found if points is not None)
    if not least:
        needed = stats.seeds_to_show(comparisons[0].tested)
        return f"No difference at all can be shown with fewer than {needed} seeds."
    (low, first), (high, last) = least[0], least[-1]
    return (
        f"With this test, these seeds and the correction for {comparisons[0].tested} "
        f"comparisons, the smallest mean difference that can be shown is {low:.2f} points "
        f"(`{first}`) to {high:.2f} (`{last}`), {median(points for points, _ in least):.2f} in the "
        "median over all changes: the more the differences of a change scatter, the larger it is."
    )


def steps_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with all statistics of each comparison, one row each."""
    return table(comparisons, STEPS)


def _runs(networks: Sequence[VariantResults]) -> list[dict[str, Any]]:
    return [run for network in networks for run in network.runs]


def conditions(runs: Sequence[dict[str, Any]]) -> str:
    """Return a list of the distinct data sets, devices, versions and commits of runs."""
    counts = (f"{run['test_count']:,}" for run in runs)
    steps = (f"{run['steps']:,} of {run['config']['batch_size']}" for run in runs)
    versions = (", ".join(f"{k} {v}" for k, v in run["versions"].items() if v) for run in runs)
    return "\n".join(
        [
            f"- Images: {_each(run['config']['dataset'] for run in runs)}, tested on "
            f"{_each(counts, '; ')}",
            f"- Steps of a run: {_each(steps, '; ')} images",
            f"- Device: {_each((run['device'] for run in runs), '; ')}",
            f"- Versions: {_each(versions, '; ')}",
            f"- Commit: {_each(str(run['git_commit']) for run in runs)}",
        ]
    )


def _each(values: Iterable[str], separator: str = ", ") -> str:
    return separator.join(sorted(set(values), key=_by_numbers))


def _by_numbers(text: str) -> list[str | int]:
    """Return a sort key that orders numbers in a text by value: 5,622 before 14,040."""
    parts = re.split(r"(\d[\d,]*)", text)
    return [int(part.replace(",", "")) if place % 2 else part for place, part in enumerate(parts)]


def _steady(network: VariantResults) -> str:
    """Return the number of seeds whose last epochs all reach the course's target."""
    curves = [run["curves"]["test_accuracy"] for run in network.runs]
    target = Target()
    if min(map(len, curves)) < target.last:
        return "-"
    steady = sum(is_steady(curve, target.accuracy, target.last) for curve in curves)
    return f"{steady} of {len(curves)}"


def _inside(network: VariantResults) -> str:
    published, best = network.published, network.summary("best_test_accuracy")
    if published is None or best.n == 1:
        return "-"
    if best.min <= published.best <= best.max:
        return "yes"
    return "**below**" if published.best < best.min else "**above**"


def _published_step(comparison: Comparison) -> float | None:
    before, after = comparison.first.published, comparison.second.published
    return None if before is None or after is None else after.best - before.best


def mean_and_sd(summary: Summary, form: str = ".2f") -> str:
    """Return a mean with its standard deviation, if there are several seeds."""
    mean = number(summary.mean, form)
    return mean if summary.sd is None else f"{mean} ± {format(summary.sd, form.lstrip('+'))}"


def _interval(summary: Summary, form: str = ".2f") -> str:
    if summary.low is None:
        return "-"
    return f"{number(summary.low, form)} to {number(summary.high, form)}"


def _range(summary: Summary, form: str = ".2f") -> str:
    return f"{number(summary.min, form)} to {number(summary.max, form)}"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number as text with a true minus sign, or - for None."""
    return "-" if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def p_value(value: float | None) -> str:
    """Return a p-value as text."""
    return "< 0.001" if value is not None and value < 0.001 else number(value, ".3f")


def _seeds(sd: float | None) -> str:
    """Return the number of seeds needed to resolve `SMALL`, given a standard deviation."""
    if sd is None:
        return "-"
    count = stats.seeds_to_resolve(SMALL, sd)
    return f"{count:,}" if count < stats.MAX_SEEDS else f"over {count:,}"


def _of(
    metric: str, show: Callable[[Summary, str], str] = mean_and_sd, form: str = ".2f"
) -> Callable[[VariantResults], str]:
    """Return the cell of a metric over all seeds."""
    return lambda network: show(network.summary(metric), form)


def _published(name: str, form: str = ".2f") -> Callable[[VariantResults], str]:
    """Return the cell of one of the original's accuracies."""
    return lambda network: number(getattr(network.published, name, None), form)


# The columns of the tables.
NAME: Column[VariantResults] = "variant", lambda network: f"`{network.name}`"
FINAL: Column[VariantResults] = (
    "test %, final epoch",
    lambda network: f"**{mean_and_sd(network.summary('final_test_accuracy'))}**",
)
BEST = "best epoch", _of("best_test_accuracy")
STEADY: Column[VariantResults] = "steady", _steady
PUBLISHED_TEST = "published", _published("headline")
PARAMETERS: Column[VariantResults] = "parameters", lambda network: f"{network.parameters:,}"
OVERVIEW: Columns[VariantResults] = [
    # "gap/fast" is trained by `--variant gap --recipe fast`.
    ("`--variant`", lambda network: f"`{network.name.replace('/', ' --recipe ')}`"),
    ("adds", lambda network: IDEAS[network.name]),
    PARAMETERS,
    ("MFLOP", lambda network: f"{network.mflop_per_image:.2f}"),
    (
        "s an epoch, median (cores)",
        lambda network: f"{network.seconds_per_epoch:.1f} ({network.place[1]})",
    ),
    ("seeds", lambda network: str(len(network.seeds))),
    FINAL,
    STEADY,
    BEST,
    PUBLISHED_TEST,
]
ACCURACIES: Columns[VariantResults] = [
    NAME,
    ("n", lambda network: str(len(network.seeds))),
    FINAL,
    ("95 % interval", _of("final_test_accuracy", _interval)),
    ("min to max", _of("final_test_accuracy", _range)),
    STEADY,
    ("test loss", _of("final_test_loss", form=".4f")),
    BEST,
    ("min to max", _of("best_test_accuracy", _range)),
    PUBLISHED_TEST,
    ("inside", _inside),
]
TRAINING: Columns[VariantResults] = [
    NAME,
    ("train %, last epoch", _of("final_train_accuracy")),
    ("published", _published("train")),
    ("train minus test", _of("train_test_gap", form="+.2f")),
    ("published", _published("gap", "+.2f")),
]
COSTS: Columns[VariantResults] = [
    NAME,
    PARAMETERS,
    ("MFLOP an image", lambda network: f"{network.mflop_per_image:.2f}"),
    ("s an epoch", lambda network: f"{network.seconds_per_epoch:.1f}"),
    ("cores", lambda network: str(network.place[1])),
    ("epochs", lambda network: str(network.config.epochs)),
]
STEP: Column[Comparison] = "step", lambda both: f"`{both.first.name}` → `{both.second.name}`"
N: Column[Comparison] = "n", lambda both: str(both.final.summary.n)
POINTS: Column[Comparison] = "points", lambda both: number(both.final.summary.mean, "+.2f")
INTERVAL: Column[Comparison] = "95 % interval", lambda both: _interval(both.final.summary, "+.2f")
P: Column[Comparison] = "p", lambda both: p_value(both.p)
STEPS: Columns[Comparison] = [
    STEP,
    N,
    POINTS,
    INTERVAL,
    ("d", lambda both: number(both.final.cohens_dz, "+.1f")),
    P,
    ("order", lambda both: f"{both.final.prob_superiority:.0%}"),
    ("train minus test", lambda both: mean_and_sd(both.gap.summary, "+.2f")),
    (f"seeds for {SMALL}", lambda both: _seeds(both.final.summary.sd)),
]
CLAIMS: Columns[Comparison] = [
    STEP,
    ("the original", lambda both: number(_published_step(both), "+.2f")),
    ("here, best epochs", lambda both: mean_and_sd(both.best.summary, "+.2f")),
    ("here, final epochs", lambda both: mean_and_sd(both.final.summary, "+.2f")),
    ("verdict", verdict),
]
LAYERS: Columns[dict[str, Any]] = [
    ("layer", lambda row: f"`{row['layer']}`"),
    ("output", lambda row: "x".join(map(str, row["output"]))),
    ("kernel", lambda row: "x".join(map(str, row["kernel"] or "-"))),
    ("parameters", lambda row: f"{row['parameters']:,}"),
    ("MFLOP", lambda row: f"{row['mflop']:.3f}"),
    ("receptive field", lambda row: str(row["receptive_field"])),
    ("jump", lambda row: str(row["jump"])),
    ("seen", lambda row: f"{row['seen']:.0%}"),
]
CHANGES: Columns[Comparison] = [
    ("what is changed", lambda both: IDEAS[both.second.name]),
    ("name", lambda both: f"`{both.second.name}`"),
    ("test %, final epoch", lambda both: mean_and_sd(both.second.summary("final_test_accuracy"))),
    ("steady", lambda both: _steady(both.second)),
    N,
    POINTS,
    INTERVAL,
    P,
]
