"""What is installed: the versions that the published results were measured with."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


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
