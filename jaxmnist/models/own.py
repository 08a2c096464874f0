"""Networks of the user, written as text."""

from collections.abc import Sequence

import flax.linen as nn

from jaxmnist.models import layers
from jaxmnist.models.variants import Layer, Network
from jaxmnist.network_text import LayerSpec, parse

# Layers without parameters, by kind.
FUNCTIONS: dict[str, Layer] = {
    "relu": nn.relu,
    "max_pool": layers.max_pool,
    "mean": layers.global_avg_pool,
    "max": layers.global_max_pool,
    "save": layers.save,
    "add": layers.add,
}


class OwnNet(Network):
    """The network of a text; a dropout without a rate has the network's rate."""

    text: str = ""

    def layers(self) -> Sequence[Layer]:
        return [make_layer(spec, self.dropout_rate) for spec in parse(self.text)]


def make_layer(spec: LayerSpec, dropout_rate: float) -> Layer:
    """Return the layer of a spec.

    Args:
        spec: a layer as `network_text.parse` returns it.
        dropout_rate: the rate of a dropout that has none of its own.
    """
    match spec["kind"]:
        case "conv":
            kind = layers.DepthwiseConv if spec["depthwise"] else layers.Conv
            features = {} if spec["depthwise"] else {"features": spec["features"]}
            names = ("kernel_size", "padding", "use_bias", "stride")
            return kind(**features, **{name: spec[name] for name in names}, parent=None)
        case "norm":
            return layers.BatchNorm(parent=None)
        case "ghost_norm":
            return layers.GhostNorm(splits=spec["splits"], parent=None)
        case "group_norm":
            return layers.GroupNorm(spec["groups"], parent=None)
        case "dropout":
            rate = spec["rate"]
            return layers.Dropout(dropout_rate if rate is None else rate, parent=None)
        case kind:
            return FUNCTIONS[kind]
