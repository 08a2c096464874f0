"""Every layer of a network of jaxmnist alone: forward, and forward with backward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from protocol import Job, Offer, serve

from jaxmnist.models import create_model, layers


def prepare(work: dict[str, Any]) -> Offer:
    """Two jobs a layer, named by its number from 0."""
    x = layers.from_images(jnp.ones((work["batch_size"], 28, 28, 1)))
    jobs: dict[str, Job] = {}
    for number, layer in enumerate(create_model(work["variant"]).layers()):
        module = layer if isinstance(layer, nn.Module) else Function(layer)
        forward, both, x = programs(module, x, is_first=number == 0)
        jobs |= {f"{number} forward": forward, f"{number} both": both}
    return Offer(jobs)


class Function(nn.Module):
    """A layer without weights."""

    function: Any

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Applies the function; `train` changes nothing."""
        return self.function(x)


def programs(module: nn.Module, x: jax.Array, is_first: bool) -> tuple[Job, Job, jax.Array]:
    """The layer's two jobs, and what it returns."""
    key = jax.random.key(0)
    variables = module.init(key, x)

    def forward(x, variables, key):
        return module.apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    def both(x, variables, key, cotangent):
        if is_first:  # the images need no gradient
            y, backward = jax.vjp(lambda variables: forward(x, variables, key), variables)
        else:
            y, backward = jax.vjp(lambda x, variables: forward(x, variables, key), x, variables)
        return y, backward(cotangent)

    forward, both = jax.jit(forward), jax.jit(both)
    y = forward(x, variables, key)
    return repeat(forward, x, variables, key), repeat(both, x, variables, key, y), y


def repeat(function: Any, *arguments: Any) -> Job:
    """Calls the function so many times."""

    def job(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(function(*arguments))

    return job


if __name__ == "__main__":
    serve(prepare)
