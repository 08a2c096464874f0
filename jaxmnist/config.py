"""What a run is: the variants, what each trains with, and the frozen `TrainConfig`."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from jaxmnist.recipes import CHANGES, DATASETS, NETWORKS, RECIPES, Recipe

# A guard against a slip of the finger.
MAX_SEEDS = 1000

# Of the files of a run. A change that older readers would misunderstand makes it one more.
FORMAT = 1


class ConfigError(Exception):
    """The command line or the config asks for something that cannot be trained.

    Not a ValueError, which the command-line library would catch and wrap in words of its own.
    """


def _from_recipe() -> Any:
    """A field that is None until `TrainConfig` fills it in from the variant's recipe."""
    return dataclasses.field(default=None)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run, and nothing else.

    A field left at None takes the value of the variant's recipe, so that a constructed config
    has no None but in `limit_train`.

    Args:
        variant: one of the seven networks: skeleton, less_params, batch_norm, dropout, fc_layer,
            augmentation, gap; or one that stands next to gap: gap_without_norm, gap_late_pool,
            gap_wide, gap_two_pools.
        dataset: mnist, fashion_mnist or kmnist.
        recipe: where the defaults of the fields below come from, and the rest of the training:
            notebook is the original's, record and fast are ours for gap (docs/recipes.md).
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the constant rate, or the peak of the one-cycle schedule.
        seed: decides the initial weights, the order of the images, augmentation and dropout.
        augment: whether to rotate, shift, scale, shear and re-light the training images.
        dropout: the probability that an activation is dropped, for variants that have dropout.
        limit_train: train on this many images only, the first ones, for quick trials.
        holdout: keep this many training images out of the training, and test on them, not on the
            test set: what is chosen by trying is to be chosen on these.
        fold: which of them: 0 the last ones, 1 those before, and so on.

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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        check_name("variant", self.variant, NETWORKS)
        _check_recipe(self.recipe, self.variant)
        check_name("dataset", self.dataset, DATASETS)
        recipe = self.recipe_of_variant
        for name in ("epochs", "batch_size", "learning_rate", "augment", "dropout"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(recipe, name))
        for name in ("epochs", "batch_size"):
            _check_positive_int(name, getattr(self, name))
        if self.limit_train is not None:
            _check_positive_int("limit_train", self.limit_train)
        if self.holdout is not None:
            _check_positive_int("holdout", self.holdout)
        if not (type(self.fold) is int and self.fold >= 0):
            raise ConfigError(f"fold is {self.fold!r}; expected a whole number from 0")
        if self.fold and self.holdout is None:
            raise ConfigError(f"fold is {self.fold}, but nothing is held out; pass --holdout, too")
        if not (_is_number(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(
                f"learning_rate is {self.learning_rate!r}; expected a finite number above 0"
            )
        if not (type(self.seed) is int and 0 <= self.seed < 2**32):
            raise ConfigError(
                f"seed is {self.seed!r}; expected a whole number from 0 to {2**32 - 1}"
            )
        if type(self.augment) is not bool:
            raise ConfigError(f"augment is {self.augment!r}; expected True or False")
        _check_dropout(self.variant, self.dropout)
        if self.variant in ("gap", "gap_two_pools") and self.batch_size == 1:
            raise ConfigError(
                f"batch_size is 1; {self.variant} normalises single numbers over the batch: use at "
                "least 2"
            )

    @property
    def recipe_of_variant(self) -> Recipe:
        """The recipe that this variant's defaults come from."""
        name, *changes = self.recipe.split("/")
        recipe = RECIPES[name][self.variant]
        for change in changes:
            recipe = recipe._replace(**CHANGES[change])
        return recipe

    @property
    def name(self) -> str:
        """The variant, and how its recipe differs from the notebook's: gap/no_dropout, gap/record.

        Fields that differ from the recipe's are no part of it. `by_name` has the way back.
        """
        beyond = [part for part in self.recipe.split("/") if part != TrainConfig.recipe]
        return "/".join([self.variant, *beyond])

    @property
    def schedule(self) -> str:
        """`constant` or `one_cycle`."""
        return self.recipe_of_variant.schedule

    def to_json(self) -> str:
        """The config as a JSON object, every field written out."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrainConfig":
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: the text is not a JSON object of exactly these fields, or of another
                format.
        """
        values = _object_of(text)
        check_format("config", values.pop("format", None))
        fields = {field.name for field in dataclasses.fields(cls)}
        # Runs of before these were there had the same value.
        whole = {"holdout": None, "fold": 0, **values}
        if set(whole) != fields:
            raise ConfigError(
                f"config has {sorted(values)}; expected an object with the fields {sorted(fields)}"
            )
        return cls(**whole)

    def check_continues(self, begun: "TrainConfig") -> None:
        """Accepts a run that this config can go on with.

        Everything must be as it was, but for the epochs of a run at a constant rate, which may
        grow.

        Args:
            begun: the config that the run was begun with.

        Raises:
            ConfigError: something differs; the message names each field, as it was and as it is.
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


def check_format(what: str, found: object) -> None:
    """Accepts the format that this version reads.

    Raises:
        ConfigError: it is another one.
    """
    if found != FORMAT:
        raise ConfigError(
            f"{what} is of format {found!r}, but this version of jaxmnist reads format {FORMAT}; "
            "use the version that wrote it"
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


def _check_positive_int(field: str, value: object) -> None:
    if not (type(value) is int and value > 0):
        raise ConfigError(f"{field} is {value!r}; expected a whole number of at least 1")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _check_dropout(variant: str, value: object) -> None:
    if not (_is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise ConfigError(f"dropout is {value!r}; expected a number from 0 up to, not with, 1")
    having = [name for name, recipe in RECIPES["notebook"].items() if recipe.dropout]
    if value and variant not in having:
        raise ConfigError(
            f"dropout is {value}, but the variant {variant} has no dropout layers; "
            f"leave --dropout out, or take one of {', '.join(having)}"
        )
