"""Names of the networks, their training recipes, and changes to a recipe, as data.

A recipe is a dict of `TrainConfig` fields. A released recipe never changes; a better one gets a new
name. docs/recipes.md describes how `fast` and `record` were chosen.
"""

from typing import Any, NamedTuple

DATASETS = ("mnist", "fashion_mnist", "kmnist")

VARIANTS = ("skeleton", "less_params", "batch_norm", "dropout", "fc_layer", "augmentation", "gap")
# Variations of gap, trained with its recipe: four of other normalisations, three of other shapes.
ABLATION_NETWORKS = (
    *("gap_without_norm", "gap_group_norm", "gap_layer_norm", "gap_ghost_norm"),
    *("gap_late_pool", "gap_wide", "gap_two_pools"),
)
NETWORKS = VARIANTS + ABLATION_NETWORKS

SCHEDULES = ("constant", "one_cycle", "step", "plateau")
AUGMENTATIONS = (
    *("notebook", "rotation", "affine", "jitter"),
    *("bilinear", "bilinear_and_light", "weak_bilinear", "strong_bilinear"),
)

# Values of the fields that neither the recipe nor the user sets.
DEFAULTS: dict[str, Any] = {
    "batch_size": 128,
    "augment": False,
    "augmentation": "notebook",
    "dropout": 0.0,
    "schedule": "constant",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
    "l1": 0.0,
    "ema_decay": 0.0,
    # One-cycle schedule: names and defaults of torch.optim.lr_scheduler.OneCycleLR.
    "cycle_momentum": True,
    "base_momentum": 0.85,
    "max_momentum": 0.95,
    "pct_start": 0.3,
    "div_factor": 25.0,
    "final_div_factor": 1e4,
    # Step and plateau schedules: names of StepLR and ReduceLROnPlateau, in epochs.
    "gamma": 0.1,
    "step_size": 6,
    "patience": 1,
}

_GAP = {
    "epochs": 15,
    "learning_rate": 0.015,
    "schedule": "one_cycle",
    "augment": True,
    "dropout": 0.05,
}
_RECORD = {
    "epochs": 30,
    "learning_rate": 0.1,
    "schedule": "one_cycle",
    "augment": True,
    "augmentation": "bilinear",
    "nesterov": True,
    "weight_decay": 5e-4,
    "ema_decay": 0.999,
}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # Hyperparameters of the original notebooks, one row per notebook.
    "notebook": {
        "skeleton": {"epochs": 19, "learning_rate": 0.01},
        "less_params": {"epochs": 15, "learning_rate": 0.01},
        "batch_norm": {"epochs": 15, "learning_rate": 0.01},
        "dropout": {"epochs": 15, "learning_rate": 0.01, "dropout": 0.2},
        "fc_layer": {"epochs": 15, "learning_rate": 0.01, "dropout": 0.05},
        "augmentation": {"epochs": 15, "learning_rate": 0.01, "augment": True, "dropout": 0.05},
        **dict.fromkeys(("gap", *ABLATION_NETWORKS), _GAP),
    },
    "fast": {"gap": {**_RECORD, "epochs": 6, "batch_size": 64, "ema_decay": 0.998}},
    "record": dict.fromkeys(("gap", "gap_wide", "gap_two_pools"), _RECORD),
}


class Change(NamedTuple):
    """A change to a recipe; its name may follow the recipe's, as in `gap/no_dropout`."""

    values: dict[str, Any]
    idea: str = ""  # description for the tables; empty if only used in searches


CHANGES: dict[str, Change] = {
    "no_dropout": Change({"dropout": 0.0}, "no dropout"),
    "no_augmentation": Change({"augment": False}, "images as they are"),
    "rotation": Change({"augmentation": "rotation"}, "rotation, no other augmentation"),
    "affine": Change({"augmentation": "affine"}, "shift, scale and shear, no other augmentation"),
    "jitter": Change({"augmentation": "jitter"}, "brightness and contrast, no other augmentation"),
    "bilinear_and_light": Change(
        {"augmentation": "bilinear_and_light"},
        "one bilinear map in place of two to the nearest pixel",
    ),
    "constant_rate": Change(
        {"schedule": "constant", "learning_rate": 0.01},
        "a rate of 0.01 and momentum of 0.9 throughout",
    ),
    "constant_momentum": Change(
        {"cycle_momentum": False}, "momentum of 0.9 throughout, the rate as it was"
    ),
    "step_rate": Change(
        {"schedule": "step"}, "the rate divided by 10 after 6 and 12 epochs, momentum of 0.9"
    ),
    "plateau_rate": Change(
        {"schedule": "plateau"},
        "the rate divided by 10 when the training loss stops falling, momentum of 0.9",
    ),
    "l1_penalty": Change({"l1": 1e-4}, "an L1 penalty of 0.0001"),
    "batches_of_64": Change({"batch_size": 64}, "64 images a step"),
    "batches_of_256": Change({"batch_size": 256}, "256 images a step"),
    "notebook_augmentation": Change({"augmentation": "notebook"}),
    "bilinear": Change({"augmentation": "bilinear"}),
    "weak_bilinear": Change({"augmentation": "weak_bilinear"}),
    "strong_bilinear": Change({"augmentation": "strong_bilinear"}),
    "dropout_0.05": Change({"dropout": 0.05}),
    "no_nesterov": Change({"nesterov": False}),
    "rate_0.005": Change({"learning_rate": 0.005}),
    "rate_0.015": Change({"learning_rate": 0.015}),
    "rate_0.05": Change({"learning_rate": 0.05}),
    "rate_0.15": Change({"learning_rate": 0.15}),
    "rate_0.2": Change({"learning_rate": 0.2}),
    "rate_0.5": Change({"learning_rate": 0.5}),
    "no_decay": Change({"weight_decay": 0.0}),
    "decay_1e-4": Change({"weight_decay": 1e-4}),
    "decay_1e-3": Change({"weight_decay": 1e-3}),
    "no_average": Change({"ema_decay": 0.0}),
    "average_0.995": Change({"ema_decay": 0.995}),
    "average_0.998": Change({"ema_decay": 0.998}),
}

# Ablation studies by network: the baseline, then variations with one change each.
ABLATIONS = {
    "gap": (
        "gap",
        "gap_without_norm",
        "gap_group_norm",
        "gap_layer_norm",
        "gap/no_dropout",
        "gap/no_augmentation",
        "gap/rotation",
        "gap/affine",
        "gap/jitter",
        "gap/bilinear_and_light",
        "gap/constant_rate",
        "gap/constant_momentum",
        "gap/step_rate",
        "gap/plateau_rate",
        "gap_late_pool",
        "gap/batches_of_64",
        "gap/batches_of_256",
    ),
}

# Descriptions of the networks and recipes, for the tables.
IDEAS = {
    "skeleton": "convolutions that work",
    "less_params": "narrow layers without biases, average pooling",
    "batch_norm": "three batch normalisations",
    "dropout": "dropout of 0.2, batch normalisation everywhere",
    "fc_layer": "a fully connected end, a wider layer, dropout of 0.05",
    "augmentation": "augmented images",
    "gap": "more width in late layers, one-cycle schedule",
    "gap/fast": "a recipe of our own, few epochs",
    "gap/record": "a recipe of our own, many epochs",
    "gap_without_norm": "no batch normalisation",
    "gap_group_norm": "group normalisation with two groups, in place of batch normalisation",
    "gap_layer_norm": "layer normalisation, in place of batch normalisation",
    "gap_ghost_norm": "batch normalisation over quarters of the batch",
    "gap_late_pool": "the average one layer later",
    **{f"gap/{name}": change.idea for name, change in CHANGES.items() if change.idea},
}


def values_of(variant: str, recipe: str) -> dict[str, Any]:
    """Return the fields that a recipe sets for a variant, the defaults included.

    Args:
        variant: one of `NETWORKS`; networks of the user have the recipes of gap.
        recipe: a recipe, optionally followed by changes: `notebook/no_dropout/batches_of_64`.
    """
    name, *changes = recipe.split("/")
    recipes = RECIPES[name]
    values = {**DEFAULTS, **recipes.get(variant, recipes["gap"])}
    for change in changes:
        values |= CHANGES[change].values
    return values
