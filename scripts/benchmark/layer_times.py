"""Times every layer of a jaxmnist network alone: forward, and forward with backward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from protocol import Job, Offer, serve

from jaxmnist.models import create_model, layers


def prepare(work: dict[str, Any]) -> Offer:
    """Return two jobs per layer, named by its number from 0."""
    x = layers.from_images(jnp.ones((work["batch_size"], 28, 28, 1)))
    jobs: dict[str, Job] = {}
    for number, layer in enumerate(create_model(work["variant"]).layers()):
        module = layer if isinstance(layer, nn.Module) else Function(layer)
        forward, both, x = programs(module, x, is_main_process=number == 0)
        jobs |= {f"{number} forward": forward, f"{number} both": both}
    return Offer(jobs)


class Function(nn.Module):
    """A layer without weights."""

    function: Any

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Apply the function; ignore `train`."""
        return self.function(x)


def programs(module: nn.Module, x: jax.Array, is_main_process: bool) -> tuple[Job, Job, jax.Array]:
    """Return the layer's two jobs and its output."""
    key = jax.random.key(0)
    variables = module.init(key, x)

    def forward(x, variables, key):
        return module.apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    def both(x, variables, key, cotangent):
        if is_main_process:  # the images need no gradient
            y, backward = jax.vjp(lambda variables: forward(x, variables, key), variables)
        else:
            y, backward = jax.vjp(lambda x, variables: forward(x, variables, key), x, variables)
        return y, backward(cotangent)

    forward, both = jax.jit(forward), jax.jit(both)
    y = forward(x, variables, key)
    return repeat(forward, x, variables, key), repeat(both, x, variables, key, y), y


def repeat(function: Any, *arguments: Any) -> Job:
    """Return a job that calls the function repeatedly."""

    def job(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(function(*arguments))

    return job


if __name__ == "__main__":
    serve(prepare)
