"""Markdown report of accuracy under shifts: sentences for students, and tables."""

from collections.abc import Callable, Sequence
from statistics import fmean

from jaxmnist.analysis import report, stats
from jaxmnist.analysis.report import number, table
from jaxmnist.analysis.robustness import DIGITS, PLAIN, IncompleteError, Measured, Step, steps
from jaxmnist.analysis.shifts import SHIFTS, Shift

# Descriptions of the two metrics without strengths.
AS_THEY_ARE, OTHERS = "as they are", "scikit-learn's digits"
Steps = dict[str, list[Step]]  # by metric


def block(networks: Sequence[Measured]) -> str:
    """Return the sentences and tables of docs/robustness.md.

    Args:
        networks: the networks in the order of the course.

    Raises:
        IncompleteError: there is none, or two networks to compare have no seed in common.
    """
    if not networks:
        raise IncompleteError("there is no measured network; expected at least one")
    metrics = [PLAIN, *SHIFTS, *([DIGITS] if _has_digits(networks) else [])]
    compared = {metric: steps(networks, metric) for metric in metrics}
    by_step = [
        dict(zip(metrics, each, strict=True)) for each in zip(*compared.values(), strict=True)
    ]
    parts = [
        "## Shift by shift",
        "\n".join(f"- {shift_sentence(networks, compared, metric)}" for metric in metrics),
        *(_steps_part(compared, by_step) if by_step else ()),
        "## Accuracy",
        _accuracies(networks, metrics, _at_moderate),
        "Test accuracy in percent at one moderate strength of each shift, mean ± standard "
        "deviation over the seeds (n).",
        _accuracies(networks, metrics, lambda network, metric: network.by_seed(metric)),
        "The same, as the mean over all strengths that change the images. The steps above compare "
        "these means.",
        "## Calibration",
        _calibration(networks),
        "Expected calibration error at the same moderate strengths, in points: the mean distance "
        "between the probability that the network gives to its answer and the share of right "
        "answers. At 0, of all answers with a probability of 90 %, 90 % are right.",
        "## Strengths",
        table(SHIFTS.items(), _STRENGTHS, left=3),
        "**Bold**: the moderate strength. The images are as they are at the one in parentheses.",
        "## Where it was run",
        report.conditions([run for network in networks for run in network.runs]),
    ]
    return "\n\n".join(parts)


def _steps_part(compared: Steps, by_step: Sequence[dict[str, Step]]) -> list[str]:
    """Return the section on the steps: sentences if there are tests, a table and its legend."""
    tested = [step for step in by_step if any(each.p is not None for each in step.values())]
    sentences = "\n".join(f"- {step_sentence(step)}" for step in tested)
    return [
        "## Step by step",
        *([sentences] if sentences else ()),
        _steps_table(compared),
        _legend(compared),
    ]


def shift_sentence(networks: Sequence[Measured], compared: Steps, metric: str) -> str:
    """Return a sentence on the networks at a moderate strength, and on the largest shown steps."""
    found = {network.name: fmean(_at_moderate(network, metric).values()) for network in networks}
    best, worst = max(found, key=found.__getitem__), min(found, key=found.__getitem__)
    text = f"{_images(metric)}, `{best}` reads {found[best]:.1f} %"
    if len(found) > 1:
        text += f", the most, and `{worst}` {found[worst]:.1f} %, the fewest"
    over = "on average over all strengths, " if metric in SHIFTS else ""
    return f"{text}.{_largest(compared[metric], over)}"


def _largest(compared: Sequence[Step], over: str) -> str:
    """Return a sentence on the largest gain and the largest loss that are shown."""
    if all(step.p is None for step in compared):
        return ""
    shown = sorted(
        (step for step in compared if step.is_shown),
        key=lambda step: step.difference.summary.mean,
    )
    ends = []
    if shown and (gain := shown[-1]).difference.summary.mean > 0:
        ends.append(f"the largest gain that is shown is {_step(gain, gain.difference.gains)}")
    if shown and (loss := shown[0]).difference.summary.mean < 0:
        ends.append(f"the largest loss that is shown is {_step(loss, loss.difference.losses)}")
    text = f"{over}{'; '.join(ends) or 'no step is shown to gain or lose'}"
    return f" {text[0].upper()}{text[1:]}."


def _step(step: Step, count: int) -> str:
    points = number(step.difference.summary.mean, "+.2f")
    seeds = f"{count} of {step.difference.summary.n} seeds"
    return f"`{step.first.name}` → `{step.second.name}` ({points} points, in {seeds})"


def step_sentence(step: dict[str, Step]) -> str:
    """Return a sentence on everything that a step is shown to gain and to lose.

    Args:
        step: the comparison of the same two networks, by metric.
    """
    first, second = step[PLAIN].first.name, step[PLAIN].second.name
    plain = step[PLAIN].difference.summary.mean
    text = f"`{first}` → `{second}`: {number(plain, '+.2f')} points on the images as they are"
    text += "" if step[PLAIN].is_shown else ", not shown"
    others = {metric: each for metric, each in step.items() if metric != PLAIN}
    for verb, sign in (("gain", 1), ("lose", -1)):
        found = {
            metric: each.difference.summary.mean
            for metric, each in others.items()
            if each.is_shown and sign * each.difference.summary.mean > 0
        }
        ordered = sorted(found, key=lambda metric: -abs(found[metric]))
        named = [f"{_title(metric)} ({number(found[metric], '+.2f')})" for metric in ordered]
        text += f". Shown to {verb}: {', '.join(named)}" if named else ""
    rest = [_title(metric) for metric, each in others.items() if not each.is_shown]
    return f"{text}. Not shown to differ: {', '.join(rest)}." if rest else f"{text}."


def _has_digits(networks: Sequence[Measured]) -> bool:
    return all(network.by_seed(DIGITS) for network in networks)


def _at_moderate(network: Measured, metric: str) -> dict[int, float]:
    """Return the accuracy at the moderate strength of a shift, by seed."""
    if metric not in SHIFTS:
        return network.by_seed(metric)
    return network.at(metric, SHIFTS[metric].moderate)


def _images(metric: str) -> str:
    """Return a description of the images at the moderate strength, to begin a sentence."""
    if metric == PLAIN:
        return "Of the test images as they are"
    if metric == DIGITS:
        return "Of scikit-learn's digits"
    shift = SHIFTS[metric]
    return f"Of images {shift.moved.format(f'{shift.moderate:g}')}"


def _title(metric: str) -> str:
    return {PLAIN: AS_THEY_ARE, DIGITS: OTHERS}.get(metric, metric)


def _header(metric: str) -> str:
    """Return the title and the moderate strength."""
    if metric not in SHIFTS:
        return _title(metric)
    return f"{metric} {SHIFTS[metric].moderate:g}"


def _steps_table(compared: Steps) -> str:
    """Return a table with a row per metric and a column per step; shown differences are bold."""

    def cell(place: int) -> Callable[[str], str]:
        def of_metric(metric: str) -> str:
            step = compared[metric][place]
            points = number(step.difference.summary.mean, "+.2f")
            return f"**{points}**" if step.is_shown else points

        return of_metric

    columns = [
        (f"`{step.first.name}` → `{step.second.name}`", cell(place))
        for place, step in enumerate(compared[PLAIN])
    ]
    return table(compared, [("test images", _title), *columns])


def _legend(compared: Steps) -> str:
    points = (
        "Points of the mean accuracy over all strengths that change the images, second minus "
        "first, seed by seed."
    )
    tested = [[step for step in found if step.p is not None] for found in compared.values()]
    of_row, of_all = max(map(len, tested)), sum(map(len, tested))
    if not of_all:
        return f"{points} One seed of each network does not show how far others differ."
    fewest = min(step.difference.summary.n for found in tested for step in found)
    return (
        f"{points} **Bold**: shown, with a p below {stats.LEVEL} by the exact sign-flip test of "
        "the mean over seeds, which assumes no distribution, corrected for the "
        f"steps of its row ({of_row}) by Holm's method. To show any takes at least "
        f"{stats.seeds_to_show(of_row)} seeds; here are {fewest} or more. The rows are not "
        f"corrected for each other: for all {of_all} differences together, it takes at least "
        f"{stats.seeds_to_show(of_all)} seeds."
    )


def _accuracies(
    networks: Sequence[Measured],
    metrics: Sequence[str],
    by_seed: Callable[[Measured, str], dict[int, float]],
) -> str:
    def cell(metric: str) -> Callable[[Measured], str]:
        return lambda network: report.mean_and_sd(
            stats.summarize(list(by_seed(network, metric).values())), ".1f"
        )

    is_moderate = by_seed is _at_moderate
    columns = [((_header if is_moderate else _title)(metric), cell(metric)) for metric in metrics]
    return table(networks, [*_NAME_AND_COUNT, *columns])


def _calibration(networks: Sequence[Measured]) -> str:
    def cell(metric: str) -> Callable[[Measured], str]:
        def of_network(network: Measured) -> str:
            values = [
                run["calibration_error"]
                if metric == PLAIN
                else run["moderate_calibration_error"][metric]
                for run in network.runs
            ]
            return report.mean_and_sd(stats.summarize(values), ".1f")

        return of_network

    columns = [(_header(metric), cell(metric)) for metric in (PLAIN, *SHIFTS)]
    return table(networks, [*_NAME_AND_COUNT, *columns])


def _strengths(shift: Shift) -> str:
    forms = {shift.neutral: "({})", shift.moderate: "**{}**"}
    return ", ".join(forms.get(each, "{}").format(f"{each:g}") for each in shift.strengths)


_STRENGTHS: report.Columns[tuple[str, Shift]] = [
    ("shift", lambda item: item[0]),
    ("strengths", lambda item: _strengths(item[1])),
    ("unit", lambda item: item[1].unit),
]
_NAME_AND_COUNT: report.Columns[Measured] = [
    ("variant", lambda network: f"`{network.name}`"),
    ("n", lambda network: str(len(network.seeds))),
]
