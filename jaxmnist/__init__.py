"""The MNIST coding drill-down as a functional JAX program.

>>> import jaxmnist
>>> run = jaxmnist.train(jaxmnist.TrainConfig(variant="gap", epochs=1))
>>> run.summary["final_test_accuracy"]
"""

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.models import create_model
from jaxmnist.recipes import DATASETS, RECIPES, VARIANTS
from jaxmnist.runs.run import Run, load_run
from jaxmnist.runs.seeds import SeedRuns, load_seeds, train_seeds
from jaxmnist.runs.training import train

__all__ = [
    "DATASETS",
    "RECIPES",
    "VARIANTS",
    "ConfigError",
    "Run",
    "SeedRuns",
    "TrainConfig",
    "create_model",
    "load_run",
    "load_seeds",
    "train",
    "train_seeds",
]
