"""Tables of the benchmark's results."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

from rich.table import Table

from jaxmnist.models.description import forward_bytes, forward_flop


def tables(variant: str, result: dict[str, Any]) -> list[Table]:
    """Return the tables of a result, one per subject."""
    seconds = result["seconds"]
    found = {
        own_table: True,
        peers_table: result["ratios"],
        layers_table: seconds.get("layers"),
        seeds_table: seconds.get("seeds"),
        whole_table: result["whole"],
        failed_table: result["failed"],
    }
    return [make(variant, result) for make, figures in found.items() if figures]


def own_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the times of jaxmnist and the limits of the machine: medians and ranges."""
    times, facts, start = result["seconds"]["ours"], result["facts"]["ours"], result["start"]
    batch, flop = result["batch_size"], result["step_flop"]
    step, augmented, matmul, copy = (
        median(times[job]) for job in ("step", "augmented step", "matmul", "copy")
    )
    gflops, peak = flop / step / 1e9, facts["matmul flop"] / matmul / 1e9
    rows = [
        ("compilation, with augmentation", f"{facts['compile seconds']:.1f} s"),
        (f"step of {batch} images", _milliseconds(times["step"])),
        ("step with augmentation", _milliseconds(times["augmented step"])),
        ("images a second with augmentation", f"{batch / augmented:,.0f}"),
        ("evaluation of all test images", _milliseconds(times["evaluation"])),
        ("start to first steps, nothing compiled", _seconds([start["cold_seconds"]])),
        ("start to first steps, compiled before", _seconds(start["warm_seconds"])),
        ("peak memory of a run that compiles", f"{start['cold_peak_bytes'] / 1e6:,.0f} MB"),
        ("peak memory, compiled before", f"{median(start['warm_peak_bytes']) / 1e6:,.0f} MB"),
        (f"convolutions of a step, {flop / 1e9:.3g} GFLOP", f"{gflops:.1f} GFLOP/s"),
        ("share of a large matmul's speed", f"{gflops / peak:.0%}"),
        ("large matmul", f"{peak:.0f} GFLOP/s"),
        ("large copy", f"{facts['copy bytes'] / copy / 1e9:.1f} GB/s read and written"),
    ]
    title = f"{variant} on {facts['device']}; medians of {result['rounds']} rounds (range)"
    return _table(title, ("", "figure"), rows)


def peers_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the times of each job of each peer, and the ratio of our time to the fastest."""
    peers = {kind.split(":")[0] for kind in result["ratios"]}
    ratios = {
        (kind.split(":")[0], found["best"]): f"{found['ratio']:.2f}"
        for kind, found in result["ratios"].items()
    }
    rows = [
        (peer, job, _milliseconds(seconds), ratios.get((peer, job), ""))
        for peer in sorted(peers)
        for job, seconds in result["seconds"][peer].items()
    ]
    columns = ("peer", "job", "median (range)", "ratio")
    return _table(f"{variant}: peers; ratio: jaxmnist's time over the best form's", columns, rows)


def layers_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the minimum cost of each layer, and its time when run alone."""
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
    rows = []
    for job, seconds in result["seconds"]["seeds"].items():
        mapping, count = job.split()
        rows.append((mapping, count, _milliseconds([each / int(count) for each in seconds])))
    columns = ("mapping", "seeds", "median (range)")
    return _table(f"{variant}: a step of one seed, when several are trained", columns, rows)


def whole_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the times of whole trainings, from the start of the process."""
    rows, goals = [], []
    for name, runs in result["whole"].items():
        goals = list(runs[0]["reached"])
        finals = [run["final_test_accuracy"] for run in runs]
        rows.append(
            (
                name,
                str(len(runs)),
                *(_reached([run["reached"][goal] for run in runs]) for goal in goals),
                _seconds([run["seconds"] for run in runs]),
                f"{fmean(finals):.2f} %" + _range(finals, ".2f"),
            )
        )
    columns = ("", "n", *(f"to {goal} %" for goal in goals), "to the end", "mean final accuracy")
    return _table(f"{variant}: from the start of the process; medians (range)", columns, rows)


def failed_table(variant: str, result: dict[str, Any]) -> Table:
    """Return the failed jobs and the reasons."""
    return _table(f"{variant}: failed", ("job", "reason"), result["failed"].items())


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _reached(seconds: Sequence[float | None]) -> str:
    reached = [each for each in seconds if each is not None]
    if len(reached) < len(seconds):
        return f"in {len(reached)} of {len(seconds)}"
    return _seconds(reached)


def _seconds(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f} s" + _range(seconds, ".1f")


def _milliseconds(seconds: Sequence[float]) -> str:
    times = [1e3 * each for each in seconds]
    return f"{median(times):.2f} ms" + _range(times, ".2f")


def _range(values: Sequence[float], form: str) -> str:
    return f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
