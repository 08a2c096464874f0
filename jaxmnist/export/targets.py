"""The formats by name, and how an export is made: written, used, compared, and only then kept."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jaxmnist.export import onnx_model, pytorch, safetensors_file, stablehlo
from jaxmnist.export.network import ExportError, Network

# The largest difference of logits that is rounding.
TOLERANCE = 1e-4


class Target(NamedTuple):
    """A format."""

    file: str
    module: ModuleType  # with `write(network, file)` and `answer(network, file, images)`
    takes_images: bool  # whether how images come in is part of it
    extra: str  # of pyproject.toml: what it needs


TARGETS = {
    "onnx": Target("model.onnx", onnx_model, True, "export"),
    "stablehlo": Target("model.stablehlo", stablehlo, True, "export"),
    "safetensors": Target("model.safetensors", safetensors_file, False, "export"),
    "torch": Target("model.pt", pytorch, False, "torch"),
}


def export(network: Network, target: str, folder: Path, images: np.ndarray) -> tuple[Path, float]:
    """Writes a network in a format and compares what comes of it with the original.

    Args:
        network: what is exported.
        target: one of `TARGETS`.
        folder: where to; made if it is not there.
        images: those that both are asked about, uint8 `[N, 28, 28]`.

    Returns:
        The file, and the largest difference of logits.

    Raises:
        ExportError: it is more than rounding, or the export cannot be used; then it is not kept.
        ImportError: a package that the format needs is not installed.
        OSError: the disk does not take it.
    """
    folder.mkdir(exist_ok=True)
    file = folder / TARGETS[target].file
    scratch = file.with_name(f".new-{file.name}")
    try:
        TARGETS[target].module.write(network, scratch)
        answered = TARGETS[target].module.answer(network, scratch, images)
        difference = float(np.abs(answered - network.logits(images)).max())
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{target} differs by {difference:.2g} from the original; expected at most "
                f"{TOLERANCE:.0e}"
            )
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return file, difference
