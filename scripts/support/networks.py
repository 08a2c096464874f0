"""Networks on the command line: names, runs, files and text."""

import os
from pathlib import Path
from typing import Any

from jaxmnist.config import ConfigError, TrainConfig, parse_experiment
from jaxmnist.inference.pretrained import SHORT_NAMES
from jaxmnist.runs.run import begun_config


def read_network(words: str) -> dict[str, Any]:
    """Return the fields of `TrainConfig` for a network of the user.

    Args:
        words: a file, whose name without its ending becomes the network's name, or the text.

    Raises:
        ConfigError: the words are neither, or the file is not text.
        OSError: the file cannot be read.
    """
    if _is_file(words):
        try:
            return {"variant": Path(words).stem, "network": Path(words).read_text("utf-8")}
        except UnicodeDecodeError as error:
            raise ConfigError(f"{words} is not a text file; expected one layer per line") from error
    if len(words.split()) == 1:
        raise ConfigError(
            f"network is {words!r}, which is neither a file nor a network; expected such as "
            '"conv 8 / relu / mean / conv 10 1x1"'
        )
    return {"network": words}


def read_config(words: str, **fields: Any) -> TrainConfig:
    """Return the config for a name such as gap/record, or for the user's network.

    Args:
        words: the name, or the network's file or text.
        fields: the other fields of `TrainConfig`.

    Raises:
        ConfigError: there is no such name, or the network or a field is invalid.
        OSError: the file cannot be read.
    """
    if _is_file(words) or len(words.split()) > 1:
        return TrainConfig(**read_network(words), **fields)
    return parse_experiment(words, **fields)


def read_run_or_config(words: str) -> TrainConfig:
    """Return the config of a run's folder, or of a network as in `read_config`."""
    if not os.path.isdir(words):
        return read_config(SHORT_NAMES.get(words, words))
    begun = begun_config(Path(words))
    if begun is None:
        raise ConfigError(f"{words} has no config; expected the folder of a run")
    return begun.config


def _is_file(words: str) -> bool:
    return "\n" not in words and os.path.isfile(words)
