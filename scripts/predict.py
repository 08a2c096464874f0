"""Reads digits from pictures: `python scripts/predict.py runs/gap-seed0 a.png b.jpg folder/ -`."""

import argparse
import functools
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.predict` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # Ctrl-C ends it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from command import failed, remember_compiled, run_main

from jaxmnist import pictures, predictions
from jaxmnist.pictures import PictureError
from jaxmnist.predictions import Predict

STDIN = "-"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    try:
        remember_compiled()
        return answer(arguments, load(arguments.run))
    except Exception as error:
        return failed(error, arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", type=Path, help="a run's folder; that of many seeds: they answer together"
    )
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="anything that Pillow reads, dark on light or light on dark; a folder: all that is "
        "in it; -: standard input",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each picture")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def load(path: Path) -> Predict:
    """The network, or the networks that answer together."""
    each = [predictions.make_predict(run) for run in predictions.load_runs(path)]
    return lambda pixels: predictions.together([predict(pixels) for predict in each])


def answer(arguments: argparse.Namespace, predict: Predict) -> int:
    """Prints an answer for each picture; returns 1 if there was one without."""
    status = 0
    for name, read in pictures_of(arguments.pictures):
        try:
            digit = read()
        except (PictureError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"error: {printable(name)}: {reason}", file=sys.stderr)
            status = 1
            continue
        probabilities = np.exp(predict(digit[None])[0].astype(float))
        print((json_line if arguments.json else text_line)(name, probabilities), flush=True)
    return status


def pictures_of(names: Sequence[str]) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Each picture's name, and what reads it: of folders, all their files."""
    for name in names:
        path = Path(name)
        if name == STDIN:
            yield name, read_stdin
        elif os.path.isdir(path):
            try:
                found = sorted(entry for entry in path.iterdir() if entry.is_file())
            except OSError as error:
                yield name, functools.partial(refuse, error)
                continue
            if not found:
                yield (
                    name,
                    functools.partial(refuse, PictureError("there is no file in this folder")),
                )
            for file in found:
                yield str(file), functools.partial(pictures.read, file)
        else:
            yield name, functools.partial(read_file, path)


def read_stdin() -> np.ndarray:
    """The picture in standard input."""
    if sys.stdin is None:
        raise PictureError("there is no standard input")
    return pictures.read(sys.stdin.buffer.read(pictures.MAX_BYTES + 1))


def read_file(path: Path) -> np.ndarray:
    """The picture in a file, not in what waits for others or never ends."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise PictureError("it is neither a file nor a folder")
    return pictures.read(path)


def refuse(error: Exception) -> np.ndarray:
    """Of what cannot be read."""
    raise error


def printable(name: str) -> str:
    """A name on one line, whatever is in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def text_line(name: str, probabilities: np.ndarray) -> str:
    """For people: the digit, and the probabilities of all in percent."""
    each = "  ".join(f"{digit}: {100 * p:.1f}" for digit, p in enumerate(probabilities))
    return f"{printable(name)}: {probabilities.argmax()}   (%  {each})"


def json_line(name: str, probabilities: np.ndarray) -> str:
    """For programs."""
    rounded = [round(float(p), 6) for p in probabilities]
    return json.dumps(
        {"file": name, "digit": int(probabilities.argmax()), "probabilities": rounded}
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
