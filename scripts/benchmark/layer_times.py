"""Participant: every layer of a jaxmnist network alone, forward, and forward with backward."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from participant import Job, Prepared

from jaxmnist.models import create_model, layers


def prepare(spec: dict[str, Any]) -> Prepared:
    """Return two jobs per layer, named by its number from 0."""
    config, key = spec["config"], jax.random.key(0)
    x = layers.from_images(jnp.ones((config["batch_size"], 28, 28, 1)))
    jobs: dict[str, Job] = {}
    for number, layer in enumerate(create_model(config["variant"]).layers()):
        variables = layer.init(key, x) if isinstance(layer, nn.Module) else {}
        forward, both = programs(layer, is_first=number == 0)
        y = forward(variables, x, key)
        jobs[f"{number} forward"] = repeat(forward, variables, x, key)
        jobs[f"{number} both"] = repeat(both, variables, x, key, y)
        x = y
    return jobs, {}


def programs(layer: Any, is_first: bool) -> tuple[Any, Any]:
    """Return a layer's compiled forward pass, and its forward pass with backward pass."""

    def forward(variables, x, key):
        if not isinstance(layer, nn.Module):
            return layer(x)
        return layer.apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    def both(variables, x, key, cotangent):
        y, backward = jax.vjp(lambda variables, x: forward(variables, x, key), variables, x)
        of_variables, of_x = backward(cotangent)
        # Images need no gradient. The compiler removes what is not returned.
        return (y, of_variables) if is_first else (y, of_variables, of_x)

    return jax.jit(forward), jax.jit(both)


def repeat(function: Any, *arguments: Any) -> Job:
    """Return a job that calls the function repeatedly."""

    def job(times: int) -> None:
        for _ in range(times):
            jax.block_until_ready(function(*arguments))

    return job


def iterate(step: Any, *carry: Any) -> Job:
    """Return a job that calls a function repeatedly, with its last result as arguments."""
    latest = carry

    def job(times: int) -> None:
        nonlocal latest
        for _ in range(times):
            latest = step(*latest)
        jax.block_until_ready(latest)

    return job
