"""One HTML file in which trained networks read what one draws: no server, no request."""

from collections.abc import Sequence

from jaxmnist.data.dataset import Dataset
from jaxmnist.page.document import join_page
from jaxmnist.page.examples import choose_examples
from jaxmnist.page.networks import describe_network
from jaxmnist.recipes import IDEAS
from jaxmnist.runs.run import Run

__all__ = ["make_page"]


def make_page(runs: Sequence[Run], images: Dataset | None = None) -> str:
    """Return a self-contained HTML page with the networks of finished runs.

    Args:
        runs: finished runs of one seed each, in the order of the page.
        images: the data set whose test images are offered as examples; None: no examples.
    """
    networks = [
        {
            "name": name,
            "idea": IDEAS.get(run.config.name, ""),
            "parameters": run.summary["parameters"],
            "accuracy": run.summary["final_test_accuracy"][0],
            **describe_network(run),
        }
        for name, run in zip(_names(runs), runs, strict=True)
    ]
    return join_page(networks, choose_examples(runs, images) if images else None)


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a different name for each network, as short as possible."""
    names = [run.config.name for run in runs]
    details = (
        [""] * len(runs),
        [f" seed {run.config.seed}" for run in runs],
        [f" {run.path.name}" for run in runs],
    )
    for detail in details:
        full = [name + more for name, more in zip(names, detail, strict=True)]
        if len(set(full)) == len(runs):
            return full
    return [f"{name} {number}" for number, name in enumerate(names, 1)]
