"""Counts the code that `train.py` runs: `python scripts/benchmark/code_path.py --variant gap`.

Prints the lines of the project's functions that run, by file, and the calls from `main` to
`train_step`. The options are those of `scripts/train.py`; one epoch of a few images is enough.
"""

import ast
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
FOLDERS = (str(ROOT / "jaxmnist"), str(SCRIPTS))


class Tracer:
    """Profile function that records every definition of the project that runs."""

    def __init__(self):
        self.ran: set[tuple[str, int]] = set()  # file and first line
        self.way: list[str] = []  # from `main` to `train_step`

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a call."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(FOLDERS):
            return
        self.ran.add((code.co_filename, code.co_firstlineno))
        if code.co_name == "train_step" and not self.way:
            self.way = way_from_main(frame)


def way_from_main(frame: FrameType | None) -> list[str]:
    """Return the names of the project's functions on the stack, `main` first."""
    names = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(FOLDERS):
            names.append(frame.f_code.co_name)
        if names and names[-1] == "main":
            break
        frame = frame.f_back
    return names[::-1]


def lines_of(ran: set[tuple[str, int]]) -> dict[str, int]:
    """Count the lines of the functions and methods that ran, by file, each line once."""
    found: dict[str, int] = {}
    for file in sorted({file for file, _ in ran}):
        first_lines = {line for of, line in ran if of == file}
        lines: set[int] = set()
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.FunctionDef):
                start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if start in first_lines:
                    lines.update(range(start, (node.end_lineno or start) + 1))
        if lines:
            found[str(Path(file).relative_to(ROOT))] = len(lines)
    return found


def main() -> None:
    """Run the command under the tracer, and print the counts."""
    sys.path.insert(0, str(SCRIPTS))
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    import train

    train.main(sys.argv[1:])
    sys.setprofile(None)
    lines = lines_of(tracer.ran)
    for file, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{count:5} {file}")
    print(f"{sum(lines.values()):5} lines of functions in {len(lines)} files")
    print(f"{len(tracer.way) - 1} calls: {' -> '.join(tracer.way)}")


if __name__ == "__main__":
    main()
