"""`TrainConfig`, the frozen config with every value that determines the result of a run."""

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from jaxmnist.network_text import LayerSpec, NetworkError, canonical, parse, with_shapes
from jaxmnist.recipes import (
    AUGMENTATIONS,
    CHANGES,
    DATASETS,
    DEFAULTS,
    RECIPES,
    SCHEDULES,
    values_of,
)

# A guard against typos.
MAX_SEEDS = 1000

# Version of the run-file format. Increase it for changes that older versions would misread.
FORMAT = 2
# Formats of runs that this version reads.
READABLE_FORMATS = (1, FORMAT)
# The fields that a config of each format may lack; it then has the recipe's values.
_OPTIONAL = {2: {"network", "l1", "gamma", "step_size", "patience"}}
_OPTIONAL[1] = _OPTIONAL[2] | {"holdout", "fold", *DEFAULTS} - {"batch_size", "augment", "dropout"}


class ConfigError(Exception):
    """An invalid command line or config."""


# The default of a field that `TrainConfig` fills in.
_FILLED_IN: Any = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Values that determine the result of a run, and nothing else.

    A field left at None takes the value of the variant's recipe. In a constructed config only
    `limit_train`, `holdout` and `network` can be None.

    Args:
        variant: the network: skeleton, less_params, batch_norm, dropout, fc_layer, augmentation or
            gap; or a variation of gap: gap_without_norm, gap_group_norm, gap_layer_norm,
            gap_ghost_norm, gap_late_pool, gap_wide, gap_two_pools; by default gap. With --network,
            a name for it.
        dataset: the data set: mnist, fashion_mnist or kmnist.
        recipe: the recipe, which sets the default of every option that is not given: notebook (the
            original's), or fast or record (this project's, for gap; see docs/recipes.md).
        epochs: the number of passes over the training images.
        batch_size: the number of images per step.
        learning_rate: the constant learning rate, or the peak of the one-cycle schedule.
        seed: the random seed for initial weights, image order, augmentation and dropout.
        augment: whether to augment the training images.
        dropout: the dropout rate, for variants with dropout layers.
        limit_train: the number of training images to use, the first ones, for a quick trial.
        holdout: the number of training images to hold out, and to test on instead of the test set.
        fold: the block of images to hold out: 0 is the last block, 1 the one before it, and so on.
        augmentation: the kind of augmentation: notebook (rotation, shift, scale, shear, brightness,
            contrast), one part of it (rotation, affine, jitter), or bilinear or a variation of it
            (docs/recipes.md).
        schedule: the learning rate schedule: constant, one_cycle, step (torch's StepLR) or plateau
            (torch's ReduceLROnPlateau, of the training loss).
        momentum: the momentum of SGD; ignored if the schedule cycles the momentum.
        nesterov: whether to use Nesterov momentum.
        weight_decay: the L2 penalty: this multiple of the parameters is added to the gradients.
        l1: the L1 penalty: this multiple of the sum of the parameters' absolute values is added to
            the loss.
        ema_decay: the decay per step of the moving average of the weights, which is evaluated in
            place of the weights; 0 for no average.
        cycle_momentum: whether the one-cycle schedule also cycles the momentum.
        base_momentum: the smallest momentum of the one-cycle schedule.
        max_momentum: the largest momentum of the one-cycle schedule.
        pct_start: the fraction of the steps in which the one-cycle learning rate increases.
        div_factor: the ratio of the peak to the initial one-cycle learning rate.
        final_div_factor: the ratio of the initial to the final one-cycle learning rate.
        gamma: the factor of each decay of the step and plateau schedules.
        step_size: the number of epochs between the decays of the step schedule.
        patience: the number of epochs without a smaller training loss that the plateau schedule
            accepts before it decays.
        network: a network of your own, as text, such as "conv 8 / relu / mean / conv 10 1x1"
            (docs/networks.md); it has the recipes of gap.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """

    variant: str = _FILLED_IN
    dataset: str = "mnist"
    recipe: str = "notebook"
    epochs: int = _FILLED_IN
    batch_size: int = _FILLED_IN
    learning_rate: float = _FILLED_IN
    seed: int = 0
    augment: bool = _FILLED_IN
    dropout: float = _FILLED_IN
    limit_train: int | None = None
    holdout: int | None = None
    fold: int = 0
    augmentation: str = _FILLED_IN
    schedule: str = _FILLED_IN
    momentum: float = _FILLED_IN
    nesterov: bool = _FILLED_IN
    weight_decay: float = _FILLED_IN
    l1: float = _FILLED_IN
    ema_decay: float = _FILLED_IN
    cycle_momentum: bool = _FILLED_IN
    base_momentum: float = _FILLED_IN
    max_momentum: float = _FILLED_IN
    pct_start: float = _FILLED_IN
    div_factor: float = _FILLED_IN
    final_div_factor: float = _FILLED_IN
    gamma: float = _FILLED_IN
    step_size: int = _FILLED_IN
    patience: int = _FILLED_IN
    network: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        variant, network = _name_network(self.variant, self.network)
        object.__setattr__(self, "variant", variant)
        object.__setattr__(self, "network", network)
        check_choice("dataset", self.dataset, DATASETS)
        _check_recipe(self.recipe, self.variant)
        values = values_of(self.variant, self.recipe)
        self._fill_in(values if _has_dropout(self) else {**values, "dropout": 0.0})
        _check_values(self)
        _check_together(self)

    def _fill_in(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """Name of the variant and its recipe, without "notebook": gap/no_dropout, gap/record.

        It omits fields that differ from the recipe. `parse_experiment` is the inverse.
        """
        beyond = [part for part in self.recipe.split("/") if part != TrainConfig.recipe]
        return "/".join([self.variant, *beyond])

    def to_dict(self) -> dict[str, Any]:
        """Return the format and every field, for JSON; `network` only if there is one."""
        fields = dataclasses.asdict(self)
        if self.network is None:  # like the configs from before there was this field
            del fields["network"]
        return {"format": FORMAT, **fields}

    @classmethod
    def from_dict(cls, values: Any) -> "TrainConfig":
        """Return the config for the values that `to_dict` returned, after they were read as JSON.

        Raises:
            ConfigError: the values are not a dict of these fields, or have another format.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"config has {type(values).__name__}; expected a JSON object")
        check_format("config", values.get("format"), *READABLE_FORMATS)
        fields = {"format", *(field.name for field in dataclasses.fields(cls))}
        if not fields - _OPTIONAL[values["format"]] <= set(values) <= fields:
            raise ConfigError(
                f"config has {sorted(values)}; expected an object with the fields {sorted(fields)}"
            )
        return cls(**{name: value for name, value in values.items() if name != "format"})

    def check_continues(self, begun: "TrainConfig") -> None:
        """Check that a run that started with another config can continue with this one.

        All fields must be equal, except that `epochs` may increase at a constant learning rate.

        Args:
            begun: the config with which the run started.

        Raises:
            ConfigError: a field differs; the message lists each with both values.
        """
        may_grow = begun.schedule == self.schedule == "constant" and self.epochs > begun.epochs
        differing = [
            f"{name} was {old!r} and is {new!r}"
            for name, old in dataclasses.asdict(begun).items()
            if (new := getattr(self, name)) != old and not (name == "epochs" and may_grow)
        ]
        if differing:
            raise ConfigError(
                f"the run was started with another config: {', '.join(differing)}; continue "
                "with the same one, or start another run (only epochs may increase, and only at a "
                "constant rate)"
            )


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds as Python integers.

    Raises:
        ConfigError: there are no seeds or too many, or a seed is repeated or out of range.
    """
    if len(seeds) == 0:
        raise ConfigError("seeds is empty; expected at least one")
    if len(seeds) > MAX_SEEDS:
        raise ConfigError(f"there are more than {MAX_SEEDS} seeds; expected at most that many")
    plain = tuple(TrainConfig(seed=seed).seed for seed in seeds)
    for seed in plain:
        if plain.count(seed) > 1:
            raise ConfigError(f"seeds has {seed} more than once; each seed is one run")
    return plain


def parse_experiment(name: str, **fields: Any) -> TrainConfig:
    """Return the config for a `TrainConfig.name`.

    Args:
        name: a variant, followed by a recipe, changes, or both, separated by slashes.
        fields: the other fields of `TrainConfig`.

    Raises:
        ConfigError: the variant, recipe or change does not exist, or a field is invalid.
    """
    variant, *recipe = name.split("/")
    if recipe:
        check_choice("recipe or change of it", recipe[0], [*RECIPES, *CHANGES])
    if not recipe or recipe[0] not in RECIPES:
        recipe.insert(0, TrainConfig.recipe)
    return TrainConfig(variant, recipe="/".join(recipe), **fields)


def parse_seeds(text: str, first: int) -> tuple[int, ...]:
    """Return the seeds for the value of `--seeds`.

    Args:
        text: a count, such as "8", or a list, such as "3,7,11".
        first: the first seed, for a count.

    Raises:
        ConfigError: the text is neither a count nor a list.
    """
    if re.fullmatch(r"[0-9]{1,10}(,[0-9]{1,10})+", text):
        return tuple(map(int, text.split(",")))
    if re.fullmatch(r"[0-9]{1,9}", text):
        return tuple(range(first, first + min(int(text), MAX_SEEDS + 1)))
    raise ConfigError(f"seeds is {text!r}; expected a count, such as 8, or a list, such as 3,7,11")


def format_seeds(seeds: Sequence[int]) -> str:
    """Return seeds as text, such as "0 to 7" or "3, 7, 11"."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def steps_per_epoch(train_count: int, batch_size: int) -> int:
    """Return the number of full batches per epoch; each epoch skips the remaining images.

    Args:
        train_count: number of training images.
        batch_size: images per step.

    Raises:
        ConfigError: there are fewer images than one batch needs.
    """
    if batch_size > train_count:
        raise ConfigError(
            f"batch_size is {batch_size}, but there are only {train_count} training images; "
            f"use --batch-size {train_count} or less"
        )
    return train_count // batch_size


def check_format(what: str, found: object, *readable: int) -> None:
    """Check that this version can read a format.

    Raises:
        ConfigError: this version does not read the format.
    """
    if found not in readable:
        raise ConfigError(
            f"{what} is of format {found!r}, but this version of jaxmnist reads format "
            f"{' and '.join(map(str, readable))}; use the version that wrote it"
        )


def check_choice(field: str, value: object, known: Collection[str]) -> None:
    """Check that a name is known.

    Raises:
        ConfigError: the name is unknown; the message suggests the closest one.
    """
    if isinstance(value, str) and value in known:
        return
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{field} is {value!r}; expected one of {', '.join(known)}.{hint}")


def _name_network(variant: Any, network: Any) -> tuple[str, str | None]:
    """Return the name of a network, and its text on one line.

    Raises:
        ConfigError: the network does not exist, or the name or the text is invalid.
    """
    if network is None:
        variant = "gap" if variant is None else variant
        check_choice("variant", variant, RECIPES["notebook"])
        return variant, None
    if not isinstance(network, str):
        raise ConfigError(f"network is {network!r}; expected text, such as conv 8 / relu / ...")
    try:
        parse(network)
    except NetworkError as error:
        raise ConfigError(f"network, {error}") from error
    text = canonical(network)
    if variant is None:
        variant = f"own-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    is_name = re.fullmatch(r"[A-Za-z0-9][\w-]{0,60}", str(variant), re.ASCII)
    if variant in RECIPES["notebook"] or not is_name:
        raise ConfigError(
            f"variant is {variant!r}; expected a name for your own network, of letters, digits, - "
            "and _, that no other network has"
        )
    return variant, text


def _check_recipe(recipe: object, variant: str) -> None:
    if not isinstance(recipe, str):
        raise ConfigError(f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}")
    name, *changes = recipe.split("/")
    check_choice("recipe", name, RECIPES)
    for change in changes:
        check_choice("change of the recipe", change, CHANGES)
    if variant in RECIPES["notebook"] and variant not in RECIPES[name]:
        raise ConfigError(
            f"recipe is {name!r}, which is for {', '.join(RECIPES[name])}, not for {variant}; "
            "expected notebook"
        )


def _plain(value: Any) -> Any:
    """Convert a NumPy or JAX scalar to a Python number; return any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _is_whole(value: object) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# Fields, the check of a value, and its description in error messages.
_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("augment nesterov cycle_momentum", lambda x: type(x) is bool, "True or False"),
    (
        "epochs batch_size step_size",
        lambda x: _is_whole(x) and x >= 1,
        "a whole number of at least 1",
    ),
    ("fold patience", lambda x: _is_whole(x) and x >= 0, "a whole number of at least 0"),
    ("seed", lambda x: _is_whole(x) and 0 <= x < 2**32, "a whole number from 0 to 4294967295"),
    ("weight_decay l1", lambda x: _is_number(x) and x >= 0, "a finite number of at least 0"),
    ("pct_start gamma", lambda x: _is_number(x) and 0 < x < 1, "a number between 0 and 1"),
    (
        "limit_train holdout",
        lambda x: x is None or (_is_whole(x) and x >= 1),
        "a whole number of at least 1",
    ),
    (
        "learning_rate div_factor final_div_factor",
        lambda x: _is_number(x) and x > 0,
        "a finite number above 0",
    ),
    (
        "dropout momentum base_momentum max_momentum ema_decay",
        lambda x: _is_number(x) and 0 <= x < 1,
        "a number of at least 0 and below 1",
    ),
)


def _check_values(config: TrainConfig) -> None:
    """Check each value on its own."""
    check_choice("augmentation", config.augmentation, AUGMENTATIONS)
    check_choice("schedule", config.schedule, SCHEDULES)
    for names, accepts, words in _RULES:
        for name in names.split():
            if not accepts(value := getattr(config, name)):
                raise ConfigError(f"{name} is {value!r}; expected {words}")


def _check_together(config: TrainConfig) -> None:
    """Check values that depend on each other."""
    if config.fold and config.holdout is None:
        raise ConfigError(f"fold is {config.fold}, but no images are held out; pass --holdout too")
    if config.dropout and not _has_dropout(config):
        having = [name for name, values in RECIPES["notebook"].items() if values.get("dropout")]
        hint = f"use one of {', '.join(having)}" if config.network is None else "add a drop layer"
        raise ConfigError(
            f"dropout is {config.dropout}, but the variant {config.variant} has no dropout layers; "
            f"leave --dropout out, or {hint}"
        )
    if config.network is not None:
        _check_norms(config, with_shapes(parse(config.network)))
    elif config.variant in ("gap", "gap_two_pools") and config.batch_size == 1:
        raise ConfigError(
            f"batch_size is 1; {config.variant} normalises single numbers over the batch; "
            "use at least 2"
        )
    elif config.variant == "gap_ghost_norm" and (config.batch_size % 4 or config.batch_size == 4):
        raise ConfigError(
            f"batch_size is {config.batch_size}; gap_ghost_norm normalises four parts of the batch "
            "with at least two images each; use a multiple of 4 of at least 8"
        )


def _has_dropout(config: TrainConfig) -> bool:
    """Return whether a network has dropout layers without a rate of their own."""
    if config.network is None:
        return "dropout" in RECIPES["notebook"][config.variant]
    specs = parse(config.network)
    return any(spec["kind"] == "dropout" and spec["rate"] is None for spec in specs)


def _check_norms(config: TrainConfig, layers: Sequence[LayerSpec]) -> None:
    """Check that a batch, or its parts, has several numbers to normalise in each channel."""
    for layer in layers:
        parts = {"norm": 1, "ghost_norm": layer.get("splits")}.get(layer["kind"])
        if parts is None:
            continue
        if config.batch_size % parts:
            raise ConfigError(
                f"batch_size is {config.batch_size}, which {layer['line']} of the network, "
                f"{layer['text']}, does not divide; use a multiple of {parts}"
            )
        if config.batch_size // parts * layer["side"] ** 2 == 1:
            raise ConfigError(
                f"batch_size is {config.batch_size}, so that {layer['line']} of the network, "
                f"{layer['text']}, normalises single numbers; use at least {2 * parts}"
            )
