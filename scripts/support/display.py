"""What a training shows while it goes on: a display that moves, lines, or nothing."""

import time
from collections.abc import Callable, Sequence

from jaxmnist.runs.summary import Row
from rich import progress
from rich.console import Console

from jaxmnist.config import spoken
from jaxmnist.runs.seeds import SeedDone, SeedsStarted
from jaxmnist.runs.training import EpochDone, Event, Failed, Progress, Started
from support.output import print_line
from support.tables import spread

# Without a terminal, a long epoch says this often that it is alive.
PLAIN_SECONDS = 30


class Tally:
    """What is known of the seeds in training.

    Args:
        seeds: theirs.
        epochs: of each.
    """

    def __init__(self, seeds: Sequence[int], epochs: int):
        self.epochs, self.count = epochs, len(seeds)
        self.total_steps = 0  # of one seed
        self.steps = dict.fromkeys(seeds, 0)
        self._latest: dict[int, Row] = {}
        self._first: tuple[float, int] | None = None  # when how many steps were done

    @property
    def is_of_many(self) -> bool:
        """Whether there are several seeds."""
        return self.count > 1

    @property
    def done(self) -> int:
        """Steps done, of all seeds."""
        return sum(self.steps.values())

    @property
    def total(self) -> int:
        """Steps of all seeds."""
        return self.total_steps * len(self.steps)

    @property
    def seeds_done(self) -> int:
        """How many seeds have made all their steps."""
        return sum(steps == self.total_steps for steps in self.steps.values())

    def take(self, event: Event | SeedsStarted | SeedDone) -> None:
        """Takes note of an event."""
        if isinstance(event, Started):
            self.total_steps = event.total_steps
            self.steps = dict.fromkeys(self.steps, event.step)
        elif isinstance(event, SeedsStarted):
            self.total_steps, self.steps = event.total_steps, dict(event.steps)
            self.count = len(event.steps)
        elif isinstance(event, EpochDone):
            rows = {row["seed"]: row for row in event.rows}
            self._latest |= {seed: row for seed, row in rows.items() if seed in self.steps}
        elif isinstance(event, Progress):
            self.steps |= dict.fromkeys(event.seeds, event.step)
            self._first = self._first or (time.monotonic(), self.done)
        elif isinstance(event, Failed):  # what it had left is not waited for
            self.steps.pop(event.seed, None)
            self._latest.pop(event.seed, None)

    def accuracy(self) -> str:
        """Mean and spread over the seeds that are furthest, as far as they are."""
        last = max((row["epoch"] for row in self._latest.values()), default=0)
        furthest = [row for row in self._latest.values() if row["epoch"] == last]
        if not furthest:
            return ""
        count = f"{len(furthest)} seed{'s' if len(furthest) > 1 else ''}"
        figures = spread([row["test_accuracy"] for row in furthest])
        return f"test {figures} % ({count}, epoch {last})"

    def time_left(self) -> str:
        """How long the rest will take, at the speed of so far."""
        if self._first is None or self.done <= self._first[1]:
            return ""
        begin, before = self._first
        seconds = (time.monotonic() - begin) / (self.done - before) * (self.total - self.done)
        return f"{seconds:.0f} s left" if seconds < 100 else f"{seconds / 60:.0f} min left"


class Silence:
    """Shows nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def show(self, event: Event | SeedsStarted | SeedDone) -> None:
        """Shows nothing."""

    def show_data(self, what: str, done: int, total: int) -> None:
        """Shows nothing."""


class Lines(Silence):
    """Shows a line an epoch, and a sign of life in long ones."""

    def __init__(self, console: Console, tally: Tally):
        self._console, self._tally = console, tally
        self._last = time.monotonic()
        self._what = ""

    def show(self, event: Event | SeedsStarted | SeedDone) -> None:
        """Prints the start, every epoch, and the progress now and then."""
        self._tally.take(event)
        if not isinstance(event, Progress | SeedDone):
            self._print(line_of(event, self._tally))
        elif isinstance(event, Progress) and time.monotonic() - self._last > PLAIN_SECONDS:
            self._print(
                f"{who(event.seeds, self._tally)}epoch {event.epoch}/{self._tally.epochs}, "
                f"step {event.step}/{self._tally.total_steps}: {figures(event)}"
            )

    def show_data(self, what: str, done: int, total: int) -> None:
        """Prints a line when something new is fetched or prepared, and now and then."""
        if what != self._what or time.monotonic() - self._last > PLAIN_SECONDS:
            self._what = what
            self._print(f"{what}: {done / total:.0%}")

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        print_line(self._console, line)


class Live(Silence):
    """Shows bars that move, and a line an epoch above them."""

    def __init__(self, console: Console, tally: Tally):
        self._console, self._tally = console, tally
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

    def show(self, event: Event | SeedsStarted | SeedDone) -> None:
        """Moves the bar; prints the start and every epoch."""
        tally = self._tally
        tally.take(event)
        if not isinstance(event, Progress | SeedDone):
            print_line(self._console, line_of(event, tally))
        if isinstance(event, Started | SeedsStarted):
            self._next_bar("compiling", tally.total, tally.done)
        elif isinstance(event, Progress) and self._task is not None:
            what = f"epoch {event.epoch}/{tally.epochs}"
            of_all = f"{tally.seeds_done}/{tally.count} seeds"
            self._bars.update(
                self._task,
                completed=tally.done,
                total=tally.total,
                description=of_all if tally.is_of_many else what,
                figures=(tally.is_of_many and tally.accuracy()) or figures(event),
            )

    def show_data(self, what: str, done: int, total: int) -> None:
        """Moves a bar, a new one for each thing that is fetched or prepared."""
        if self._task is None or self._bars.tasks[-1].description != what:
            self._next_bar(what, total)
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def _next_bar(self, description: str, total: int, done: int = 0) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(description, total=total, completed=done, figures="")


def make_display(console: Console, is_quiet: bool, tally: Tally) -> Silence:
    """The display for this output: live on a terminal, lines elsewhere, none if quiet."""
    if is_quiet:
        return Silence()
    return (Live if console.is_terminal else Lines)(console, tally)


def line_of(event: Started | SeedsStarted | EpochDone | Failed, tally: Tally) -> str:
    """An event in words."""
    if isinstance(event, Started):
        return started(event)
    if isinstance(event, SeedsStarted):
        return seeds_started(event)
    if isinstance(event, Failed):
        return f"seed {event.seed} failed: {event.reason}"
    row = event.rows[0]
    seeds = [row["seed"] for row in event.rows]
    line = f"{who(seeds, tally)}epoch {row['epoch']}/{tally.epochs}: {epoch_figures(event.rows)}"
    if tally.is_of_many and row["epoch"] == tally.epochs:
        left = f", {tally.time_left()}" if tally.done < tally.total else ""
        line += f"\n{tally.seeds_done} of {tally.count} seeds: {tally.accuracy()}{left}"
    return line


def who(seeds: Sequence[int], tally: Tally) -> str:
    """Of whom a line is, if there are several."""
    if not tally.is_of_many:
        return ""
    return f"seed{'s' if len(seeds) > 1 else ''} {spoken(seeds)}, "


def started(event: Started) -> str:
    """Where a run goes and where it goes on, and what there is to know about that."""
    what = (
        f"training {event.total_steps} steps over {event.train_count:,} images "
        f"into {event.out}{taken(event)}"
    )
    if event.step == event.total_steps:
        what = f"the run in {event.out} is finished: {event.total_steps} steps"
    elif event.step > 0:
        what += f", going on at step {event.step}"
    return with_remarks(what, event.remarks)


def seeds_started(event: SeedsStarted) -> str:
    """The same of several seeds."""
    done = sum(step == event.total_steps for step in event.steps.values())
    what = (
        f"training seeds {spoken(list(event.steps))} ({event.mapping}), {event.total_steps} steps "
        f"each over {event.train_count:,} images into {event.out}{taken(event)}"
    )
    if done == len(event.steps):
        what = f"the runs in {event.out} are finished: {done} of {done} seeds"
    elif any(event.steps.values()):
        total = event.total_steps * len(event.steps)
        what += f", going on at step {sum(event.steps.values())} of {total}, {done} seeds finished"
    return with_remarks(what, event.remarks)


def taken(event: Started | SeedsStarted) -> str:
    """Why a folder has another name than the wished one."""
    return "" if event.out == event.wished else f" ({event.wished} holds a run already)"


def with_remarks(what: str, remarks: Sequence[str]) -> str:
    """A line, and a line for each remark."""
    return "\n".join([what, *(f"note: {remark}" for remark in remarks)])


def figures(event: Progress) -> str:
    """The figures of a chunk."""
    return (
        f"loss {event.loss:.4f} {event.accuracy:.2f} % rate {event.learning_rate:.2g} "
        f"{event.images_per_second:,.0f} img/s"
    )


def epoch_figures(rows: Sequence[Row]) -> str:
    """The figures of an epoch, means and spreads if it is that of several seeds."""

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
