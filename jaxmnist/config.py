"""The frozen `TrainConfig`: every value that decides the result of a run."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from jaxmnist.recipes import (
    AUGMENTATIONS,
    CHANGES,
    DATASETS,
    DEFAULTS,
    NETWORKS,
    RECIPES,
    SCHEDULES,
    values_of,
)

# A guard against a slip of the finger.
MAX_SEEDS = 1000

# Version of the files of a run; bump it when older readers would misunderstand a change.
FORMAT = 2
READABLE_FORMATS = (1, 2)
# The fields of `DEFAULTS` that format 1 has.
_FORMAT_1 = {"batch_size", "augment", "dropout"}


class ConfigError(Exception):
    """The command line or the config asks for something that cannot be trained.

    Not a ValueError, which the command-line library would catch and wrap in words of its own.
    """


def _from_recipe() -> Any:
    """Return a field that is None until `TrainConfig` takes its value from the recipe."""
    return dataclasses.field(default=None)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Every value that decides the result of a run, and nothing else.

    A field left at None takes the value of the variant's recipe; of a constructed config only
    `limit_train` and `holdout` can be None.

    Args:
        variant: the network: skeleton, less_params, batch_norm, dropout, fc_layer, augmentation,
            gap; or one next to gap: gap_without_norm, gap_late_pool, gap_wide, gap_two_pools.
        dataset: mnist, fashion_mnist or kmnist.
        recipe: the source of all fields that are not given: notebook is the original's, record
            and fast are ours for gap (docs/recipes.md).
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the constant rate, or the peak of the one-cycle schedule.
        seed: decides the initial weights, the order of the images, augmentation and dropout.
        augment: whether the training images are augmented.
        dropout: the probability that an activation is dropped, for variants with dropout.
        limit_train: train on this many images only, the first ones, for quick trials.
        holdout: keep this many training images out of the training, and test on them instead of
            the test set.
        fold: the images held out: 0 the last ones, 1 those before, and so on.
        augmentation: notebook (rotate, shift, scale, shear, re-light), one of its parts (rotation,
            affine, jitter), or bilinear and its relatives (docs/recipes.md).
        schedule: of the learning rate: constant or one_cycle.
        momentum: of SGD, where the schedule does not cycle it.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: added to the gradients, times the parameters.
        ema_decay: of the moving average of weights and statistics that is evaluated; 0: none.
        cycle_momentum: whether the one-cycle schedule cycles the momentum too.
        base_momentum: the smallest momentum of the cycle.
        max_momentum: the largest momentum of the cycle.
        pct_start: the part of the steps in which the learning rate climbs.
        div_factor: the peak over the first learning rate.
        final_div_factor: the first learning rate over the last one.

    Raises:
        ConfigError: a value is out of range; the message names it.
    """

    variant: str = "gap"
    dataset: str = "mnist"
    recipe: str = "notebook"
    epochs: int = _from_recipe()
    batch_size: int = _from_recipe()
    learning_rate: float = _from_recipe()
    seed: int = 0
    augment: bool = _from_recipe()
    dropout: float = _from_recipe()
    limit_train: int | None = None
    holdout: int | None = None
    fold: int = 0
    augmentation: str = _from_recipe()
    schedule: str = _from_recipe()
    momentum: float = _from_recipe()
    nesterov: bool = _from_recipe()
    weight_decay: float = _from_recipe()
    ema_decay: float = _from_recipe()
    cycle_momentum: bool = _from_recipe()
    base_momentum: float = _from_recipe()
    max_momentum: float = _from_recipe()
    pct_start: float = _from_recipe()
    div_factor: float = _from_recipe()
    final_div_factor: float = _from_recipe()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        check_name("variant", self.variant, NETWORKS)
        check_name("dataset", self.dataset, DATASETS)
        _check_recipe(self.recipe, self.variant)
        for name, value in values_of(self.variant, self.recipe).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        _check_values(self)
        _check_together(self)

    @property
    def name(self) -> str:
        """The variant, and what its recipe has beyond the notebook's: gap/no_dropout, gap/record.

        Fields that differ from the recipe's are no part of it. `by_name` is the inverse.
        """
        beyond = [part for part in self.recipe.split("/") if part != TrainConfig.recipe]
        return "/".join([self.variant, *beyond])

    def to_json(self) -> str:
        """Return the config as a JSON object, every field written out."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Return the config that `to_json` wrote.

        Format 1 left the fields out that had no option; they are the recipe's.

        Raises:
            ConfigError: the text is not a JSON object of these fields, or of another format.
        """
        values = _object_of(text)
        found = values.pop("format", None)
        check_format("config", found)
        fields = {field.name for field in dataclasses.fields(cls)}
        optional = {"holdout", "fold", *DEFAULTS} - _FORMAT_1 if found == 1 else set()
        if not fields - optional <= set(values) <= fields:
            raise ConfigError(
                f"config has {sorted(values)}; expected an object with the fields {sorted(fields)}"
            )
        return cls(**values)

    def check_continues(self, begun: "TrainConfig") -> None:
        """Check that a run begun with another config can go on with this one.

        Everything must be equal, except that the epochs may grow at a constant learning rate.

        Args:
            begun: the config that the run was begun with.

        Raises:
            ConfigError: a field differs; the message names each with both values.
        """
        may_grow = begun.schedule == self.schedule == "constant" and self.epochs > begun.epochs
        differing = [
            f"{name} was {old!r} and is {new!r}"
            for name, old in dataclasses.asdict(begun).items()
            if (new := getattr(self, name)) != old and not (name == "epochs" and may_grow)
        ]
        if differing:
            raise ConfigError(
                f"the run was begun with another config: {', '.join(differing)}; go on with the "
                "same one, or begin another run (only epochs may grow, and only at a constant rate)"
            )


@dataclasses.dataclass(frozen=True)
class SeedsConfig:
    """Runs that differ in their seed alone.

    Args:
        config: what each trains; its own seed is that of the first.
        seeds: theirs, each once.

    Raises:
        ConfigError: there is no seed, one is there twice, or one is out of range.
    """

    config: TrainConfig
    seeds: tuple[int, ...]

    def __post_init__(self):
        if not self.seeds:
            raise ConfigError("seeds is empty; expected at least one")
        if len(self.seeds) > MAX_SEEDS:
            raise ConfigError(f"there are more than {MAX_SEEDS} seeds; expected at most so many")
        # Plain numbers, whatever scalars were given; each in range.
        object.__setattr__(self, "seeds", tuple(self.of(seed).seed for seed in self.seeds))
        for number, seed in enumerate(self.seeds):
            if seed in self.seeds[:number]:
                raise ConfigError(f"seeds has {seed} more than once; each seed is one run")
        object.__setattr__(self, "config", self.of(self.seeds[0]))

    def of(self, seed: int) -> TrainConfig:
        """The config of one seed's run."""
        return dataclasses.replace(self.config, seed=seed)

    def to_json(self) -> str:
        """The config as a JSON object: that of the first seed, and all seeds."""
        values = json.loads(self.config.to_json())
        return json.dumps({**values, "seeds": list(self.seeds)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SeedsConfig":
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: as `TrainConfig.from_json`, or there is no list of seeds.
        """
        values = _object_of(text)
        seeds = values.pop("seeds", None)
        if not isinstance(seeds, list):
            raise ConfigError(f"config has the seeds {seeds!r}; expected a list")
        return cls(TrainConfig.from_json(json.dumps(values)), tuple(seeds))

    def check_continues(self, begun: "SeedsConfig") -> None:
        """Accepts runs that this config can go on with; there may be more seeds than before.

        Args:
            begun: the config that the runs were begun with.

        Raises:
            ConfigError: a seed is missing, or what `TrainConfig.check_continues` refuses.
        """
        missing = [seed for seed in begun.seeds if seed not in self.seeds]
        if missing:
            raise ConfigError(
                f"the run was begun with the seeds {spoken(begun.seeds)}, and {spoken(missing)} "
                "are not among those asked for; leave --seeds out, or add to them"
            )
        self.of(begun.seeds[0]).check_continues(begun.config)


def parse_config(text: str) -> TrainConfig | SeedsConfig:
    """Reads what either's `to_json` wrote.

    Raises:
        ConfigError: it is neither.
    """
    return (SeedsConfig if "seeds" in _object_of(text) else TrainConfig).from_json(text)


def by_name(name: str, **fields: Any) -> TrainConfig:
    """The config that a `TrainConfig.name` names.

    Args:
        name: a variant, and after slashes a recipe, changes, or both.
        fields: the other fields, as of `TrainConfig`.

    Raises:
        ConfigError: there is no such variant, recipe or change, or as `TrainConfig`.
    """
    variant, *recipe = name.split("/")
    if recipe:
        check_name("recipe or change of it", recipe[0], [*RECIPES, *CHANGES])
    if not recipe or recipe[0] not in RECIPES:
        recipe.insert(0, TrainConfig.recipe)
    return TrainConfig(variant, recipe="/".join(recipe), **fields)


def parse_seeds(words: str, first: int) -> tuple[int, ...]:
    """The seeds that `--seeds` names.

    Args:
        words: how many, as "8", or which, as "3,7,11".
        first: where a number of them begins.

    Raises:
        ConfigError: it is neither.
    """
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})+", words):
        return tuple(map(int, words.split(",")))
    if re.fullmatch(r"[0-9]{1,9}", words):
        return tuple(range(first, first + min(int(words), MAX_SEEDS + 1)))
    raise ConfigError(f"seeds is {words!r}; expected how many, as 8, or which, as 3,7,11")


def spoken(numbers: Sequence[int]) -> str:
    """Whole numbers in words: 0 to 7, or 3, 7, 11."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _object_of(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"config has {type(values).__name__}; expected a JSON object")
    return values


def steps_per_epoch(train_count: int, batch_size: int) -> int:
    """How many full batches an epoch has; the images left over sit that epoch out.

    Args:
        train_count: training images.
        batch_size: images a step.

    Raises:
        ConfigError: not even one batch is full.
    """
    if batch_size > train_count:
        raise ConfigError(
            f"batch_size is {batch_size}, but there are only {train_count} training images; "
            f"use --batch-size {train_count} or less"
        )
    return train_count // batch_size


def check_format(what: str, found: object, readable: Sequence[int] = READABLE_FORMATS) -> None:
    """Check that this version reads a format.

    Raises:
        ConfigError: it does not.
    """
    if found not in readable:
        raise ConfigError(
            f"{what} is of format {found!r}, but this version of jaxmnist reads format "
            f"{' and '.join(map(str, readable))}; use the version that wrote it"
        )


def check_name(field: str, value: object, known: Collection[str]) -> None:
    """Accepts a known name.

    Raises:
        ConfigError: it is another; the message suggests the nearest.
    """
    if isinstance(value, str) and value in known:
        return
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{field} is {value!r}; expected one of {', '.join(known)}.{hint}")


def _check_recipe(recipe: object, variant: str) -> None:
    if not isinstance(recipe, str):
        raise ConfigError(f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}")
    name, *changes = recipe.split("/")
    check_name("recipe", name, RECIPES)
    for change in changes:
        check_name("change of the recipe", change, CHANGES)
    if variant not in RECIPES[name]:
        raise ConfigError(
            f"recipe is {name!r}, which is for {', '.join(RECIPES[name])}, not for {variant}; "
            "expected notebook"
        )


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy or JAX as Python's own number; any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _check_values(config: TrainConfig) -> None:
    """Check each value alone.

    Raises:
        ConfigError: one is of another type or out of range.
    """
    check_name("augmentation", config.augmentation, AUGMENTATIONS)
    check_name("schedule", config.schedule, SCHEDULES)
    for name in ("augment", "nesterov", "cycle_momentum"):
        value = getattr(config, name)
        if type(value) is not bool:
            raise ConfigError(f"{name} is {value!r}; expected True or False")
    for name, (least, most) in _WHOLE.items():
        value = getattr(config, name)
        if value is None and name in ("limit_train", "holdout"):
            continue
        if not (type(value) is int and least <= value <= most):
            upwards = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name} is {value!r}; expected a whole number {upwards}")
    for name, (accepts, words) in _NUMBERS.items():
        value = getattr(config, name)
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not (is_number and accepts(value)):
            raise ConfigError(f"{name} is {value!r}; expected {words}")


_WHOLE = {
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "limit_train": (1, math.inf),
    "holdout": (1, math.inf),
    "fold": (0, math.inf),
    "seed": (0, 2**32 - 1),
}
_FRACTION = (lambda value: 0 <= value < 1, "a number from 0 up to, not with, 1")
_POSITIVE = (lambda value: value > 0, "a finite number above 0")
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": _POSITIVE,
    "dropout": _FRACTION,
    "momentum": _FRACTION,
    "base_momentum": _FRACTION,
    "max_momentum": _FRACTION,
    "ema_decay": _FRACTION,
    "weight_decay": (lambda value: value >= 0, "a finite number of at least 0"),
    "pct_start": (lambda value: 0 < value < 1, "a number between 0 and 1"),
    "div_factor": _POSITIVE,
    "final_div_factor": _POSITIVE,
}


def _check_together(config: TrainConfig) -> None:
    """Check the values that depend on each other.

    Raises:
        ConfigError: two do not go together.
    """
    if config.fold and config.holdout is None:
        raise ConfigError(f"fold is {config.fold}, but nothing is held out; pass --holdout, too")
    having = [name for name, values in RECIPES["notebook"].items() if values.get("dropout")]
    if config.dropout and config.variant not in having:
        raise ConfigError(
            f"dropout is {config.dropout}, but the variant {config.variant} has no dropout layers; "
            f"leave --dropout out, or take one of {', '.join(having)}"
        )
    if config.variant in ("gap", "gap_two_pools") and config.batch_size == 1:
        raise ConfigError(
            f"batch_size is 1; {config.variant} normalises single numbers over the batch: use at "
            "least 2"
        )
