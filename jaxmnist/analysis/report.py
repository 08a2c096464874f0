"""Markdown report of a drill-down: tables, and sentences for students."""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from jaxmnist.analysis import stats
from jaxmnist.analysis.results import PUBLISHED, Rung
from jaxmnist.analysis.stats import Difference, Spread
from jaxmnist.config import ConfigError, TrainConfig, format_seeds, parse_experiment
from jaxmnist.recipes import IDEAS

# A negligible difference, in points; tables give the number of seeds that would show it.
SMALL = 0.02
STEPS_LEGEND = (
    "Points are percentage points of the final epoch's test accuracy, second less first. Intervals "
    "are 95 % intervals of the mean of each comparison alone, by Student's t, which assumes that "
    "the differences are normally distributed. p is that of the exact sign-flip test of the mean "
    f"over seeds (for more than {stats.MAX_EXACT} seeds, of a random sample of the sign flips), "
    "which assumes no distribution. It is corrected for all comparisons of the table by Holm's "
    f"method; a difference counts as shown if p is below {stats.LEVEL}. d is Cohen's d_z, the mean "
    "difference over its standard deviation. *Order*: of all pairs of one run each, the share in "
    "which the second network is the better one (ties count half). This is what a single run of "
    "each would have shown. *Train less test*: the change of train accuracy less test accuracy, in "
    f"points. The last column: the number of seeds it takes to find a difference of {SMALL} points "
    "with a power of 80 %, in a test of its own at 5 %, if the differences scatter as they do here "
    "and are normally distributed."
)


class Comparison(NamedTuple):
    """Differences between two networks; each is the second minus the first."""

    first: Rung
    second: Rung
    final: Difference  # test accuracy after the last epoch
    best: Difference  # test accuracy of the best epoch
    gap: Difference  # train accuracy minus test accuracy
    p: float | None  # p-value of `final`, corrected for all comparisons tested together
    together: int  # number of these comparisons


def neighbours(rungs: Sequence[Rung]) -> list[tuple[Rung, Rung]]:
    """Return the pairs of neighbouring rungs."""
    return list(pairwise(rungs))


def compare(pairs: Sequence[tuple[Rung, Rung]]) -> list[Comparison]:
    """Compare pairs of networks, seed by seed.

    Args:
        pairs: all pairs that are corrected for together.

    Raises:
        ConfigError: a pair has no seed in common.
    """
    differences = []
    for first, second in pairs:
        if not set(first.seeds) & set(second.seeds):
            raise ConfigError(
                f"{first.name} has the seeds {format_seeds(first.seeds)} and {second.name} "
                f"{format_seeds(second.seeds)}; expected one in common"
            )
        differences.append(
            [
                stats.compare(first.by_seed(figure), second.by_seed(figure))
                for figure in ("final_test_accuracy", "best_test_accuracy", "train_test_gap")
            ]
        )
    corrected = stats.correct([final.p for final, _, _ in differences])
    together = sum(p is not None for p in corrected)
    return [
        Comparison(first, second, final, best, gap, p, together)
        for (first, second), (final, best, gap), p in zip(
            pairs, differences, corrected, strict=True
        )
    ]


def sentence(comparison: Comparison) -> str:
    """Return a sentence on the result of a comparison, for readers who do not know p-values."""
    first, second = comparison.first.name, comparison.second.name
    final, spread = comparison.final, comparison.final.spread
    points, n = _number(spread.mean, "+.2f"), spread.n
    if comparison.p is None:
        return (
            f"`{second}` less `{first}`: {points} points, n = {n}; nothing to judge by, for one "
            "seed does not show how far others differ."
        )
    tested = f"95 % interval {_interval(spread, '+.2f')}, p {_p(comparison.p)}"
    if comparison.together > 1 and final.p is not None:
        alone = _p(final.p).removeprefix("= ")
        tested += f" after correction for {comparison.together} comparisons ({alone} alone)"
    if comparison.p >= stats.LEVEL:
        return (
            f"`{second}` is not shown to differ from `{first}` with {n} seeds: {points} points, "
            f"higher in {final.gains} of {n} seeds, {tested}{_too_few(comparison)}."
        )
    verb, count = ("gained", final.gains) if spread.mean > 0 else ("lost", final.losses)
    return (
        f"`{second}` {verb} {abs(spread.mean):.2f} points on `{first}`, in {count} of {n} seeds, "
        f"{tested}."
    )


def _too_few(comparison: Comparison) -> str:
    """Return a remark if there are too few seeds to show any difference."""
    least = stats.seeds_to_show(comparison.together)
    return f"; it takes at least {least} seeds to show any" * (comparison.final.spread.n < least)


def verdict(comparison: Comparison) -> str:
    """Return whether our seeds confirm the direction of the original's step."""
    step = _published_step(comparison)
    if step is None or comparison.p is None:
        return "not judged"
    if comparison.p >= stats.LEVEL:
        return f"**not shown** with {comparison.final.spread.n} seeds"
    if (step > 0) != (comparison.final.spread.mean > 0):
        return "**does not hold up**: the other way round"
    return "holds up"


def readme_block(rungs: Sequence[Rung]) -> str:
    """Return the table of README.md."""
    header = [
        "`--variant`",
        "adds",
        "parameters",
        "MFLOP",
        "s an epoch, median (cores)",
        "seeds",
        "test %, final epoch",
        "best epoch",
        "published",
    ]
    rows = []
    for rung in rungs:
        final, best = _of(rung, "final_test_accuracy"), _of(rung, "best_test_accuracy")
        rows.append(
            [
                f"`{_options(rung)}`",
                IDEAS[rung.name],
                f"{rung.parameters:,}",
                f"{rung.mflop_per_image:.2f}",
                f"{rung.seconds_per_epoch:.1f} ({rung.cores})",
                str(final.n),
                f"**{_mean(final)}**",
                _mean(best),
                _published(rung),
            ]
        )
    return _table(header, rows, left=2)


def results_block(rungs: Sequence[Rung], recipes: Sequence[Rung] = ()) -> str:
    """Return the tables and sentences of docs/results.md.

    Args:
        rungs: the seven networks.
        recipes: networks trained with other recipes, for the tables of accuracies and conditions.
    """
    comparisons = compare(neighbours(rungs))
    parts = [
        _accuracies([*rungs, *recipes]),
        "Mean ± standard deviation over the seeds (n - 1); the interval is the 95 % interval of "
        "the mean, by Student's t, which assumes that seeds are normally distributed. The best "
        "epoch is chosen on the test set: it is the optimistic figure that the original reports, "
        f"here for comparison only. {_headlines()} *Inside* says whether the original's best "
        "epoch lies between the lowest and the highest best epoch of our seeds.",
        "## What training looks like from inside",
        _training(rungs),
        "Train accuracy is the running one over the last epoch, with augmentation and dropout on, "
        "so that a test accuracy above it is no contradiction. The published difference is that of "
        "its train figure and its final test figure. Points are percentage points.",
        "## What each step buys",
        "\n".join(f"- {sentence(comparison)}" for comparison in comparisons),
        steps_table(comparisons),
        "Most steps change more than one thing: the figures are those of the whole step. "
        + STEPS_LEGEND,
        "## What the original claims",
        _claims(comparisons),
        "The original's steps are those between its best epochs, one run each; ours beside them "
        "are the mean differences of best epochs. The verdict is on the direction alone, by final "
        f"epochs, at a corrected p of {stats.LEVEL}.",
        "## What it costs",
        _costs(rungs),
        "MFLOP: additions and multiplications of the convolutions' forward pass for one image. "
        "Seconds: the median over all epochs of all seeds, without evaluation, on the given number "
        "of cores for each seed. Seeds train side by side on a shared machine; its other work is "
        "part of these seconds.",
        "## Where it was run",
        _conditions([*rungs, *recipes]),
    ]
    return "\n\n".join(parts)


def ablation_block(rungs: Sequence[Rung]) -> str:
    """Return the tables and sentences of docs/ablation.md.

    Args:
        rungs: the unchanged network, then the networks with one change each.
    """
    whole, *changed = rungs
    comparisons = compare([(whole, rung) for rung in changed])
    parts = [
        _changes(comparisons),
        _least(comparisons),
        "\n".join(f"- {sentence(comparison)}" for comparison in comparisons),
        "## All that is known of each",
        steps_table(comparisons),
        _accuracies(rungs),
        "## Where it was run",
        _conditions(rungs),
    ]
    return "\n\n".join(parts)


def fill(file: Path, block: str) -> str:
    """Return the text of a document with the block between its two markers replaced.

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


def _accuracies(rungs: Sequence[Rung]) -> str:
    header = [
        "variant",
        "n",
        "test %, final epoch",
        "95 % interval",
        "min to max",
        "test loss",
        "best epoch",
        "min to max",
        "published",
        "inside",
    ]
    rows = []
    for rung in rungs:
        final, best = _of(rung, "final_test_accuracy"), _of(rung, "best_test_accuracy")
        rows.append(
            [
                f"`{rung.name}`",
                str(final.n),
                f"**{_mean(final)}**",
                _interval(final),
                _range(final),
                _mean(_of(rung, "final_test_loss"), ".4f"),
                _mean(best),
                _range(best),
                _published(rung),
                _inside(rung, best),
            ]
        )
    return _table(header, rows)


def _changes(comparisons: Sequence[Comparison]) -> str:
    """Return the table of an ablation's changes and their effects, the greatest loss first."""
    header = ["what is changed", "name", "test %, final epoch", "n", "points", "95 % interval", "p"]
    whole = comparisons[0].first
    final = _of(whole, "final_test_accuracy")
    rows = [["nothing", f"`{whole.name}`", _mean(final), str(final.n), "", "", ""]]
    for comparison in sorted(comparisons, key=lambda each: each.final.spread.mean):
        spread = comparison.final.spread
        rows.append(
            [
                IDEAS[comparison.second.name],
                f"`{comparison.second.name}`",
                _mean(_of(comparison.second, "final_test_accuracy")),
                str(spread.n),
                _number(spread.mean, "+.2f"),
                _interval(spread, "+.2f"),
                "-" if comparison.p is None else _p(comparison.p).removeprefix("= "),
            ]
        )
    return _table(header, rows, left=2)


def _least(comparisons: Sequence[Comparison]) -> str:
    """Return a paragraph on the smallest difference that these comparisons can show."""
    found = [(stats.least_to_show(c.final.values, c.together), c) for c in comparisons]
    least = sorted((points, c.second.name) for points, c in found if points is not None)
    if not least:
        needed = stats.seeds_to_show(comparisons[0].together)
        return f"No difference at all can be shown with fewer than {needed} seeds."
    (low, first), (high, last) = least[0], least[-1]
    return (
        f"With this test, these seeds and the correction for {comparisons[0].together} "
        f"comparisons, the smallest mean difference that can be shown is {low:.2f} points "
        f"(`{first}`) to {high:.2f} (`{last}`), {median(points for points, _ in least):.2f} in the "
        "median over all changes: the more the differences of a change scatter, the larger it is."
    )


def _training(rungs: Sequence[Rung]) -> str:
    header = ["variant", "train %, last epoch", "published", "train less test", "published"]
    rows = []
    for rung in rungs:
        published = rung.published
        rows.append(
            [
                f"`{rung.name}`",
                _mean(_of(rung, "final_train_accuracy")),
                "-" if published is None else f"{published.train:.2f}",
                _mean(_of(rung, "train_test_gap"), "+.2f"),
                "-" if published is None else _number(published.train - published.final, "+.2f"),
            ]
        )
    return _table(header, rows)


def steps_table(comparisons: Sequence[Comparison]) -> str:
    """Return a table with all statistics of each comparison, one row each."""
    header = [
        "step",
        "n",
        "points",
        "95 % interval",
        "d",
        "p",
        "order",
        "train less test",
        f"seeds for {SMALL}",
    ]
    rows = []
    for comparison in comparisons:
        final, gap = comparison.final, comparison.gap.spread
        sd = final.spread.sd
        rows.append(
            [
                _step(comparison),
                str(final.spread.n),
                _number(final.spread.mean, "+.2f"),
                _interval(final.spread, "+.2f"),
                "-" if final.effect is None else _number(final.effect, "+.1f"),
                "-" if comparison.p is None else _p(comparison.p).removeprefix("= "),
                f"{final.order:.0%}",
                _mean(gap, "+.2f"),
                "-" if sd is None else _seeds(sd),
            ]
        )
    return _table(header, rows)


def _claims(comparisons: Sequence[Comparison]) -> str:
    header = ["step", "the original", "here, best epochs", "here, final epochs", "verdict"]
    rows = []
    for comparison in comparisons:
        step = _published_step(comparison)
        rows.append(
            [
                _step(comparison),
                "-" if step is None else _number(step, "+.2f"),
                _mean(comparison.best.spread, "+.2f"),
                _mean(comparison.final.spread, "+.2f"),
                verdict(comparison),
            ]
        )
    return _table(header, rows)


def _costs(rungs: Sequence[Rung]) -> str:
    header = ["variant", "parameters", "MFLOP an image", "s an epoch", "cores", "epochs"]
    rows = [
        [
            f"`{rung.name}`",
            f"{rung.parameters:,}",
            f"{rung.mflop_per_image:.2f}",
            f"{rung.seconds_per_epoch:.1f}",
            str(rung.cores),
            str(rung.epochs),
        ]
        for rung in rungs
    ]
    return _table(header, rows)


def _conditions(rungs: Sequence[Rung]) -> str:
    """Return a list of the data, devices, versions and commits of all runs, each value once."""
    runs = [run for rung in rungs for run in rung.runs]
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


def _of(rung: Rung, figure: str) -> Spread:
    return stats.describe(list(rung.by_seed(figure).values()))


def _published(rung: Rung) -> str:
    return "-" if rung.published is None else f"{rung.published.headline:.2f}"


def _headlines() -> str:
    """Return sentences on the published figures that are not those of a best epoch."""
    return " ".join(
        f"The published figure of `{name}` is not that of its best epoch, which has {of.best:.2f}."
        for name, of in PUBLISHED.items()
        if of.headline != of.best
    )


def _inside(rung: Rung, best: Spread) -> str:
    if rung.published is None or best.n == 1:
        return "-"
    if best.min <= rung.published.best <= best.max:
        return "yes"
    return "**below**" if rung.published.best < best.min else "**above**"


def _published_step(comparison: Comparison) -> float | None:
    before, after = comparison.first.published, comparison.second.published
    return None if before is None or after is None else after.best - before.best


def _options(rung: Rung) -> str:
    """Return the command-line options after `--variant`."""
    config = parse_experiment(rung.name)
    plain = config.recipe == TrainConfig.recipe
    return config.variant if plain else f"{config.variant} --recipe {config.recipe}"


def _step(comparison: Comparison) -> str:
    return f"`{comparison.first.name}` → `{comparison.second.name}`"


def _mean(spread: Spread, form: str = ".2f") -> str:
    mean = _number(spread.mean, form)
    return mean if spread.sd is None else f"{mean} ± {format(spread.sd, form.lstrip('+'))}"


def _interval(spread: Spread, form: str = ".2f") -> str:
    if spread.low is None or spread.high is None:
        return "-"
    return f"{_number(spread.low, form)} to {_number(spread.high, form)}"


def _range(spread: Spread) -> str:
    return f"{spread.min:.2f} to {spread.max:.2f}"


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _seeds(sd: float) -> str:
    """Return the number of seeds that resolve `SMALL`, given a standard deviation."""
    count = stats.seeds_to_resolve(SMALL, sd)
    return f"{count:,}" if count < stats.MAX_SEEDS else f"over {count:,}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table; the first `left` columns are left-aligned, the others right."""
    rule = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])
