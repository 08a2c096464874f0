"""Tables of the benchmark's results."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from rich.table import Table

from jaxmnist.models.description import forward_bytes, forward_flop


def tables(variant: str, result: dict[str, Any]) -> list[Table]:
    """Return the tables of a result, one per subject."""
    found = [own_table(variant, result)]
    if result["ratios"]:
        found += [peers_table(variant, result), ratios_table(variant, result)]
    if "layers" in result:
        found.append(layers_table(variant, result))
    if "seeds" in result:
        found.append(seeds_table(variant, result))
    if "whole" in result:
        found.append(whole_table(variant, result))
    return found


def own_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the figures of jaxmnist and of the machine: medians and ranges."""
    times, facts, start = result["seconds"]["ours"], result["facts"]["ours"], result["start"]
    batch = result["batch_size"]
    step, augmented = (median(times[job]) for job in ("step", "augmented step"))
    matmul, copy = (median(times[job]) for job in ("matmul", "copy"))
    gflops, peak = result["step_flop"] / step / 1e9, facts["matmul flop"] / matmul / 1e9
    rows = [
        ("compilation, training", _seconds([facts["step compile seconds"]])),
        (
            "compilation, training with augmentation",
            _seconds([facts["augmented step compile seconds"]]),
        ),
        (f"step of {batch} images", _milliseconds(times["step"])),
        ("step with augmentation", _milliseconds(times["augmented step"])),
        ("share of augmentation", f"{1 - step / augmented:.1%}"),
        ("images a second", f"{batch / step:,.0f}"),
        ("images a second with augmentation", f"{batch / augmented:,.0f}"),
        ("evaluation of all test images", _milliseconds(times["evaluation"])),
        ("start to first steps, nothing compiled", _seconds([start["cold_seconds"]])),
        ("start to first steps, compiled before", _seconds(start["warm_seconds"])),
        ("peak memory of a run that compiles", f"{start['cold_peak_bytes'] / 1e6:,.0f} MB"),
        ("peak memory, compiled before", f"{median(start['warm_peak_bytes']) / 1e6:,.0f} MB"),
        ("arithmetic of a step's convolutions", f"{result['step_flop'] / 1e9:.3g} GFLOP"),
        ("reached in a step", f"{gflops:.1f} GFLOP/s, {gflops / peak:.0%} of a large matmul"),
        ("large matmul", f"{peak:.0f} GFLOP/s"),
        ("large copy", f"{facts['copy bytes'] / copy / 1e9:.1f} GB/s read and written"),
    ]
    title = f"{variant} on {facts['device']}; medians of {result['rounds']} rounds (range)"
    return _table(title, ("", "figure"), rows)


def peers_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the times of every job of every peer, and the failed jobs."""
    rows = [
        (peer, job, _milliseconds(seconds))
        for peer in result["seconds"]
        if peer not in ("ours", "layers")
        for job, seconds in result["seconds"][peer].items()
    ]
    rows += [("failed", job, reason) for job, reason in result["failed"].items()]
    return _table(f"{variant}: peers", ("peer", "job", "median (range)"), rows)


def ratios_table(variant: str, result: dict[str, Any]) -> Table:
    """Return our time divided by that of each peer's best form."""
    rows = [
        (kind, found["best"], f"{found['ratio']:.2f}") for kind, found in result["ratios"].items()
    ]
    return _table(f"{variant}: jaxmnist's time over the best", ("work", "best form", "ratio"), rows)


def layers_table(variant: str, result: dict[str, Any]) -> Table:
    """Return every layer's minimum cost, and its time alone."""
    times, batch = result["seconds"]["layers"], result["batch_size"]
    rows = []
    for number, layer in enumerate(result["layers"]):
        forward, both = (median(times[f"{number} {part}"]) for part in ("forward", "both"))
        rows.append(
            (
                f"{layer['kind']} {layer['features']}",
                f"{layer['side']}x{layer['side']}",
                f"{batch * forward_flop(layer) / 1e6:.1f}",
                f"{batch * forward_bytes(layer) / 1e6:.2f}",
                f"{forward * 1e3:.2f}",
                f"{(both - forward) * 1e3:.2f}",
            )
        )
    columns = ("layer", "returns", "MFLOP", "MB", "forward ms", "backward ms")
    return _table(f"{variant}: every layer alone; MFLOP and MB forward", columns, rows)


def seeds_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the time of a step of one seed, by mapping and number of seeds."""
    times, failed = result["seeds"]["times"]["seeds"], result["seeds"]["failed"]
    counts = result["seeds"]["counts"]

    def figure(mapping: str, count: int) -> str:
        job = f"{mapping} {count}"
        if job not in times:
            return failed.get(f"seeds: {job}", "-")
        return _milliseconds([seconds / count for seconds in times[job]])

    rows = [
        (mapping, *(figure(mapping, count) for count in counts))
        for mapping in ("loop", "vmap", "processes")
    ]
    title = f"{variant}: a step of one seed, if so many are trained"
    return _table(title, ("mapping", *(f"{count} seeds" for count in counts)), rows)


def whole_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the times of whole trainings, from the start of the process."""
    goals = list(next(iter(result["whole"].values()))[0]["reached"])
    rows = []
    for who, runs in result["whole"].items():
        finals = [run["final_test_accuracy"] for run in runs]
        reached = [[run["reached"][goal] for run in runs] for goal in goals]
        rows.append(
            (
                who,
                str(len(runs)),
                *(_reached(times) for times in reached),
                _seconds([run["seconds"] for run in runs]),
                f"{fmean(finals):.2f} %" + _range(finals, 1, ".2f"),
            )
        )
    columns = ("", "n", *(f"to {goal} %" for goal in goals), "to the end", "mean final accuracy")
    return _table(f"{variant}: from the start of the process; medians (range)", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def _reached(seconds: Sequence[float | None]) -> str:
    reached = [each for each in seconds if each is not None]
    if len(reached) < len(seconds):
        return f"in {len(reached)} of {len(seconds)}"
    return _seconds(reached)


def _seconds(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f} s" + _range(seconds, 1, ".1f")


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1e3:.2f} ms" + _range(seconds, 1e3, ".2f")


def _range(seconds: Sequence[float], unit: float, form: str) -> str:
    if len(seconds) == 1:
        return ""
    return f" ({min(seconds) * unit:{form}} to {max(seconds) * unit:{form}})"
