"""Command-line options from the fields and the docstring of a dataclass."""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxmnist.config import ConfigError
from support.command import user_path


class Parser(argparse.ArgumentParser):
    """Parser that accepts `--batch_size` for `--batch-size`, with one-line errors."""

    def parse_words(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line.

        Raises:
            ConfigError: the command line is invalid; the message suggests the nearest option.
        """
        words = [re.sub(r"^--[\w-]+", lambda m: m[0].replace("_", "-"), word) for word in argv]
        arguments, unknown = self.parse_known_args(words)
        if unknown:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; --help lists all options"
            raise ConfigError(f"there is no option {unknown[0]}{hint}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError instead of printing the usage."""
        raise ConfigError(f"{message}; --help lists all options")


def add_fields(parser: argparse._ActionsContainer, of: type, unset: bool = False) -> None:
    """Add an option for each field of a dataclass.

    Args:
        parser: a parser, or one of its groups.
        of: the dataclass; the Args of its docstring are the help texts.
        unset: whether a missing option has the value None instead of the field's default.
    """
    types, texts = typing.get_type_hints(of), describe_fields(of)
    for field in dataclasses.fields(of):
        option = {"default": None if unset else field.default, "help": texts[field.name]}
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", **option, **_reading(types[field.name], unset)
        )


def _reading(kind: Any, unset: bool) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a type of value."""
    kinds = set(typing.get_args(kind)) - {type(None)} or {kind}
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction if unset else "store_true"}
    if os.PathLike in kinds:
        return {"type": user_path, "metavar": "FOLDER"}
    (of,) = kinds
    return {"type": of, "metavar": {int: "N", float: "X", str: "NAME"}[of]}


def describe_fields(of: type) -> dict[str, str]:
    """Return the entries of the Args section of a class's docstring, by name."""
    text = (inspect.getdoc(of) or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.M)
    return {name: " ".join(words.split()).replace("%", "%%") for name, words in found}
