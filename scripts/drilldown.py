"""Train networks over many seeds, by default all seven, and report the results.

`python scripts/drilldown.py --seeds 10` writes docs/results.json, docs/results.md, docs/figures/
and the tables in README.md and docs/drill-down.md. `--ablate gap` trains gap with one change at a
time and writes docs/ablation.md. `--holdout 5000 gap/record gap/record/no_decay` compares recipes
on images held out of the training set, without reading the test set, and writes docs/search.jsonl.
`--robustness` measures networks on shifted test images and writes docs/robustness.md. Finished
seeds are not trained again.
"""

import argparse
import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

if __name__ == "__main__":
    # Neither `python -m scripts.drilldown` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

from rich.console import Console
from support.command import (
    TrainingCommand,
    add_common_options,
    run_main,
    use_compilation_cache,
    user_path,
)
from support.digits import prepared_digits
from support.display import ProgressTracker, make_display
from support.networks import read_config
from support.output import make_console, print_line, print_table
from support.tables import make_table

from jaxmnist import VARIANTS, Callbacks, Run, RunOptions, TrainConfig, data
from jaxmnist import train as train_run
from jaxmnist.analysis import held_out, report, results, robustness, robustness_report, stats
from jaxmnist.analysis.plots import drilldown
from jaxmnist.analysis.plots.robustness import accuracy_by_strength
from jaxmnist.analysis.plots.style import save
from jaxmnist.analysis.results import IncompleteError, Results, VariantResults
from jaxmnist.analysis.robustness import Measured
from jaxmnist.config import ConfigError, check_seeds, parse_experiment, parse_seeds
from jaxmnist.inference.predict import DIGITS, make_predict
from jaxmnist.models import model_of
from jaxmnist.models.description import mflop_per_image
from jaxmnist.recipes import ABLATIONS, DATASETS
from jaxmnist.runs import run_folder
from jaxmnist.runs.loop import FAILURES
from jaxmnist.runs.setup import SeedDone

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS, REPORT, PLOTS, RUNS = "results.json", "results.md", "figures", "runs"
ABLATION, SEARCH, TOUR = "ablation.md", "search.jsonl", "drill-down.md"
MEASUREMENTS, ROBUSTNESS = "robustness.json", "robustness.md"
FIRST_HELD_OUT_SEED = 100  # the seeds in results.json must not influence choices


class Store(NamedTuple):
    """The file of finished runs."""

    missing: Callable[[TrainConfig, Sequence[int]], list[int]]
    add: Callable[[Run], None]


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with TrainingCommand(arguments.debug) as command:
        command.handle_signals()
        return run(arguments, make_console(), command)
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a variant to train, optionally with a recipe or changes to it, such as gap/record or "
        "gap/no_dropout, or a file with your own network; by default the seven variants (with "
        "--robustness without skeleton, and with gap/record)",
    )
    parser.add_argument(
        "--seeds", help="the seeds of each: a count, by default 10 (2 with --holdout), or a list"
    )
    add_actions(parser)
    parser.add_argument("--folds", type=int, default=2, help="the number of held-out folds")
    parser.add_argument("--report", action="store_true", help="only write or print the report")
    parser.add_argument(
        "--out", type=user_path, default=DOCS, help="the output folder; by default docs/"
    )
    parser.add_argument("--dataset", choices=DATASETS, default=DATASETS[0], help="the data set")
    parser.add_argument("--epochs", type=int, help="epochs of each network, for a quick trial")
    parser.add_argument("--limit-train", type=int, help="number of training images, for a trial")
    parser.add_argument("--quiet", action="store_true", help="print only the result")
    add_common_options(parser)
    return parser.parse_args(argv)


def add_actions(parser: argparse.ArgumentParser) -> None:
    """Add the options that replace the report of the seven variants by another."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ablate", choices=ABLATIONS, help="train this network and its ablations")
    what.add_argument(
        "--holdout",
        type=int,
        metavar="N",
        help="test on N held-out training images; the first NAME is the baseline",
    )
    what.add_argument(
        "--robustness",
        action="store_true",
        help="measure each network on rotated, moved, noisy and otherwise shifted test images",
    )
    what.add_argument(
        "--compare",
        nargs=2,
        action="append",
        metavar=("ONE", "OTHER"),
        help="compare two networks without training; may be repeated",
    )


def run(arguments: argparse.Namespace, console: Console, command: TrainingCommand) -> int:
    """Run the requested actions; return the exit status."""
    if arguments.compare:
        print_line(console, compare(results.read(arguments.out / RESULTS), arguments.compare))
        return 0
    write = write_report
    if arguments.holdout:
        write = print_comparison
    elif arguments.ablate:
        write = write_ablation
    elif arguments.robustness:
        write = write_robustness
    if arguments.report:
        write(arguments, console)
        return 0
    failures = train(arguments, console, command)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures and not arguments.holdout:
        return 1
    try:
        write(arguments, console)
    except IncompleteError as incomplete:
        print_line(console, f"no report yet: {incomplete}")
    return 1 if failures else 0


def compare(found: Results, names: Sequence[tuple[str, str]]) -> str:
    """Return a sentence for each pair of networks, a table of all pairs, and its legend.

    Raises:
        ConfigError: a network is compared with itself, does not exist, or has no run.
    """
    # A network of the user is known by its runs only.
    pairs = [
        [name if name in found else parse_experiment(name).name for name in pair] for pair in names
    ]
    for one, other in pairs:
        if one == other:
            raise ConfigError(f"compare has {one} twice; expected two networks")
    comparisons = report.compare([results.select(found, pair) for pair in pairs])
    sentences = map(report.sentence, comparisons)
    return "\n".join([*sentences, "", report.steps_table(comparisons), "", report.STEPS_LEGEND])


def requested(arguments: argparse.Namespace) -> list[TrainConfig]:
    """Return the configs that the command line names, in its order.

    Raises:
        ConfigError: a name does not exist or is repeated, or the number of folds is invalid.
    """
    if arguments.folds < 1:
        raise ConfigError(f"folds is {arguments.folds}; expected a whole number of at least 1")
    default = robustness.DEFAULT if arguments.robustness else VARIANTS
    names = ABLATIONS[arguments.ablate] if arguments.ablate else arguments.names or default
    fields = {
        name: getattr(arguments, name) for name in ("dataset", "epochs", "limit_train", "holdout")
    }
    configs = [read_config(name, **fields) for name in names]
    for config in configs:
        if configs.count(config) > 1:
            raise ConfigError(f"{config.name} is listed twice; expected each name once")
    return configs


def train(arguments: argparse.Namespace, console: Console, command: TrainingCommand) -> list[str]:
    """Train the missing runs, the cheapest network first; return the failures."""
    configs = requested(arguments)
    many = arguments.seeds or ("2" if arguments.holdout else "10")
    seeds = check_seeds(parse_seeds(many, FIRST_HELD_OUT_SEED if arguments.holdout else 0))
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = open_store(arguments, configs)
    if arguments.holdout:
        folds = range(arguments.folds)
        configs = [dataclasses.replace(config, fold=fold) for config in configs for fold in folds]
    else:
        configs = sorted(configs, key=lambda config: mflop_per_image(model_of(config)))
    use_compilation_cache()
    failures = []
    for config in configs:
        missing = store.missing(config, seeds)  # other processes may add to the file
        if not arguments.quiet:
            finished = f"{len(seeds) - len(missing)} of {len(seeds)} seeds finished"
            print_line(console, f"{title_of(config)}: {finished}")
        if missing:
            try:
                failures += train_missing(arguments, console, command, store, config, missing)
            except ConfigError as error:
                folder = folder_of_runs(arguments.out, config)
                failures.append(f"{title_of(config)}: {error} (unfinished runs are in {folder})")
    return failures


def open_store(arguments: argparse.Namespace, configs: Sequence[TrainConfig]) -> Store:
    """Return the file of finished runs, after all checks that the final report makes.

    Raises:
        ConfigError: the configs do not match each other or the runs in the file.
    """
    module, file = held_out, arguments.out / SEARCH
    if arguments.robustness:
        module, file = robustness, arguments.out / MEASUREMENTS
        robustness.check_mix(file, configs)
    elif not arguments.holdout:
        module, file = results, arguments.out / RESULTS
        results.check_mix(results.read(file), configs)
    if not arguments.holdout:
        for document in documents(arguments):
            report.fill(document, "")
    add = functools.partial(module.add, file)
    if arguments.robustness:
        add = functools.partial(measure, arguments)
    return Store(functools.partial(module.missing, file), add)


def measure(arguments: argparse.Namespace, run: Run) -> None:
    """Measure a trained network on shifted images, and add the measurement to the file."""
    file, config = arguments.out / MEASUREMENTS, run.config
    if not robustness.missing(file, config, [config.seed]):  # another process was faster
        return
    images = data.load(config.dataset, arguments.data_dir, arguments.idx_dir)
    digits = prepared_digits() if config.dataset == DIGITS else None
    measured = robustness.measure(make_predict(run), images.test_images, images.test_labels, digits)
    robustness.add(file, run, measured)


def train_missing(
    arguments: argparse.Namespace,
    console: Console,
    command: TrainingCommand,
    store: Store,
    config: TrainConfig,
    seeds: Sequence[int],
) -> list[str]:
    """Train one network with each seed; return the failures."""
    folder = folder_of_runs(arguments.out, config)
    seeds = sorted({*seeds, *begun_seeds(folder, store, config)})
    tracker = ProgressTracker(seeds, config.epochs)
    with make_display(console, arguments.quiet, tracker) as display:

        def report(event: Any) -> None:
            command.training = True
            if isinstance(event, SeedDone):
                store.add(event.run)
            display.show(event)

        options = RunOptions(arguments.data_dir, arguments.idx_dir, resume=folder.is_dir())
        callbacks = Callbacks(report, display.show_data, command.should_stop)
        try:
            failures = train_run(config, folder, seeds, options, callbacks).failures
        except FAILURES as error:  # raised for a single seed
            failures = {seeds[0]: str(error)}
    command.training = False
    if command.should_stop():
        raise KeyboardInterrupt
    return [f"{title_of(config)}, seed {seed}: {why}" for seed, why in failures.items()]


def title_of(config: TrainConfig) -> str:
    """Return the name of a config, and its fold if images are held out."""
    return config.name if config.holdout is None else f"{config.name}, fold {config.fold}"


def folder_of_runs(out: Path, config: TrainConfig) -> Path:
    """Return the folder of a config's runs that are not yet in the file of finished runs."""
    name = config.name.replace("/", "-")
    held = "" if config.holdout is None else f"-{config.holdout}-{config.epochs}-{config.fold}"
    return out / RUNS / f"{name}{held}"


def begun_seeds(folder: Path, store: Store, config: TrainConfig) -> list[int]:
    """Return the unfinished seeds of a stopped command; remove the finished ones."""
    if not folder.is_dir():
        return []
    with run_folder.locked(folder):
        begun = run_folder.seeds_with_checkpoints(folder)
        unfinished = store.missing(config, begun)
        for seed in set(begun) - set(unfinished):
            shutil.rmtree(run_folder.checkpoint_folder(folder, seed))
        if unfinished:  # config.json lists the seeds at that time
            first = dataclasses.replace(config, seed=unfinished[0])
            run_folder.write_config(folder, first, unfinished)
        else:
            shutil.rmtree(folder)
    return unfinished


def documents(arguments: argparse.Namespace) -> list[Path]:
    """Return the documents with a block for results; create the first if it is missing."""
    name, title = REPORT, "Results"
    if arguments.ablate:
        name, title = ABLATION, "Ablation"
    elif arguments.robustness:
        name, title = ROBUSTNESS, "What the test set does not show"
    file = arguments.out / name
    if not file.exists():
        run_folder.write(file, f"# {title}\n\n{report.BEGIN}\n{report.END}\n")
    in_docs = arguments.out.resolve() == DOCS.resolve()
    more = [ROOT / "README.md", DOCS / TOUR] if in_docs and name == REPORT else []
    return [file, *more]


def write_report(arguments: argparse.Namespace, console: Console) -> None:
    """Write the tables and plots of all finished runs."""
    found = results.read(arguments.out / RESULTS)
    seven = results.seven_variants(found)
    networks = [*seven, *(recipes := results.other_recipes(found))]
    dataset = seven[0].config.dataset
    images = data.load(dataset, arguments.data_dir, arguments.idx_dir).train_images
    blocks = (
        report.results_block(seven, recipes),
        report.readme_block(networks),
        report.layers_block(),
    )
    drilldown.draw_all(seven, images, arguments.out / PLOTS, results.digest(found))
    write_documents(arguments, console, networks, blocks)


def write_ablation(arguments: argparse.Namespace, console: Console) -> None:
    """Write the tables of an ablation."""
    found = results.read(arguments.out / RESULTS)
    networks = results.select(found, ABLATIONS[arguments.ablate])
    write_documents(arguments, console, networks, [report.ablation_block(networks)])


def write_robustness(arguments: argparse.Namespace, console: Console) -> None:
    """Write the tables and the plot of all measurements."""
    file, folder = arguments.out / MEASUREMENTS, arguments.out / PLOTS
    networks = list(robustness.read(file).values())
    block = robustness_report.block(networks)
    folder.mkdir(exist_ok=True)
    digest = robustness.digest(file)
    save(lambda: accuracy_by_strength(networks), folder / "robustness.svg", digest)
    write_documents(arguments, console, networks, [block])


def write_documents(
    arguments: argparse.Namespace,
    console: Console,
    networks: Sequence[VariantResults | Measured],
    blocks: Sequence[str],
) -> None:
    """Write the blocks into all documents or none; print the number of runs."""
    files = documents(arguments)
    texts = [report.fill(file, block) for file, block in zip(files, blocks, strict=False)]
    for file, text in zip(files, texts, strict=True):
        run_folder.write(file, text)
    count = sum(len(network.runs) for network in networks)
    print_line(console, f"{count} runs: {files[0]}")


def print_comparison(arguments: argparse.Namespace, console: Console) -> None:
    """Compare each config with the first one, on folds and seeds that both have; print a table.

    Raises:
        ConfigError: there is no finished run of the first config.
    """
    file, configs = arguments.out / SEARCH, requested(arguments)
    first = held_out.by_run(file, configs[0])
    if not first:
        raise ConfigError(
            f"{file} has no finished run of {configs[0].name}, which is to be compared with; leave "
            "--report out to train it"
        )
    rows = []
    for config in configs:
        losses, accuracies, seconds = (
            {
                run: value
                for run, value in held_out.by_run(file, config, metric).items()
                if run in first
            }
            for metric in ("final_test_loss", "final_test_accuracy", "train_seconds")
        )
        if not losses:
            continue
        of_folds = held_out.over_folds(losses)
        difference, p = held_out.compare(first, losses)
        rows.append(
            (
                config.name,
                str(config.epochs),
                str(len(of_folds)),
                f"{fmean(of_folds):.4f}",
                "" if config == configs[0] else f"{difference:+.4f}",
                "" if config == configs[0] else report.p_value(p),
                f"{fmean(held_out.over_folds(accuracies)):.2f}",
                f"{fmean(seconds.values()):.0f}",
            )
        )
    columns = ("name", "epochs", "n", "loss", "difference", "p", "%", "s")
    caption = legend(configs[0].holdout or 0)
    print_table(console, make_table(columns, rows, texts=1, caption=caption))


def legend(count: int) -> str:
    """Return the legend of the comparison: its columns, and the assumptions of p-values."""
    return (
        f"loss and %: on {count:,} held-out training images a fold. n: folds, "
        "each the mean of its seeds, because they share its images. p: paired t-test "
        "over folds, of each line alone. It assumes that the folds' differences are normally "
        "distributed. Without that, 2 folds show nothing (sign-flip test: p is at least 0.5), and "
        f"it takes at least {stats.seeds_to_show()} to show anything."
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
