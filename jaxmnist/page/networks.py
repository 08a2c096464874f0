"""Trained networks as JSON, for `network.js`."""

import base64
from typing import Any

import numpy as np

from jaxmnist.export.network import trained_network
from jaxmnist.network_text import LayerSpec
from jaxmnist.runs.run import Run


def describe_network(run: Run) -> dict[str, Any]:
    """Return the network of a run as `decodeNetwork` in `network.js` takes it.

    Args:
        run: a finished run.

    Returns:
        A dict that JSON can hold: `variant`, `mean`, `std`, and `layers` in order of use. A layer
        has the fields of `models.description.describe`, and its arrays as base64 of
        little-endian float32, in the layout of the state: `kernel` `[kh, kw, I, O]` and `bias`
        `[O]` of a convolution, `scale`, `bias`, `mean` and `var` `[C]` of a norm. Dropout is left
        out: it does nothing outside training.
    """
    network = trained_network(run)
    layers = [
        layer | {key: _to_base64(value) for key, value in arrays.items()}
        for layer, arrays in network.layers()
    ]
    return {
        "variant": network.config.variant,
        "mean": float(network.mean),
        "std": float(network.std),
        "layers": _without_dropout(layers),
    }


def _without_dropout(layers: list[LayerSpec]) -> list[LayerSpec]:
    """Return the layers except dropout, with each `source` as an index into these."""
    kept, places = [], [-1]  # places: of the image and of each output among those kept
    for layer in layers:
        if layer["kind"] != "dropout":
            source = {"source": places[layer["source"] + 1]} if "source" in layer else {}
            kept.append(layer | source)
        places.append(len(kept) - 1)
    return kept


def _to_base64(value: np.ndarray) -> str:
    return base64.b64encode(value.astype("<f4").tobytes()).decode()
