"""Count the code that `train.py` runs: `python scripts/benchmark/code_path.py --variant gap`.

Print the number of lines in functions that run, by file, and the chain of calls from `main` to
`train_step`. Options are passed to `scripts/train.py`; one epoch of a few images is enough.
"""

import inspect
import sys
import threading
import traceback
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SCRIPTS = Path(__file__).resolve().parent.parent
ROOT = SCRIPTS.parent
FOLDERS = (str(ROOT / "jaxmnist"), str(SCRIPTS))


class Tracer:
    """Profile function that records every function of the project that runs."""

    def __init__(self):
        self.ran: set[CodeType] = set()
        self.way: list[str] = []  # from `main` to `train_step`

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record a function call; ignore the bodies of modules and classes."""
        code = frame.f_code
        if event == "call" and is_ours(code) and code.co_flags & inspect.CO_OPTIMIZED:
            self.ran.add(code)
            if code.co_name == "train_step" and not self.way:
                stack = [each.f_code for each, _ in traceback.walk_stack(frame)]
                names = [each.co_name for each in stack if is_ours(each)]
                self.way = names[names.index("main") :: -1]


def is_ours(code: CodeType) -> bool:
    """Return whether code belongs to the project."""
    return code.co_filename.startswith(FOLDERS)


def count_lines(ran: set[CodeType]) -> dict[str, int]:
    """Count the lines of the functions that ran, by file, each line once."""
    found: dict[str, set[int]] = defaultdict(set)
    for code in ran:
        lines, first = inspect.getsourcelines(code)
        found[code.co_filename].update(range(first, first + len(lines)))
    return {str(Path(file).relative_to(ROOT)): len(lines) for file, lines in found.items()}


def main() -> None:
    """Run the command under the tracer, and print the counts."""
    sys.path.insert(0, str(SCRIPTS))
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    import train

    train.main(sys.argv[1:])
    sys.setprofile(None)
    lines = count_lines(tracer.ran)
    for file, count in sorted(lines.items(), key=lambda item: -item[1]):
        print(f"{count:5} {file}")
    print(f"{sum(lines.values()):5} lines of functions in {len(lines)} files")
    print(f"{len(tracer.way) - 1} calls: {' -> '.join(tracer.way)}")


if __name__ == "__main__":
    main()
