"""A file imports only from lower layers, or from its own package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    ["config", "limits", "shards", "stats", "evaluation", "ink", "nuisances"],
    ["layers", "augment", "metrics", "data", "devices", "hosts", "pictures"],
    ["models", "optim"],
    ["state", "description"],
    ["steps"],
    ["mesh", "checkpoint", "records"],
    ["runs"],
    ["training", "export"],
    ["processes", "worker", "imported"],
    ["seeds"],
    ["report", "results", "predictions"],
    ["findings", "plots"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted((ROOT / "jaxmnist").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "jaxmnist").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {parts[1] for name in names if (parts := name.split("."))[0] == "jaxmnist"}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports_point_downwards(path):
    room = room_of(path)
    if room == "__init__":
        return
    for imported in imported_rooms(path) - {room}:
        assert LEVEL[imported] < LEVEL[room], f"{room} imports {imported}"


def test_every_file_has_its_place():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(LEVEL)
