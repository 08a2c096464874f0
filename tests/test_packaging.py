"""What is published: the versions of the results, and pages whose links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r'\]\(([^)#:\s]+)(?:#[\w-]+)?\)|(?:src|href)="([^":#]+)"')


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in map("".join, LINK.findall(page.read_text())):
        assert (page.parent / link).exists(), link


def test_the_constraints_are_the_versions_of_the_published_results():
    lines = (ROOT / "docs" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    results = json.loads((ROOT / "docs" / "results.json").read_text())
    used = {
        (package, version)
        for runs in results["variants"].values()
        for run in runs["runs"]
        for package, version in run["versions"].items()
        if package not in ("jaxmnist", "python")
    }
    assert used <= set(pinned.items())
    assert {package for package, _ in used} >= {"jax", "jaxlib", "flax", "optax", "numpy"}
