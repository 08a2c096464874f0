"""Code shared by commands: startup, options, signals, one-line errors, compiled programs."""

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
from typing import Any, Self

import platformdirs

from jaxmnist.config import ConfigError
from jaxmnist.parallel.devices import enable_compilation_cache, fix_flags
from jaxmnist.parallel.limits import cores
from jaxmnist.runs.loop import Stopped
from support.output import lasting_output

# JAX_ENABLE_X64 and similar variables must not change the results of commands.
fix_flags()

# Minimum free space for the compilation cache; the programs of `gap` take 0.6 MB.
CACHE_BYTES = 16 << 20

# Escape code that restores the cursor if the live display cannot.
SHOW_CURSOR = b"\x1b[?25h"
STDOUT = 1


def run_main(main: Callable[[Sequence[str]], int], needs_output: bool = True) -> int:
    """Run a command in this process.

    Args:
        main: the function from the command-line arguments to the exit status.
        needs_output: whether lost output, for example on a full disk, is an error. A reader that
            exits, such as `head`, is not.

    Returns:
        The exit status.
    """
    if "--debug" not in sys.argv:
        silence_orbax_threads()
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


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that reads images."""
    parser.add_argument("--data-dir", type=user_path, help="the folder of the TFDS data sets")
    parser.add_argument("--idx-dir", type=user_path, help="a folder with the four IDX files")
    add_debug_option(parser)


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Add the --debug option."""
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def user_path(words: str | Path) -> Path:
    """Return an option's path with `~` expanded, which a shell does not do in `--out=~/x`.

    Raises:
        argparse.ArgumentTypeError: the home directory cannot be found.
    """
    path = os.path.expanduser(words)
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"{words} begins with a home directory that cannot be found; write out the whole path"
        )
    return Path(path)


class Command:
    """Context of a command's body, which converts an error to one line and an exit status.

    Args:
        debug: whether to print the traceback too.
    """

    def __init__(self, debug: bool):
        self.status = 0
        self._debug = debug

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if self._debug:
            traceback.print_exception(error)
        print(f"error: {_line(error)}", file=sys.stderr)
        self.status = 2 if isinstance(error, ConfigError) else 1
        return True


class TrainingCommand(Command):
    """Command that Ctrl-C, SIGTERM and SIGHUP stop, in a training after the current chunk.

    A second signal ends the process immediately, and the last checkpoint stays valid. A second
    SIGHUP is ignored, since a shell sends two when its terminal is closed.

    Args:
        debug: whether to print the traceback of an error.
        describe_stop: returns the line to print for a KeyboardInterrupt or `Stopped`.
    """

    def __init__(self, debug: bool, describe_stop: Callable[[BaseException], str] | None = None):
        super().__init__(debug)
        self.training = False
        self._describe = describe_stop or _run_again
        self._stops = False
        self._received = signal.SIGINT
        self._before: dict[signal.Signals, Any] = {}

    def handle_signals(self) -> None:
        """Install the signal handlers until the context ends."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not isinstance(error, KeyboardInterrupt | Stopped):
            return super().__exit__(kind, error, trace)
        print(self._describe(error), file=sys.stderr)
        self.status = 128 + self._received
        return True

    def should_stop(self) -> bool:
        """Return whether a signal was received."""
        return self._stops

    def _receive(self, number: int, frame: object) -> None:
        self._stops, self._received = True, signal.Signals(number)
        # Python runs handlers only between calls into C code, which may take seconds.
        for each in self._before:
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        with contextlib.suppress(OSError):  # the terminal may be gone
            if os.isatty(STDOUT):
                os.write(STDOUT, SHOW_CURSOR)
        if not self.training:
            raise KeyboardInterrupt


def _run_again(stop: BaseException) -> str:
    return "stopped; to continue, run the same command again"


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Raise an error that names the extra to install, if a package is missing.

    Raises:
        ConfigError: a package of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install -e '.[{extra}]' installs it"
        ) from error


@contextlib.contextmanager
def suggest_out(folder: Path) -> Iterator[None]:
    """Raise an error that names --out, if a run's folder cannot be written.

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


def use_compilation_cache() -> None:
    """Store compiled programs in the user's cache folder; print a note if this fails."""
    try:
        folder = platformdirs.user_cache_path("jaxmnist")
        # Without a home directory, platformdirs raises RuntimeError or returns a literal ~/.cache.
        if not folder.is_absolute():
            raise RuntimeError(f"{folder} is not an absolute path; is HOME set?")
        keep_compiled_programs(folder / "compiled")
    except (OSError, RuntimeError) as error:
        print(f"note: compiled programs are not kept: {error}", file=sys.stderr)


def keep_compiled_programs(folder: Path) -> None:
    """Make JAX store compiled programs on disk, for faster starts.

    Raises:
        OSError: the folder cannot store them, for which JAX would print a warning per program.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        free = shutil.disk_usage(folder).free
    if free < CACHE_BYTES:
        reason = f"{os.strerror(errno.ENOSPC)} ({free} bytes free, wanted {CACHE_BYTES})"
        raise OSError(errno.ENOSPC, reason, str(folder))
    enable_compilation_cache(folder, len(cores()))


def silence_orbax_threads() -> None:
    """Drop the tracebacks of Orbax's threads, which one error line replaces.

    When a checkpoint cannot be written or read, every thread working on it prints a traceback, and
    TensorStore reports to an event loop that is already closed.
    """
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda unraisable: None
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _line(error: BaseException) -> str:
    """Return an error as one line."""
    words = " ".join(str(error).split())
    ours = type(error).__module__.split(".")[0] == "jaxmnist"
    if ours or isinstance(error, OSError):
        return words
    return f"{type(error).__name__}: {words} (--debug shows where)"
