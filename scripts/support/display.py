"""Progress output of a training: a live display, lines, or nothing."""

import time
from collections.abc import Callable, Sequence

from rich import progress
from rich.console import Console

from jaxmnist.config import format_seeds
from jaxmnist.runs.setup import EpochDone, Event, Failed, Progress, Started
from jaxmnist.runs.summary import Row
from support.output import print_line
from support.tables import spread

# Interval between progress lines in a long epoch, without a terminal.
PLAIN_SECONDS = 30


class ProgressTracker:
    """Tracker of the progress of all seeds.

    Args:
        seeds: the seeds in training.
        epochs: the epochs of each seed.
    """

    def __init__(self, seeds: Sequence[int], epochs: int):
        self.epochs, self.count = epochs, len(seeds)
        self.total_steps = 0  # of one seed
        self.steps = dict.fromkeys(seeds, 0)
        self._latest: dict[int, Row] = {}
        self._first: tuple[float, int] | None = None  # time and steps done, at first

    @property
    def is_of_many(self) -> bool:
        """True for several seeds."""
        return self.count > 1

    @property
    def done(self) -> int:
        """The total number of steps done, over all seeds."""
        return sum(self.steps.values())

    @property
    def total(self) -> int:
        """The total number of steps, over all seeds."""
        return self.total_steps * len(self.steps)

    @property
    def seeds_done(self) -> int:
        """The number of finished seeds."""
        return sum(steps == self.total_steps for steps in self.steps.values())

    def take(self, event: Event) -> None:
        """Update the progress from an event."""
        if isinstance(event, Started):
            self.total_steps, self.steps = event.total_steps, dict(event.steps)
            self.count = len(event.steps)
        elif isinstance(event, EpochDone):
            rows = {row["seed"]: row for row in event.rows}
            self._latest |= {seed: row for seed, row in rows.items() if seed in self.steps}
        elif isinstance(event, Progress):
            self.steps |= dict.fromkeys(event.seeds, event.step)
            self._first = self._first or (time.monotonic(), self.done)
        elif isinstance(event, Failed):  # its remaining steps no longer count
            self.steps.pop(event.seed, None)
            self._latest.pop(event.seed, None)

    def accuracy(self) -> str:
        """Return the mean and standard deviation over seeds at the latest epoch."""
        last = max((row["epoch"] for row in self._latest.values()), default=0)
        furthest = [row for row in self._latest.values() if row["epoch"] == last]
        if not furthest:
            return ""
        count = f"{len(furthest)} seed{'s' if len(furthest) > 1 else ''}"
        figures = spread([row["test_accuracy"] for row in furthest])
        return f"test {figures} % ({count}, epoch {last})"

    def time_left(self) -> str:
        """Return the estimated time left, from the speed so far."""
        if self._first is None or self.done <= self._first[1]:
            return ""
        begin, before = self._first
        seconds = (time.monotonic() - begin) / (self.done - before) * (self.total - self.done)
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"


class Silence:
    """Display that shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def show(self, event: Event) -> None:
        """Ignore an event."""

    def show_data(self, what: str, done: int, total: int) -> None:
        """Ignore the progress of downloading or preparing data."""


class Lines(Silence):
    """Display of a line per epoch, and of progress lines in long epochs."""

    def __init__(self, console: Console, tracker: ProgressTracker):
        self._console, self._tracker = console, tracker
        self._last = time.monotonic()
        self._what = ""

    def show(self, event: Event) -> None:
        """Print the start, every epoch, and the progress at intervals."""
        tracker = self._tracker
        tracker.take(event)
        if isinstance(event, Started | EpochDone | Failed):
            self._print(line_of(event, tracker))
        elif isinstance(event, Progress) and time.monotonic() - self._last > PLAIN_SECONDS:
            self._print(
                f"{who(event.seeds, tracker)}epoch {event.epoch}/{tracker.epochs}, "
                f"step {event.step}/{tracker.total_steps}: {figures(event)}"
            )

    def show_data(self, what: str, done: int, total: int) -> None:
        """Print a line for each new item that is downloaded or prepared, and at intervals."""
        if what != self._what or time.monotonic() - self._last > PLAIN_SECONDS:
            self._what = what
            self._print(f"{what}: {done / total:.0%}")

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print_line(self._console, line)


class Live(Silence):
    """Display of a progress bar, with a line per epoch above it."""

    def __init__(self, console: Console, tracker: ProgressTracker):
        self._console, self._tracker = console, tracker
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=12),
            progress.TextColumn("{task.fields[figures]}", markup=False),
            progress.TimeRemainingColumn(),
            console=console,
        )
        self._task: progress.TaskID | None = None

    def __enter__(self):
        self._bars.start()
        return self

    def __exit__(self, *exception):
        self._bars.stop()

    def show(self, event: Event) -> None:
        """Update the bar; print the start and every epoch."""
        tracker = self._tracker
        tracker.take(event)
        if isinstance(event, Started | EpochDone | Failed):
            print_line(self._console, line_of(event, tracker))
        if isinstance(event, Started):
            self._next_bar("compiling", tracker.total, tracker.done)
        elif isinstance(event, Progress) and self._task is not None:
            what = f"epoch {event.epoch}/{tracker.epochs}"
            of_all = f"{tracker.seeds_done}/{tracker.count} seeds"
            self._bars.update(
                self._task,
                completed=tracker.done,
                total=tracker.total,
                description=of_all if tracker.is_of_many else what,
                figures=(tracker.is_of_many and tracker.accuracy()) or figures(event),
            )

    def show_data(self, what: str, done: int, total: int) -> None:
        """Update the bar; start a new one for each item downloaded or prepared."""
        if self._task is None or self._bars.tasks[-1].description != what:
            self._next_bar(what, total)
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def _next_bar(self, description: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(description, total=total, completed=done, figures="")


def make_display(console: Console, is_quiet: bool, tracker: ProgressTracker) -> Silence:
    """Return the display: live on a terminal, lines elsewhere, silent if quiet."""
    if is_quiet:
        return Silence()
    return (Live if console.is_terminal else Lines)(console, tracker)


def line_of(event: Started | EpochDone | Failed, tracker: ProgressTracker) -> str:
    """Return the line to print for an event."""
    if isinstance(event, Started):
        return started(event)
    if isinstance(event, Failed):
        return f"seed {event.seed} failed: {event.reason}"
    row = event.rows[0]
    seeds = [row["seed"] for row in event.rows]
    line = (
        f"{who(seeds, tracker)}epoch {row['epoch']}/{tracker.epochs}: {epoch_figures(event.rows)}"
    )
    if tracker.is_of_many and row["epoch"] == tracker.epochs:
        left = f", {tracker.time_left()}" if tracker.done < tracker.total else ""
        line += f"\n{tracker.seeds_done} of {tracker.count} seeds: {tracker.accuracy()}{left}"
    return line


def who(seeds: Sequence[int], tracker: ProgressTracker) -> str:
    """Return the prefix of a line about some seeds; empty for a run of one seed."""
    if not tracker.is_of_many:
        return ""
    return f"seed{'s' if len(seeds) > 1 else ''} {format_seeds(seeds)}, "


def started(event: Started) -> str:
    """Return the lines about a run's folder, its first step, and its warnings."""
    done = sum(step == event.total_steps for step in event.steps.values())
    seeds, before = list(event.steps), sum(event.steps.values())
    steps = f"{event.total_steps} steps"
    if done == len(seeds) == 1:
        line = f"the run in {event.out} is finished: {steps}"
    elif done == len(seeds):
        line = f"the runs in {event.out} are finished: {done} of {done} seeds"
    else:
        what = f"seeds {format_seeds(seeds)} ({event.mapping}), {steps} each"
        taken = "" if event.out == event.requested else f" ({event.requested} holds a run already)"
        line = (
            f"training {steps if len(seeds) == 1 else what} over {event.train_count:,} images "
            f"into {event.out}{taken}"
        )
        if before and len(seeds) == 1:
            line += f", continuing at step {before}"
        elif before:
            total = event.total_steps * len(seeds)
            line += f", continuing at step {before} of {total}, {done} seeds finished"
    return "\n".join([line, *(f"note: {warning}" for warning in event.warnings)])


def figures(event: Progress) -> str:
    """Return the metrics of a chunk as text."""
    return (
        f"loss {event.loss:.4f} {event.accuracy:.2f} % rate {event.learning_rate:.2g} "
        f"{event.images_per_second:,.0f} img/s"
    )


def epoch_figures(rows: Sequence[Row]) -> str:
    """Return the metrics of an epoch as text, as mean ± standard deviation for several seeds."""

    def of_all(name: str, show: Callable[[Sequence[float]], str]) -> str:
        values = [row[name] for row in rows if row[name] is not None]
        return show(values) if values else "-"

    def loss(values: Sequence[float]) -> str:
        return spread(values, digits=4)

    seconds = sum(row["train_seconds"] for row in rows)
    return (
        f"train loss {of_all('train_loss', loss)}, {of_all('train_accuracy', spread)} %; "
        f"test loss {of_all('test_loss', loss)}, {of_all('test_accuracy', spread)} %; "
        f"{seconds:.1f} s"
    )
