"""Networks on the command line: names, runs, files and text."""

import os
from pathlib import Path

from jaxmnist.config import ConfigError, TrainConfig, parse_experiment
from jaxmnist.inference.pretrained import SHORT_NAMES
from jaxmnist.runs.run import begun_config


def read_network(words: str) -> dict[str, str]:
    """Return the fields of `TrainConfig` for a network of the user.

    Args:
        words: a file, whose name without its ending becomes the network's name, or the text.

    Raises:
        ConfigError: the file is not text.
        OSError: the file cannot be read.
    """
    if "\n" in words or not os.path.isfile(words):
        if len(words.split()) == 1:
            raise ConfigError(
                f"network is {words!r}, which is neither a file nor a network; expected such as "
                '"conv 8 / relu / mean / conv 10 1x1"'
            )
        return {"network": words}
    try:
        return {"variant": Path(words).stem, "network": Path(words).read_text("utf-8")}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{words} is not a text file; expected one layer per line") from error


def read_config(words: str) -> TrainConfig:
    """Return the config for a run's folder, a name such as gap/record, or the user's network.

    Raises:
        ConfigError: there is no such run or name, or the network is invalid.
        OSError: a file cannot be read.
    """
    if os.path.isdir(words):
        begun = begun_config(Path(words))
        if begun is None:
            raise ConfigError(f"{words} has no config; expected the folder of a run")
        return begun.config
    if os.path.isfile(words) or len(words.split()) > 1:
        return TrainConfig(**read_network(words))
    return parse_experiment(SHORT_NAMES.get(words, words))
