"""What the commands have in common: start, signals, errors in a line, compiled programs."""

import argparse
import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from jaxmnist.config import ConfigError
from jaxmnist.parallel.devices import fix_flags, keep_compiled
from jaxmnist.parallel.limits import cores
from jaxmnist.runs.training import Stopped
from support.output import lasting_output

# For commands: JAX_ENABLE_X64 and the like change no result.
fix_flags()

# Ample: what is compiled for `gap` takes 0.6 MB.
CACHE_BYTES = 16 << 20

# To a terminal, should the live display not come to it.
SHOW_CURSOR = b"\x1b[?25h"
STDOUT = 1


def run_main(main: Callable[[Sequence[str]], int], needs_output: bool = True) -> int:
    """Run a command as this process.

    Args:
        main: takes the words of the command line, and returns the exit status.
        needs_output: whether the command failed if its output is lost, as on a full disk. A reader
            that ends, as `head` does, has read enough.

    Returns:
        The exit status.
    """
    if "--debug" not in sys.argv:
        hush()
    with lasting_output() as output:
        status = main(sys.argv[1:])
        sys.stdout.flush()
        error = output.error if output else None
        if error is None or isinstance(error, BrokenPipeError):
            return status
        print(
            f"{'error' if needs_output else 'note'}: standard output: {error.strerror}",
            file=sys.stderr,
        )
        return max(status, 1) if needs_output else status


def user_path(words: str | Path) -> Path:
    """Return the path that an option names; a shell leaves the `~` of `--out=~/x` as it is.

    Raises:
        argparse.ArgumentTypeError: there is no such home directory.
    """
    path = os.path.expanduser(words)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"{words} begins with a home directory that cannot be found; write out the whole path"
        )
    return Path(path)


class Signals:
    """Ctrl-C, SIGTERM and SIGHUP: at once before the training, between two chunks during it.

    The second one ends the process whatever it does; the checkpoint before stays good. Not so of
    SIGHUP: a shell sends it again when its terminal is closed.
    """

    def __init__(self):
        self.training = False
        self._stops = False
        self._received = signal.SIGINT
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status of a process that stopped because of the signal."""
        return 128 + self._received

    def should_stop(self) -> bool:
        """Whether there was a signal."""
        return self._stops

    def _receive(self, number: int, frame: object) -> None:
        self._stops, self._received = True, signal.Signals(number)
        # Python would tell of the next one only between two calls, each of which may take seconds.
        for each in self._before:
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            if os.isatty(STDOUT):
                os.write(STDOUT, SHOW_CURSOR)
        if not self.training:
            raise KeyboardInterrupt


def until_stopped(run: Callable[[Signals], int], debug: bool) -> int:
    """Runs a command that does not do again what it has finished; returns its exit status."""
    with Signals() as signals:
        try:
            return run(signals)
        except (Stopped, KeyboardInterrupt):
            print("stopped; to go on, run the same command again", file=sys.stderr)
            return signals.status
        except Exception as error:
            return failed(error, debug)


def failed(error: Exception, debug: bool) -> int:
    """Says what went wrong; returns the exit status."""
    if debug:
        traceback.print_exc()
    print(f"error: {_line(error)}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Says how to install what is optional, where it is missing.

    Raises:
        ConfigError: a package of the extra is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install -e '.[{extra}]' installs it"
        ) from error


@contextlib.contextmanager
def needing_out(folder: Path) -> Iterator[None]:
    """Name the option --out where a run's folder cannot be written.

    Raises:
        ConfigError: the folder is read-only.
    """
    try:
        yield
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror}; pass --out FOLDER"
        ) from error


def remember_compiled() -> None:
    """Keeps compiled programs in the user's cache folder; if that cannot be, it says why."""
    try:
        folder = platformdirs.user_cache_path("jaxmnist")
        # Without a home directory platformdirs raises a RuntimeError, or returns ~/.cache as it is.
        if not folder.is_absolute():
            raise RuntimeError(f"{folder} is not an absolute path; is HOME set?")
        keep_compiled_programs(folder / "compiled")
    except (OSError, RuntimeError) as error:
        print(f"note: compiled programs are not kept: {error}", file=sys.stderr)


def keep_compiled_programs(folder: Path) -> None:
    """Lets JAX keep compiled programs on disk, so that the next start need not compile.

    Raises:
        OSError: they cannot be kept there; JAX would warn of every program, at length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    if free < CACHE_BYTES:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, wanted {CACHE_BYTES})"
        raise OSError(errno.ENOSPC, reason, str(folder))
    keep_compiled(folder, len(cores()))


def hush() -> None:
    """Keeps Orbax's threads from telling, at length, what is said in one line anyway.

    When a checkpoint cannot be written or read, every thread at work on it prints a traceback, and
    TensorStore reports to an event loop that is closed already.
    """
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda unraisable: None
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _line(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    ours = type(error).__module__.split(".")[0] == "jaxmnist"
    if ours or isinstance(error, OSError):
        return words
    return f"{type(error).__name__}: {words} (--debug shows where)"
