"""What commands print, wherever that goes."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console
from support.tables import epochs_table, seeds_table

from jaxmnist.runs.setup import EpochDone, Started
from tests.conftest import SCRIPTS
from tests.test_display import row


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


# Before anything that takes long to import: `output` alone.
PRINTS = """
import sys
sys.path.insert(0, {scripts!r})
from support.output import lasting_output
with lasting_output() as output:
    for number in range(2000):
        print("a line of this many characters", number, {text!r})
        if number % 100 == 0:
            print("and an error", file=sys.stderr)
            sys.stdout.flush()
error = output and output.error
sys.exit(3 if error is None else 4 + isinstance(error, BrokenPipeError))
"""


def prints(stdout, text="", environment=(), shell="", **options):
    """Starts a process that prints much; what it prints to must not end it."""
    code = PRINTS.format(scripts=str(SCRIPTS), text=text)
    options = {"stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-c", code],
        stdout=stdout,
        env={**os.environ, **dict(environment)},
        **options,
    )


def test_a_closed_pipe():
    process = prints(subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"a line of this many characters 0 \n"
    process.stdout.close()
    assert process.wait(60) == 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk():
    with Path("/dev/full").open("wb") as full:
        assert prints(full).communicate(timeout=60)[1] == b"and an error\n" * 20
        process = prints(full, stderr=full)
        assert process.wait(60) == 4


def test_closed_streams():
    assert prints(None, shell=">&- 2>&-", stderr=None).wait(60) == 3


def test_a_pipe_that_does_not_block_loses_nothing():
    end, start = os.pipe()
    os.set_blocking(start, False)
    with prints(start) as process, open(end, "rb") as reader:
        os.close(start)
        threading.Event().wait(0.2)  # it fills the pipe
        assert len(reader.read().splitlines()) == 2000
        process.communicate(timeout=60)
        assert process.returncode == 3


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", "+- - ? ?"), ("latin-1", "± - ? ?"), ("utf-8", "± \u2212 数 ?")],
)
def test_characters_that_a_stream_cannot_encode(encoding, expected):
    text = "± \u2212 数 \udcff"
    process = prints(subprocess.PIPE, text, {"PYTHONIOENCODING": encoding}.items())
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert out.decode(encoding).splitlines()[0].endswith(f" 0 {expected}")


@pytest.mark.parametrize(
    ("error", "needs_output", "status", "said"),
    [
        (BrokenPipeError(32, "Broken pipe"), True, 0, ""),
        (None, True, 0, ""),
        (OSError(28, "No space left"), True, 1, "error: standard output: No space left\n"),
        (OSError(28, "No space left"), False, 0, "note: standard output: No space left\n"),
    ],
)
def test_the_exit_status_when_output_was_lost(
    monkeypatch, capsys, error, needs_output, status, said
):
    from support import command

    class Lost:
        """Stands for `lasting_output`."""

        def __enter__(self):
            self.error = error
            return self

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr(command, "lasting_output", Lost)
    monkeypatch.setattr(command, "silence_orbax_threads", lambda: None)
    assert command.run_main(lambda words: 0, needs_output) == status
    assert capsys.readouterr().err == said


NAMES = ["r[/x]", "runs/gap[fast]", "[bold]", "[red]a[/red]", ":smile:", "100%", "\\[x]", "{x}"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_names_are_printed_literally(name, is_terminal):
    from support import display

    console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal, color_system=None)
    with display.make_display(console, False, display.ProgressTracker([0], 15)) as shown:
        shown.show_data(name, 1, 2)
        shown.show(Started(Path(name), Path(name), 600, {0: 0}, 18, "loop", [name]))
        shown.show(EpochDone([row(0, 1, 99.0)]))
    text = console.file.getvalue()
    assert f"into {name}" in text
    assert f"note: {name}" in text


@pytest.mark.parametrize("width", [20, 40, 59, 72, 200])
def test_tables_keep_their_digits_on_any_terminal(width):
    from support import output

    summary = {
        "seeds": [4294967295],
        "final_train_accuracy": [98.154],
        "final_test_loss": [0.01956],
        "final_test_accuracy": [99.416],
        "best_test_accuracy": [99.43],
    }
    rows = [
        {
            **row(0, 1000, 99.416),
            "train_loss": 12.51234,
            "learning_rate": 5.67e-05,
            "images_per_second": 123456.7,
        }
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    output.print_table(console, seeds_table(summary))
    output.print_table(console, epochs_table(rows))
    words = console.file.getvalue().split()
    for figure in ("4294967295", "98.15", "0.0196", "99.42", "99.43"):
        assert figure in words
    for figure in ("1000", "12.5123", "98.00", "0.0300", "5.67e-05", "123,457"):
        assert figure in words
