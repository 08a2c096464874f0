"""Measure what rounded products cost in accuracy, on a CPU.

`python scripts/benchmark/rounded_products.py --bits 8 gap dropout --seeds 10 --out runs/bfloat16`
trains with the factors of products rounded to 8 bits (bfloat16), as on a TPU by default; 11 bits
are those of a GPU (TF32). It adds the runs to OUT/results.json and compares them, by seed, with
those of docs/results.json. Finished seeds are not trained again; several commands with different
--seeds may write to one folder.
"""

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxmnist import train
from jaxmnist.analysis import results, stats
from jaxmnist.config import parse_experiment, parse_seeds
from jaxmnist.models import convolution

PUBLISHED = Path(__file__).parent.parent.parent / "docs" / "results.json"
EXPONENT_BITS = 8


def main() -> None:
    """Train the missing runs; print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant, or with its recipe")
    parser.add_argument("--bits", type=int, required=True, help="significant bits of a factor")
    parser.add_argument("--seeds", default="10", help="a count, or a list")
    parser.add_argument("--out", type=Path, required=True, help="the output folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.json"
    convolution.matmul_conv = with_rounded_factors(convolution.matmul_conv, arguments.bits)
    for name in arguments.names:
        config = parse_experiment(name)
        for seed in results.missing(file, config, parse_seeds(arguments.seeds, 0)):
            with tempfile.TemporaryDirectory() as folder:
                run = train(dataclasses.replace(config, seed=seed), Path(folder) / "run")
            results.add(file, run)
    print_comparisons(file, arguments.names)


def with_rounded_factors(convolve: Callable, bits: int) -> Callable:
    """Return a convolution that rounds the factors of its products, forward and backward.

    Args:
        convolve: a function of activations, kernel, padding and stride.
        bits: the number of significant bits, the leading one included.
    """

    def rounded(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, EXPONENT_BITS, bits - 1)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def convolve_rounded(x, kernel, padding=0, stride=1):
        return convolve(rounded(x), rounded(kernel), padding, stride)

    def forward(x, kernel, padding, stride):
        factors = rounded(x), rounded(kernel)
        return convolve(*factors, padding, stride), factors

    def backward(padding, stride, factors, gradient):
        _, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, padding, stride), *factors)
        return pull(rounded(gradient))

    convolve_rounded.defvjp(forward, backward)
    return convolve_rounded


def print_comparisons(file: Path, names: Sequence[str]) -> None:
    """Print the differences of the final test accuracies from those with exact factors."""
    exact, rounded = results.read(PUBLISHED), results.read(file)
    for name in names:
        accuracies = (each[name].by_seed("final_test_accuracy") for each in (exact, rounded))
        difference = stats.compare(*accuracies)
        print(f"{name}: {difference.summary.mean:+.3f} points, {difference}")


if __name__ == "__main__":
    main()
