"""Trains networks over many seeds, all seven by default, and says what came of it.

`python scripts/drilldown.py --seeds 10` writes docs/results.json, docs/results.md, docs/figures/
and the table in README.md; with `--ablate gap` it trains gap with one thing changed at a time, and
writes docs/ablation.md. A seed that is in results.json is finished; all others are trained, and put
there as soon as they are.
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Neither `python -m scripts.drilldown` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # What follows takes a second to import, in which Ctrl-C should not print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from benchmark.networks import forward_flop
from rich.console import Console
from support.command import Signals, remember_compiled, run_main, until_stopped, user_path
from support.display import Tally, make_display
from support.output import make_console, print_line

from jaxmnist import VARIANTS, TrainConfig, data, train_seeds
from jaxmnist.analysis import report, results
from jaxmnist.analysis.plots import drilldown
from jaxmnist.analysis.results import IncompleteError, Rung
from jaxmnist.config import ConfigError, SeedsConfig, by_name, parse_seeds
from jaxmnist.models.description import describe
from jaxmnist.recipes import ABLATIONS, DATASETS
from jaxmnist.runs import run_folder
from jaxmnist.runs.seeds import SeedDone

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS, REPORT, FIGURES, RUNS = "results.json", "results.md", "figures", "runs"
ABLATION = "ablation.md"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    return until_stopped(lambda signals: run(arguments, make_console(), signals), arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", default="10", help="of each network: how many, as 10, or which, as 3,7,11"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        help="those to train, as skeleton,gap, or gap/record for another recipe; all seven",
    )
    what.add_argument(
        "--ablate", choices=ABLATIONS, help="train this one with one thing changed at a time"
    )
    what.add_argument(
        "--compare",
        nargs=2,
        action="append",
        metavar=("ONE", "OTHER"),
        help="say how two networks compare, and train nothing; may be repeated",
    )
    parser.add_argument(
        "--report", action="store_true", help="write the report anew, and train nothing"
    )
    parser.add_argument("--out", type=user_path, default=DOCS, help="where everything goes; docs/")
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0])
    parser.add_argument("--epochs", type=int, help="of each network, for a quick trial")
    parser.add_argument("--limit-train", type=int, help="train on so few images, for a quick trial")
    parser.add_argument("--data-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console, signals: Signals) -> int:
    """Does what the command line asks for."""
    if arguments.compare:
        found = results.read(arguments.out / RESULTS)
        for line in compared(found, arguments.compare):
            print_line(console, line)
        return 0
    write = write_ablation if arguments.ablate else write_report
    if arguments.report:
        write(arguments, console)
        return 0
    failures = train(arguments, console, signals)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        return 1
    try:
        write(arguments, console)
    except IncompleteError as incomplete:
        print_line(console, f"no report yet: {incomplete}")
    return 0


def compared(found: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence for each pair of networks, a table of all, and what its columns are."""
    pairs = [(by_name(one).name, by_name(other).name) for one, other in pairs]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    for one, other in pairs:
        if one == other:
            raise ConfigError(f"compare has {one} twice; expected two networks")
    rungs = dict(zip(names, results.rungs_of(found, names), strict=True))
    comparisons = report.compare([(rungs[one], rungs[other]) for one, other in pairs])
    sentences = map(report.sentence, comparisons)
    return [*sentences, "", report.steps_table(comparisons), "", report.STEPS_LEGEND]


def train(arguments: argparse.Namespace, console: Console, signals: Signals) -> list[str]:
    """Trains what is missing, the cheapest network first; returns what failed, and why."""
    configs = wanted(arguments)
    seeds = SeedsConfig(configs[0], parse_seeds(arguments.seeds, 0)).seeds
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / RESULTS
    # All that could be refused in the end, before hours are spent.
    results.check_together(configs)
    found = results.read(file)
    for config in configs:
        results.check_same(found, config, "this command")
    for text in [ablation_text(arguments.out)] if arguments.ablate else texts(arguments.out):
        report.fill(text, "")
    remember_compiled()
    failures = []
    for config in configs:
        found = results.read(file)  # others may add to it, too
        missing = results.missing(found, config.name, seeds)
        if not arguments.quiet:
            finished = f"{len(seeds) - len(missing)} of {len(seeds)} seeds finished"
            print_line(console, f"{config.name}: {finished}")
        if missing:
            try:
                failures += train_variant(arguments, console, signals, config, missing)
            except ConfigError as error:
                folder = folder_of_runs(arguments.out, config)
                failures.append(f"{config.name}: {error} (what was begun is in {folder})")
    return failures


def wanted(arguments: argparse.Namespace) -> list[TrainConfig]:
    """What is to be trained, the cheapest network first."""
    names = ABLATIONS[arguments.ablate] if arguments.ablate else arguments.variants.split(",")
    same = ("dataset", "epochs", "limit_train")
    configs = [
        by_name(name, **{field: getattr(arguments, field) for field in same}) for name in names
    ]
    return sorted(configs, key=lambda config: mflop_per_image(config.variant))


def train_variant(
    arguments: argparse.Namespace,
    console: Console,
    signals: Signals,
    config: TrainConfig,
    seeds: Sequence[int],
) -> list[str]:
    """Trains one network with each of the seeds; returns why some failed."""
    file, folder = arguments.out / RESULTS, folder_of_runs(arguments.out, config)
    seeds = sorted({*seeds, *begun_seeds(folder, config.name, results.read(file))})
    tally = Tally(seeds, config.epochs)
    with make_display(console, arguments.quiet, tally) as display:

        def report(event: Any) -> None:
            signals.training = True
            if isinstance(event, SeedDone):
                results.add(file, event.run, mflop_per_image(config.variant))
            display.show(event)

        done = train_seeds(
            config,
            seeds,
            out=folder,
            resume=folder.is_dir(),
            data_dir=arguments.data_dir,
            idx_dir=arguments.idx_dir,
            report=report,
            data_progress=display.show_data,
            should_stop=signals.should_stop,
        )
    signals.training = False
    if signals.should_stop():
        raise KeyboardInterrupt
    return [f"{config.name}, seed {seed}: {why}" for seed, why in done.failures.items()]


def folder_of_runs(out: Path, config: TrainConfig) -> Path:
    """Where the runs of a network and recipe are, until they are in the results."""
    return out / RUNS / config.name.replace("/", "-")


def begun_seeds(folder: Path, name: str, found: dict[str, Any]) -> list[int]:
    """The seeds that a stopped drill-down has begun; what is in the results needs no run folder."""
    if not folder.is_dir():
        return []
    with run_folder.locked(folder):
        begun = [int(path.name.removeprefix("seed")) for path in run_folder.seed_folders(folder)]
        unfinished = results.missing(found, name, begun)
        for seed in set(begun) - set(unfinished):
            shutil.rmtree(run_folder.seed_folder(folder, seed))
        # It names the seeds of then; those that go on have a config of their own.
        (folder / run_folder.CONFIG).unlink(missing_ok=True)
        if not unfinished:
            shutil.rmtree(folder)
    return unfinished


def mflop_per_image(variant: str) -> float:
    """Millions of additions and multiplications of a network's forward pass."""
    return sum(map(forward_flop, describe(variant))) / 1e6


def texts(out: Path) -> list[Path]:
    """The texts with a block for results: the report, and README.md if this is docs/."""
    report = text_of(out / REPORT, "Results")
    return [report, ROOT / "README.md"] if out.resolve() == DOCS.resolve() else [report]


def ablation_text(out: Path) -> Path:
    """The text with a block for an ablation."""
    return text_of(out / ABLATION, "Ablation")


def text_of(file: Path, title: str) -> Path:
    """A text that has a block for results: as it is, or made with nothing else."""
    if not file.exists():
        run_folder.write(file, f"# {title}\n\n{report.BEGIN}\n{report.END}\n")
    return file


def write_report(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the tables and figures of what is in the results."""
    found = results.read(arguments.out / RESULTS)
    rungs = results.ladder(found)
    recipes = results.other_recipes(found)
    images = data.load(rungs[0].dataset, arguments.data_dir, arguments.idx_dir).train_images
    blocks = (report.results_block(rungs, recipes), report.readme_block([*rungs, *recipes]))
    filled = {
        text: report.fill(text, block)
        for text, block in zip(texts(arguments.out), blocks, strict=False)
    }
    for text, content in filled.items():
        run_folder.write(text, content)
    drilldown.draw_all(rungs, images, arguments.out / FIGURES, results.digest(found))
    say_written(console, arguments.out / REPORT, [*rungs, *recipes])


def write_ablation(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the tables of an ablation, of what is in the results."""
    rungs = results.rungs_of(results.read(arguments.out / RESULTS), ABLATIONS[arguments.ablate])
    text = ablation_text(arguments.out)
    run_folder.write(text, report.fill(text, report.ablation_block(rungs)))
    say_written(console, text, rungs)


def say_written(console: Console, report: Path, rungs: Sequence[Rung]) -> None:
    """Says where the report is, and how many runs are in it."""
    count = sum(len(rung.runs) for rung in rungs)
    print_line(console, f"{count} runs: {report}")


if __name__ == "__main__":
    sys.exit(run_main(main))
