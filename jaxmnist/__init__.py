"""The MNIST coding drill-down as a functional JAX program.

>>> import jaxmnist
>>> run = jaxmnist.train(jaxmnist.TrainConfig(variant="gap", epochs=1))
>>> run.summary["final_test_accuracy"]
"""

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.inference.pretrained import load_pretrained
from jaxmnist.models import create_model
from jaxmnist.recipes import DATASETS, RECIPES, VARIANTS
from jaxmnist.runs.run import Run, load_run
from jaxmnist.runs.setup import Callbacks, RunOptions
from jaxmnist.runs.train import train

__all__ = [
    "DATASETS",
    "RECIPES",
    "VARIANTS",
    "Callbacks",
    "ConfigError",
    "Run",
    "RunOptions",
    "TrainConfig",
    "create_model",
    "load_pretrained",
    "load_run",
    "train",
]
