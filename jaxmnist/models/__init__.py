"""Networks: the variants of the course, variations of gap for ablations, and the user's own."""

from jaxmnist.config import TrainConfig, check_choice
from jaxmnist.models import ablations, variants
from jaxmnist.models.own import OwnNet
from jaxmnist.models.variants import Network
from jaxmnist.recipes import values_of

__all__ = ["NETWORKS", "Network", "create_model", "model_of"]

NETWORKS: dict[str, type[Network]] = {
    "skeleton": variants.SkeletonNet,
    "less_params": variants.LessParamsNet,
    "batch_norm": variants.BatchNormNet,
    "dropout": variants.DropoutNet,
    "fc_layer": variants.FcLayerNet,
    "augmentation": variants.AugmentationNet,
    "gap": variants.GapNet,
    "gap_without_norm": ablations.GapWithoutNormNet,
    "gap_group_norm": ablations.GapGroupNormNet,
    "gap_layer_norm": ablations.GapLayerNormNet,
    "gap_ghost_norm": ablations.GapGhostNormNet,
    "gap_late_pool": ablations.GapLatePoolNet,
    "gap_wide": ablations.GapWideNet,
    "gap_two_pools": ablations.GapTwoPoolsNet,
}


def create_model(variant: str, dropout_rate: float | None = None) -> Network:
    """Return the network of a variant.

    Args:
        variant: one of `jaxmnist.VARIANTS` or `recipes.ABLATION_NETWORKS`.
        dropout_rate: the probability that an activation is dropped in training; None for the
            recipe's rate.

    Returns:
        A linen module; `model.apply(variables, images, train=False)` takes float32
        `[N, 28, 28, 1]`, normalised, and returns float32 logits `[N, 10]`.

    Raises:
        ConfigError: the variant is unknown.
    """
    check_choice("variant", variant, NETWORKS)
    recipe = values_of(variant, "notebook")
    return NETWORKS[variant](recipe["dropout"] if dropout_rate is None else dropout_rate)


def model_of(config: TrainConfig) -> Network:
    """Return the network of a config, as `create_model` does."""
    if config.network is not None:
        return OwnNet(config.dropout, text=config.network)
    return create_model(config.variant, config.dropout)
