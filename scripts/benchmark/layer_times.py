"""Every layer of a network of jaxmnist alone: forward, and forward with backward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from protocol import Job, Offer, serve

from jaxmnist import layers
from jaxmnist.models import create_model


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

    def forward(variables, x):
        return module.apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    def both(variables, x, cotangent):
        # The images need no gradient.
        taken = (variables,) if is_first else (variables, x)
        y, backward = jax.vjp(lambda *taken: forward(*taken, *(variables, x)[len(taken) :]), *taken)
        return y, backward(cotangent)

    y = jax.jit(forward)(variables, x)
    return repeat(jax.jit(forward), variables, x), repeat(jax.jit(both), variables, x, y), y


def repeat(function: Any, *arguments: Any) -> Job:
    """Calls the function so many times."""

    def job(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(function(*arguments))

    return job


if __name__ == "__main__":
    serve(prepare)
