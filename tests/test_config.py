import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmnist.config import (
    DATASETS,
    RECIPES,
    VARIANTS,
    ConfigError,
    TrainConfig,
    steps_per_epoch,
)


def test_the_seven_variants_in_order():
    assert VARIANTS == (
        "skeleton",
        "less_params",
        "batch_norm",
        "dropout",
        "fc_layer",
        "augmentation",
        "gap",
    )
    assert tuple(RECIPES["notebook"]) == VARIANTS


@pytest.mark.parametrize(
    ("variant", "epochs", "learning_rate", "schedule", "augment", "dropout"),
    [
        ("skeleton", 19, 0.01, "constant", False, 0.0),
        ("less_params", 15, 0.01, "constant", False, 0.0),
        ("batch_norm", 15, 0.01, "constant", False, 0.0),
        ("dropout", 15, 0.01, "constant", False, 0.2),
        ("fc_layer", 15, 0.01, "constant", False, 0.05),
        ("augmentation", 15, 0.01, "constant", True, 0.05),
        ("gap", 15, 0.015, "one_cycle", True, 0.05),
    ],
)
def test_recipes_are_the_notebooks(variant, epochs, learning_rate, schedule, augment, dropout):
    config = TrainConfig(variant)
    assert config.epochs == epochs
    assert config.learning_rate == learning_rate
    assert config.schedule == schedule
    assert config.augment is augment
    assert config.dropout == dropout
    assert config.batch_size == 128


def test_what_is_given_stands():
    config = TrainConfig("gap", epochs=1, learning_rate=0.1, augment=False, dropout=0.0)
    assert (config.epochs, config.learning_rate) == (1, 0.1)
    assert (config.augment, config.dropout) == (False, 0.0)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "gpa"}, r"variant is 'gpa'; .*Did you mean gap\?"),
        ({"variant": "xyz"}, r"variant is 'xyz'; expected one of skeleton, .*, gap\.$"),
        ({"dataset": "kminst"}, r"dataset is 'kminst'; .*Did you mean kmnist\?"),
        ({"recipe": "mine"}, r"recipe is 'mine'; expected one of notebook"),
        ({"epochs": 0}, r"epochs is 0; expected a whole number of at least 1"),
        ({"epochs": 1.5}, r"epochs is 1\.5; expected a whole number"),
        ({"batch_size": -1}, r"batch_size is -1; expected a whole number of at least 1"),
        ({"batch_size": 1}, r"batch_size is 1; gap normalises single numbers .* use at least 2"),
        ({"limit_train": 0}, r"limit_train is 0; expected a whole number of at least 1"),
        ({"learning_rate": 0}, r"learning_rate is 0; expected a finite number above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate is nan; expected a finite number"),
        ({"learning_rate": float("inf")}, r"learning_rate is inf; expected a finite number"),
        ({"seed": -1}, r"seed is -1; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, r"seed is 4294967296; expected a whole number from 0 to 4294967295"),
        ({"augment": 1}, r"augment is 1; expected True or False"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected a number from 0 up to"),
        ({"dropout": -0.1}, r"dropout is -0\.1; expected a number from 0 up to"),
        (
            {"variant": "less_params", "dropout": 0.1},
            r"dropout is 0\.1, but the variant less_params has no dropout layers; "
            r".*dropout, fc_layer, augmentation, gap",
        ),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


@given(
    variant=st.sampled_from(VARIANTS),
    dataset=st.sampled_from(DATASETS),
    epochs=st.integers(1, 10**6),
    batch_size=st.integers(2, 10**6),
    learning_rate=st.floats(1e-9, 1e9),
    seed=st.integers(0, 2**32 - 1),
    augment=st.booleans(),
    limit_train=st.none() | st.integers(1, 60_000),
)
def test_json_round_trip(**values):
    config = TrainConfig(**values)
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config is not JSON"),
        ("[]", "config has list; expected a JSON object"),
        ('{"variant": "gap"}', "config is of format None, .* reads format 1; use the version"),
        (TrainConfig().to_json().replace('"format": 1', '"format": 2'), "config is of format 2"),
        ('{"format": 1, "variant": "gap"}', re.escape("config has ['variant']; expected an")),
        ("[" * 100_000, "config is not JSON"),
        (TrainConfig().to_json().replace('"gap"', '"nil"'), "variant is 'nil'"),
    ],
)
def test_damaged_json_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_json(text)


def test_a_run_goes_on_with_its_own_config_only():
    TrainConfig("gap", seed=1).check_continues(TrainConfig("gap", seed=1))
    with pytest.raises(ConfigError) as error:
        TrainConfig("gap", seed=2, learning_rate=0.5).check_continues(TrainConfig("gap", seed=1))
    assert "another config: learning_rate was 0.015 and is 0.5, seed was 1 and is 2;" in str(
        error.value
    )


def test_epochs_may_grow_at_a_constant_rate_only():
    TrainConfig("less_params", epochs=3).check_continues(TrainConfig("less_params", epochs=2))
    with pytest.raises(ConfigError, match="epochs was 3 and is 2;"):
        TrainConfig("less_params", epochs=2).check_continues(TrainConfig("less_params", epochs=3))
    with pytest.raises(ConfigError, match="epochs was 2 and is 3;"):
        TrainConfig("gap", epochs=3).check_continues(TrainConfig("gap", epochs=2))


@given(count=st.integers(1, 10**5), batch_size=st.integers(1, 10**5))
def test_steps_of_an_epoch_are_its_full_batches(count, batch_size):
    if batch_size > count:
        with pytest.raises(ConfigError, match=f"batch_size is {batch_size}, .*{count} training"):
            steps_per_epoch(count, batch_size)
    else:
        steps = steps_per_epoch(count, batch_size)
        assert steps * batch_size <= count < (steps + 1) * batch_size


def test_the_notebooks_epoch_has_468_full_batches():
    assert steps_per_epoch(60_000, 128) == 468
