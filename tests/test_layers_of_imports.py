"""A file imports only from the rooms below its own, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom to the top: the science, then what computes, keeps and uses it.
ROOMS = (
    *("recipes", "network_text", "config", "collectives", "augment", "optim", "metrics", "state"),
    *("models", "data", "steps"),
    *("parallel", "runs"),
    *("analysis", "inference", "export", "page"),
)
FILES = sorted((ROOT / "jaxmnist").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "jaxmnist").parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] == "jaxmnist"}


MODULES = {module_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downwards(path):
    room = room_of(path)
    if room == "__init__":
        return
    imported = {name.split(".")[1] for name in imports_of(path)} - {room}
    climbing = {name for name in imported if ROOMS.index(name) > ROOMS.index(room)}
    assert not climbing, f"{room} imports {climbing}"


def test_no_package_has_a_circle():
    left = {module_of(path): imports_of(path) for path in FILES if room_of(path) != "__init__"}
    while free := [name for name, imported in left.items() if not imported & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left


def test_every_file_has_its_room():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(ROOMS)
    assert len(ROOMS) <= 18
