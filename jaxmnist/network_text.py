"""Networks as text, such as `conv 8 / relu / pool / conv 10 / mean`: grammar, and shapes of layers.

A text has one layer per line, or several separated by slashes; `#` begins a comment.
docs/networks.md lists the layers.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

SIZE = 28
CLASSES = 10

LayerSpec = dict[str, Any]


class NetworkError(ValueError):
    """An invalid network; the message names the line and the layer."""


# Kinds that need the number of groups of channels, or of parts of the batch.
_COUNTED = {"group_norm": "groups", "ghost_norm": "splits"}
_PLAIN = {
    "relu": {"kind": "relu"},
    "norm": {"kind": "norm"},
    "layer_norm": {"kind": "group_norm", "groups": 1},
    "pool": {"kind": "max_pool"},
    "mean": {"kind": "mean"},
    "max": {"kind": "max"},
    "save": {"kind": "save"},
    "add": {"kind": "add"},
}
WORDS = ("conv", "depthwise", "drop", *_COUNTED, *_PLAIN)


def parse(text: str) -> list[LayerSpec]:
    """Return the layers of a text, in order of use.

    Args:
        text: the network, one layer per line or separated by slashes.

    Returns:
        A dict for each layer: `kind`, its values, and `line`, its place in the text. A dropout
        without a rate has the rate None.

    Raises:
        NetworkError: the text is not a network for images of digits.
    """
    specs = [_parse_layer(place, words) for place, words in _layers_of(text)]
    with_shapes(specs)
    return specs


def canonical(text: str) -> str:
    """Return the text on one line, without comments and redundant spaces."""
    return " / ".join(" ".join(words) for _, words in _layers_of(text))


def with_shapes(specs: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Return the layers with the shapes of their inputs and outputs.

    Args:
        specs: dicts as `parse` returns them.

    Returns:
        The layers, each with `inputs` and `features`, numbers of channels, and `input_side` and
        `side`, in pixels. `add` has `source`, the index of the layer whose output it adds (-1 for
        the image). `save` is left out.

    Raises:
        NetworkError: a layer does not fit its input, or the output is not one number per digit.
    """
    layers: list[LayerSpec] = []
    saved: list[int] = []
    for spec in specs:
        channels, side = _output_of(layers)
        match spec["kind"]:
            case "save":
                saved.append(len(layers) - 1)
                continue
            case "add":
                if not saved:
                    raise _error(spec, "add without a save before it")
                spec = {**spec, "source": saved.pop()}
        shaped = {**spec, "inputs": channels, "input_side": side}
        layers.append(_with_output(shaped, layers))
    channels, side = _output_of(layers)
    if saved:
        raise NetworkError("a save has no add after it")
    if (channels, side) != (CLASSES, 1):
        raise NetworkError(
            f"the network ends with {channels} channels of {side}x{side} pixels; expected "
            f"{CLASSES} of 1x1, one per digit: end with a conv {CLASSES}, and a mean before or "
            "after it"
        )
    return layers


def _layers_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the place of each layer in the text, and its words."""
    lines = [line.partition("#")[0] for line in text.splitlines()]
    count = 0
    for number, line in enumerate(lines, 1):
        for words in map(str.split, line.split("/")):
            count += bool(words)
            if words:
                yield (f"line {number}" if len(lines) > 1 else f"layer {count}"), words
    if not count:
        raise NetworkError("the network has no layers; expected such as conv 8 / relu / ...")


def _parse_layer(place: str, words: Sequence[str]) -> LayerSpec:
    name, *rest = words
    spec = {"line": place, "text": " ".join(words)}
    try:
        if name in _PLAIN and not rest:
            return spec | _PLAIN[name]
        if name in _COUNTED and len(rest) == 1:
            return spec | {"kind": name, _COUNTED[name]: _positive(rest[0])}
        if name == "drop" and len(rest) <= 1:
            return spec | {"kind": "dropout", "rate": _rate(rest[0]) if rest else None}
        if name == "conv" and rest:
            values = {"features": _positive(rest[0]), **_parse_window(rest[1:])}
            return spec | {"kind": "conv", "depthwise": False, **values}
        if name == "depthwise":
            return spec | {"kind": "conv", "depthwise": True, **_parse_window(rest)}
    except ValueError as error:
        raise _error(spec, f"{spec['text']!r} is not a layer: {error}") from error
    if name not in WORDS:
        reason = f"expected one of {', '.join(WORDS)}"
    elif name in _COUNTED or name == "conv":
        reason = f"expected a number after {name}"
    else:
        reason = f"expected nothing after {name}"
    raise _error(spec, f"{spec['text']!r} is not a layer: {reason}")


def _parse_window(words: Sequence[str]) -> LayerSpec:
    """Return the options of a convolution: `3x3 stride 2 pad 1 bias`, each of them optional."""
    values = {"kernel_size": 3, "stride": 1, "padding": 0, "use_bias": False}
    left = list(words)
    while left:
        word = left.pop(0)
        if match := re.fullmatch(r"([1-9][0-9]?)x\1", word):
            values["kernel_size"] = int(match[1])
        elif word == "stride" and left:
            values["stride"] = _positive(left.pop(0))
        elif word == "pad" and left:
            values["padding"] = _positive(left.pop(0))
        elif word == "bias":
            values["use_bias"] = True
        else:
            raise ValueError(f"{word} is no option; expected such as 3x3, stride 2, pad 1 or bias")
    return values


def _positive(word: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", word):
        raise ValueError(f"{word} is not a number from 1 to 9999")
    return int(word)


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1:
        raise ValueError(f"{word} is not a rate of at least 0 and below 1")
    return rate


def _with_output(layer: LayerSpec, before: Sequence[LayerSpec]) -> LayerSpec:
    """Return a layer with the shape of its output."""
    channels, side = layer["inputs"], layer["input_side"]
    match layer["kind"]:
        case "conv":
            size = layer["kernel_size"]
            if layer["padding"] >= size:  # an output pixel would see nothing but zeros
                raise _error(
                    layer, f"pad {layer['padding']} is not smaller than the kernel, {size}"
                )
            room = side + 2 * layer["padding"] - size
            if room < 0:
                raise _error(layer, f"a {size}x{size} convolution of a {side}x{side} image")
            depthwise = layer["depthwise"]
            channels = channels if depthwise else layer["features"]
            layer = {**layer, "groups": channels if depthwise else 1}
            side = room // layer["stride"] + 1
        case "max_pool":
            if side == 1:
                raise _error(layer, "pool of a 1x1 image")
            side //= 2
        case "mean" | "max":
            side = 1
        case "group_norm":
            groups = layer["groups"]
            if channels % groups:
                raise _error(layer, f"{channels} channels do not divide into {groups} groups")
        case "add":
            other, other_side = _output_of(before[: layer["source"] + 1])
            if (other, other_side) != (channels, side):
                raise _error(
                    layer,
                    f"add of {other} channels of {other_side}x{other_side} to {channels} of "
                    f"{side}x{side}; expected the same shape",
                )
    return {**layer, "features": channels, "side": side}


def _output_of(layers: Sequence[LayerSpec]) -> tuple[int, int]:
    """Return the channels and the side of the last output; without layers, of the image."""
    return (layers[-1]["features"], layers[-1]["side"]) if layers else (1, SIZE)


def _error(layer: LayerSpec, message: str) -> NetworkError:
    return NetworkError(f"{layer.get('line', layer.get('name'))}: {message}")
