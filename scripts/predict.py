"""Read digits from pictures: `python scripts/predict.py runs/gap-seed0 a.png b.jpg folder/ -`."""

import argparse
import functools
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.predict` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from support.command import Command, add_debug_option, run_main, use_compilation_cache

from jaxmnist.inference import pictures
from jaxmnist.inference.pictures import PictureError
from jaxmnist.inference.predict import Predict
from jaxmnist.inference.views import load_ensemble

STDIN = "-"
# Files of operating systems, in lower case, besides names that begin with a dot.
SYSTEM = {"thumbs.db", "desktop.ini"}

Read = Callable[[], list[np.ndarray]]


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        return print_predictions(arguments, load_ensemble(arguments.run))
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="a run's folder, or a pretrained network; several seeds form an ensemble",
    )
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="a file that Pillow reads, dark on light or light on dark; a folder, for all pictures "
        "below it; or -, for standard input",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each picture")
    add_debug_option(parser)
    return parser.parse_args(argv)


def print_predictions(arguments: argparse.Namespace, predict: Predict) -> int:
    """Print the predictions for each picture; return 1 if any picture fails."""
    status = 0
    for name, read in pictures_of(arguments.pictures):
        try:
            digits = np.stack(read())
        except (PictureError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"error: {printable(name)}: {reason}", file=sys.stderr)
            status = 1
            continue
        probabilities = np.exp(predict(digits).astype(float))
        for place, of_digit in enumerate(probabilities, 1):
            line = json_line if arguments.json else text_line
            print(line(name, of_digit, place, len(digits)), flush=True)
    return status


def pictures_of(names: Sequence[str]) -> Iterator[tuple[str, Read]]:
    """Yield each picture's name and the function that reads it; expand folders."""
    for name in names:
        if name == STDIN:
            yield name, read_stdin
        elif os.path.isdir(name):
            yield from pictures_in(name)
        else:
            yield name, functools.partial(read_file, Path(name))


def pictures_in(folder: str) -> Iterator[tuple[str, Read]]:
    """Yield the pictures in a folder and its subfolders, without system files."""
    errors: list[OSError] = []
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [each for each in folders if not is_system(each)]
        found += [Path(place, file) for file in files if not is_system(file)]
    for error in errors:
        yield str(error.filename), functools.partial(refuse, error)
    if not (found or errors):
        yield folder, functools.partial(refuse, PictureError("there is no file in this folder"))
    for file in sorted(found):
        yield str(file), functools.partial(read_file, file)


def is_system(name: str) -> bool:
    """Return whether operating systems create files or folders of this name."""
    return name.startswith(".") or name.lower() in SYSTEM or name == "__MACOSX"


def read_stdin() -> list[np.ndarray]:
    """Read the picture in standard input."""
    if sys.stdin is None:
        raise PictureError("there is no standard input")
    return pictures.read_all(sys.stdin.buffer.read(pictures.MAX_BYTES + 1))


def read_file(path: Path) -> list[np.ndarray]:
    """Read the picture in a file; reject pipes and devices, which may block or never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise PictureError("it is neither a file nor a folder")
    return pictures.read_all(path)


def refuse(error: Exception) -> list[np.ndarray]:
    """Raise the error of an unreadable picture."""
    raise error


def printable(name: str) -> str:
    """Return a name on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def text_line(name: str, probabilities: np.ndarray, place: int = 1, count: int = 1) -> str:
    """Return a line of text with the digit and all probabilities in percent."""
    each = "  ".join(f"{digit}: {100 * p:.1f}" for digit, p in enumerate(probabilities))
    which = f" (digit {place} of {count})" if count > 1 else ""
    return f"{printable(name)}{which}: {probabilities.argmax()}   (%  {each})"


def json_line(name: str, probabilities: np.ndarray, place: int = 1, count: int = 1) -> str:
    """Return a line of JSON, with the digit's place if the picture has several digits."""
    rounded = [round(float(p), 6) for p in probabilities]
    of_several = {"place": place, "count": count} if count > 1 else {}
    line = {"file": name, **of_several, "digit": int(probabilities.argmax())}
    return json.dumps({**line, "probabilities": rounded})


if __name__ == "__main__":
    sys.exit(run_main(main))
