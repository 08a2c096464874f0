"""Output of commands: printing never raises an error and never truncates text."""

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Replacements for characters that a stream cannot encode.
PLAIN = {"±": "+-", "−": "-", "–": "-", "×": "x"}  # noqa: RUF001 - these are the characters meant
# Minimum number of columns for a table; with fewer, rich would truncate numbers.
TABLE_WIDTH = 72


class Output(io.FileIO):
    """A file descriptor to which writing never fails.

    After an error, such as a closed pager or terminal or a full disk, everything written to the
    descriptor is dropped.
    """

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; return the number of bytes written or dropped."""
        try:
            while (count := super().write(content)) is None:
                select.select(
                    [], [self], []
                )  # the reader made the pipe non-blocking, and it is full
            return count
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(content).nbytes


@contextlib.contextmanager
def lasting_output() -> Iterator[Output | None]:
    """Replace standard output and standard error by streams that never raise.

    Yields:
        The `Output` of standard output; None if it was replaced before, as in a notebook.
    """
    codecs.register_error("jaxmnist.plain", _in_plain)
    before = sys.stdout, sys.stderr
    output, errors = (
        Output(stream.fileno()) if stream is not None and stream is original else None
        for stream, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    )
    sys.stdout, sys.stderr = _stream(output, sys.stdout), _stream(errors, sys.stderr)
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def make_console(quiet: bool = False) -> Console:
    """Return a console that prints `[`, `]` and `:` literally."""
    return Console(quiet=quiet, markup=False, emoji=False)


def print_line(console: Console, line: str) -> None:
    """Print text literally, without breaking long lines."""
    console.print(Text(line), soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Print a table with all digits of its numbers; a narrower terminal wraps its lines."""
    table.width = TABLE_WIDTH if console.width < TABLE_WIDTH else None
    console.print(table, crop=False)


def _stream(output: Output | None, stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the parent process
        return open(os.devnull, "w")
    if output is None:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=stream.encoding,
        errors="jaxmnist.plain",
        line_buffering=stream.line_buffering or stream.write_through,  # type: ignore[attr-defined]
    )


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in characters), error.end
