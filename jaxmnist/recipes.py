"""The science as data: the seven variants, what each trains with, and changes of it."""

from typing import Any, NamedTuple

VARIANTS = (
    "skeleton",
    "less_params",
    "batch_norm",
    "dropout",
    "fc_layer",
    "augmentation",
    "gap",
)
# Networks next to gap, trained like it: one without a part of it, three of other shapes.
VARIATIONS = ("gap_without_norm", "gap_late_pool", "gap_wide", "gap_two_pools")
NETWORKS = VARIANTS + VARIATIONS

DATASETS = ("mnist", "fashion_mnist", "kmnist")


class Recipe(NamedTuple):
    """What a variant trains with, unless the config says otherwise."""

    epochs: int
    learning_rate: float
    schedule: str = "constant"
    augment: bool = False
    dropout: float = 0.0
    batch_size: int = 128
    augmentation: str = "notebook"  # which of `augment.AUGMENTATIONS`
    cycle_momentum: bool = True  # of the one-cycle schedule
    nesterov: bool = False
    weight_decay: float = 0.0
    average: float | None = None  # of the state that is evaluated: what it keeps a step


_GAP = Recipe(15, 0.015, schedule="one_cycle", augment=True, dropout=0.05)
_RECORD = Recipe(
    epochs=30,
    learning_rate=0.1,
    schedule="one_cycle",
    augment=True,
    augmentation="bilinear",
    nesterov=True,
    weight_decay=5e-4,
    average=0.999,
)

RECIPES: dict[str, dict[str, Recipe]] = {
    # The hyperparameters of the original notebooks, one entry a notebook.
    "notebook": {
        "skeleton": Recipe(epochs=19, learning_rate=0.01),
        "less_params": Recipe(epochs=15, learning_rate=0.01),
        "batch_norm": Recipe(epochs=15, learning_rate=0.01),
        "dropout": Recipe(epochs=15, learning_rate=0.01, dropout=0.2),
        "fc_layer": Recipe(epochs=15, learning_rate=0.01, dropout=0.05),
        "augmentation": Recipe(epochs=15, learning_rate=0.01, augment=True, dropout=0.05),
        **dict.fromkeys(("gap", *VARIATIONS), _GAP),
    },
    # Ours; docs/recipes.md says how they were chosen.
    "fast": {"gap": _RECORD._replace(epochs=6, batch_size=64, average=0.998)},
    "record": dict.fromkeys(("gap", "gap_wide", "gap_two_pools"), _RECORD),
}

# Changes of a recipe, by the names that may follow its own: `notebook/constant_rate`. What a recipe
# does not name is not an option of the command line: it belongs together.
CHANGES: dict[str, dict[str, Any]] = {
    "rotation": {"augmentation": "rotation"},
    "affine": {"augmentation": "affine"},
    "jitter": {"augmentation": "jitter"},
    "notebook_augmentation": {"augmentation": "notebook"},
    "bilinear": {"augmentation": "bilinear"},
    "bilinear_and_light": {"augmentation": "bilinear_and_light"},
    "weak_bilinear": {"augmentation": "weak_bilinear"},
    "strong_bilinear": {"augmentation": "strong_bilinear"},
    "no_augmentation": {"augment": False},
    "no_dropout": {"dropout": 0.0},
    "dropout_0.05": {"dropout": 0.05},
    "constant_rate": {"schedule": "constant", "learning_rate": 0.01},
    "constant_momentum": {"cycle_momentum": False},
    "no_nesterov": {"nesterov": False},
    "rate_0.05": {"learning_rate": 0.05},
    "rate_0.2": {"learning_rate": 0.2},
    "no_decay": {"weight_decay": 0.0},
    "decay_1e-4": {"weight_decay": 1e-4},
    "decay_1e-3": {"weight_decay": 1e-3},
    "no_average": {"average": None},
    "average_0.995": {"average": 0.995},
    "average_0.998": {"average": 0.998},
    "batches_of_64": {"batch_size": 64},
    "batches_of_256": {"batch_size": 256},
}

# Of a network: itself, and all that is trained next to it with one thing changed. Names as
# `TrainConfig.name` has them.
ABLATIONS = {
    "gap": (
        "gap",
        "gap_without_norm",
        "gap/no_dropout",
        "gap/no_augmentation",
        "gap/rotation",
        "gap/affine",
        "gap/jitter",
        "gap/bilinear_and_light",
        "gap/constant_rate",
        "gap/constant_momentum",
        "gap_late_pool",
        "gap/batches_of_64",
        "gap/batches_of_256",
    ),
}
