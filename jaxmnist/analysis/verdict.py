"""The course's target: an accuracy that a small network keeps over its last epochs."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxmnist.analysis.evaluation import interval
from jaxmnist.config import ConfigError


class Target(NamedTuple):
    """The requirements for a network; the defaults are the course's."""

    parameters: int = 8000  # at most
    epochs: int = 15  # at most
    accuracy: float = 99.4  # test accuracy in percent, at least
    last: int = 4  # number of last epochs that must all reach it

    def __str__(self) -> str:
        return (
            f"at least {self.accuracy:.2f} % in all of the last {self.last} epochs, at most "
            f"{self.parameters:,} parameters and {self.epochs} epochs"
        )


class Verdict(NamedTuple):
    """The number of seeds of a network that meet a target."""

    met: int
    seeds: int
    low: float  # lower end of the 95 % interval of the share, in percent
    high: float

    def __str__(self) -> str:
        if self.seeds == 1:
            return "met" if self.met else "not met"
        return f"{self.met} of {self.seeds}, 95 % interval {self.low:.0f} to {self.high:.0f} %"


def check_target(target: Target) -> None:
    """Check that a target can be met at all.

    Raises:
        ConfigError: a number is out of range; the message names it.
    """
    for name in ("parameters", "epochs", "last"):
        if getattr(target, name) < 1:
            raise ConfigError(
                f"{name} is {getattr(target, name)}; expected a whole number of at least 1"
            )
    if not 0 < target.accuracy <= 100:
        raise ConfigError(f"accuracy is {target.accuracy}; expected percent, above 0 to 100")


def is_steady(accuracies: Sequence[float], accuracy: float, last: int) -> bool:
    """Return whether all of the last epochs reach an accuracy.

    Args:
        accuracies: test accuracy after each epoch, in percent.
        accuracy: the accuracy to reach, in percent.
        last: the number of last epochs.

    Raises:
        ConfigError: there are fewer epochs.
    """
    if len(accuracies) < last:
        raise ConfigError(
            f"last is {last}, but there are only {len(accuracies)} epochs; expected at most as many"
        )
    return all(each >= accuracy for each in accuracies[-last:])


def judge(target: Target, parameters: int, curves: Sequence[Sequence[float]]) -> Verdict:
    """Return the number of seeds of a network that meet a target.

    Args:
        target: the target.
        parameters: the number of the network's parameters.
        curves: the test accuracies of each seed after each epoch, in percent.

    Raises:
        ConfigError: there are fewer epochs than the target's last ones.
    """
    is_small = parameters <= target.parameters
    met = sum(
        is_steady(curve, target.accuracy, target.last) and is_small and len(curve) <= target.epochs
        for curve in curves
    )
    return Verdict(met, len(curves), *interval(met, len(curves)))
