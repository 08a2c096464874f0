"""Export formats by name, and export with verification of the logits."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jaxmnist.export import onnx_model, pytorch, safetensors_file, stablehlo
from jaxmnist.export.network import ExportError, TrainedNetwork

# Largest difference of logits that is accepted as rounding.
TOLERANCE = 1e-4


class Target(NamedTuple):
    """An export format."""

    file: str
    module: ModuleType  # with `write(network, file)` and `logits_of(network, file, images)`
    takes_images: bool  # whether the input format is part of the file
    extra: str  # the extra of pyproject.toml to install


TARGETS = {
    "onnx": Target("model.onnx", onnx_model, True, "export"),
    "stablehlo": Target("model.stablehlo", stablehlo, True, "export"),
    "safetensors": Target("model.safetensors", safetensors_file, False, "export"),
    "torch": Target("model.pt", pytorch, False, "torch"),
}


def export(
    network: TrainedNetwork, target: str, folder: Path, images: np.ndarray
) -> tuple[Path, float]:
    """Write a network in a format and compare its logits with the original's.

    Args:
        network: network to export.
        target: one of `TARGETS`.
        folder: output folder, created if missing.
        images: images for the comparison, uint8 `[N, 28, 28]`.

    Returns:
        The file, and the largest difference of logits.

    Raises:
        ExportError: the difference exceeds rounding, or the export fails; the file is removed.
        ImportError: a package that the format needs is not installed.
        OSError: the file cannot be written.
    """
    folder.mkdir(exist_ok=True)
    file = folder / TARGETS[target].file
    scratch = file.with_name(f".new-{file.name}")
    try:
        TARGETS[target].module.write(network, scratch)
        computed = TARGETS[target].module.logits_of(network, scratch, images)
        difference = float(np.abs(computed - network.logits(images)).max())
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{target} differs by {difference:.2g} from the original; expected at most "
                f"{TOLERANCE:.0e}"
            )
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
    return file, difference
