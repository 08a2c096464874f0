"""What the seven networks cost: arithmetic and memory."""

from jaxmnist.models.description import Layer

FLOAT_BYTES = 4


def forward_flop(layer: Layer) -> int:
    """Multiplications and additions of a convolution's forward pass, for one image."""
    if layer["kind"] != "conv":
        return 0
    return 2 * layer["kernel_size"] ** 2 * layer["inputs"] * layer["features"] * layer["side"] ** 2


def step_flop(network: list[Layer]) -> int:
    """The convolutions' arithmetic in a training step, for one image.

    The forward pass, the gradient of the kernel and the gradient of the input are as much work
    each; only the images need no gradient.
    """
    flop = [forward_flop(layer) for layer in network]
    return 3 * sum(flop) - flop[0]


def forward_bytes(layer: Layer) -> int:
    """What a layer's forward pass must at least read and write, for one image."""
    taken = layer["inputs"] * layer["input_side"] ** 2
    returned = layer["features"] * layer["side"] ** 2
    return FLOAT_BYTES * (taken + returned)
