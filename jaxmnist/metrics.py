"""Loss and accuracy as sums and a count, merged on the device and divided on the host."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array | np.ndarray


class Metrics(flax.struct.PyTreeNode):
    """Scalar sums over images."""

    loss_sum: Array  # float32
    correct: Array  # int32
    count: Array  # int32

    @classmethod
    def zero(cls) -> "Metrics":
        """Return the metrics of zero images."""
        return cls(*(np.zeros((), dtype) for dtype in (np.float32, np.int32, np.int32)))

    def merge(self, other: "Metrics") -> "Metrics":
        """Return the sums over both sets of images."""
        return jax.tree.map(jnp.add, self, other)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats per image; NaN without images."""
        return float(self.loss_sum) / int(self.count) if int(self.count) else float("nan")

    @property
    def accuracy(self) -> float:
        """Percentage of images classified correctly; NaN without images."""
        return 100 * int(self.correct) / int(self.count) if int(self.count) else float("nan")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the negative log-likelihood of each label, in nats.

    Args:
        logits: logits `[N, 10]`.
        labels: integers `[N]`.

    Returns:
        Losses `[N]`.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))


def compute_metrics(
    logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None
) -> Metrics:
    """Return the metrics of one batch.

    Args:
        logits: logits `[N, 10]`.
        labels: integers `[N]`.
        valid: mask of the images to include, bool `[N]`; None for all.
    """
    if valid is None:
        valid = jnp.ones(len(logits), bool)
    return Metrics(
        loss_sum=jnp.sum(cross_entropy(logits, labels), where=valid, dtype=jnp.float32),
        correct=jnp.sum(logits.argmax(axis=1) == labels, where=valid, dtype=jnp.int32),
        count=jnp.sum(valid, dtype=jnp.int32),
    )
