"""Docstrings are plain technical English: a verb and its object, and no odd turns."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "jaxmnist").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
# A docstring that begins so is a relative clause, or has no subject.
BEGINNINGS = re.compile(r"(What|Of|Who|That|How|Where|Whether|So|It|Theirs|Says|Tells)\b")
# A function's begins with its verb, in the imperative.
NO_VERB = re.compile(r"(The|A|An|One|Each|All|Every|Another|This|Its|Same|Returns|Reads|Writes)\b")
TURNS = re.compile(
    r"\b(so many|but for|comes of|came of|without a word|theirs|what there is|(is|are|was) said)\b",
    re.IGNORECASE,
)


def documented(path):
    """Every definition of a file, and its docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield node, ast.get_docstring(node) or ""


def is_property(node):
    return any("property" in ast.unparse(each) for each in getattr(node, "decorator_list", []))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_docstrings_are_plain_english(path):
    for node, text in documented(path):
        place = f"{path.name}:{getattr(node, 'lineno', 1)}: {text[:60]}"
        assert not BEGINNINGS.match(text), place
        assert not TURNS.search(text), place
        if isinstance(node, ast.FunctionDef) and not is_property(node):
            assert not NO_VERB.match(text), place


def test_no_function_is_longer_than_a_screen():
    """40 lines of code, without its docstring."""
    for path in FILES:
        for node, text in documented(path):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno + 1 - len(text.splitlines())
                assert lines <= 40, f"{path.name}: {node.name} has {lines} lines"
