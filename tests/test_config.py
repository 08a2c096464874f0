import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmnist import recipes
from jaxmnist.augment import AUGMENTATIONS
from jaxmnist.config import (
    ConfigError,
    TrainConfig,
    check_seeds,
    format_seeds,
    parse_experiment,
    parse_seeds,
    steps_per_epoch,
)
from jaxmnist.recipes import (
    ABLATIONS,
    CHANGES,
    DATASETS,
    IDEAS,
    NETWORKS,
    RECIPES,
    VARIANTS,
    values_of,
)


def to_json(config):
    return json.dumps(config.to_dict())


def from_json(text):
    return TrainConfig.from_dict(json.loads(text))


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
    assert tuple(RECIPES["notebook"]) == (*NETWORKS, "tiny")  # of tests/conftest.py
    assert NETWORKS[:7] == VARIANTS


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


def test_the_recipes_of_our_own():
    record = TrainConfig(recipe="record")
    assert (record.epochs, record.batch_size, record.learning_rate) == (30, 128, 0.1)
    assert (record.augment, record.dropout) == (True, 0.0)
    assert (record.schedule, record.augmentation, record.nesterov) == (
        "one_cycle",
        "bilinear",
        True,
    )
    assert (record.weight_decay, record.ema_decay, record.cycle_momentum) == (5e-4, 0.999, True)
    fast = TrainConfig(recipe="fast")
    assert fast == dataclasses.replace(
        record, recipe="fast", epochs=6, batch_size=64, ema_decay=0.998
    )


def test_the_constants_are_pytorchs():
    config = TrainConfig("gap")
    assert (config.momentum, config.base_momentum, config.max_momentum) == (0.9, 0.85, 0.95)
    assert (config.pct_start, config.div_factor, config.final_div_factor) == (0.3, 25, 1e4)


def test_changes_of_a_recipe_follow_its_name():
    changed = TrainConfig(recipe="notebook/constant_rate/batches_of_64")
    assert changed == dataclasses.replace(
        TrainConfig("gap"),
        recipe="notebook/constant_rate/batches_of_64",
        schedule="constant",
        learning_rate=0.01,
        batch_size=64,
    )
    assert from_json(to_json(changed)) == changed


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_changes_something_that_can_be_trained(change):
    changed = [values_of("gap", f"{recipe}/{change}") for recipe in RECIPES]
    assert changed != [values_of("gap", recipe) for recipe in RECIPES]
    assert all(TrainConfig(recipe=f"{recipe}/{change}").name for recipe in RECIPES)


def test_every_experiment_differs_from_its_baseline_in_its_config():
    for name in IDEAS:
        if "/" in name:
            baseline, config = parse_experiment(name.rsplit("/", 1)[0]), parse_experiment(name)
            assert dataclasses.replace(config, recipe=baseline.recipe) != baseline


def test_every_augmentation_can_be_named():
    assert set(recipes.AUGMENTATIONS) == set(AUGMENTATIONS)


def test_dropout_is_for_networks_that_have_it_whatever_the_recipe():
    assert TrainConfig(recipe="record", dropout=0.1).dropout == 0.1


def test_a_config_from_before_a_field_has_the_recipes_value():
    values = {**TrainConfig("gap", gamma=0.1).to_dict(), "learning_rate": 0.2}
    earlier = {name: value for name, value in values.items() if name not in ("l1", "gamma")}
    assert TrainConfig.from_dict(earlier) == TrainConfig("gap", learning_rate=0.2)
    del earlier["epochs"]
    with pytest.raises(ConfigError, match="expected an object with the fields"):
        TrainConfig.from_dict(earlier)


@pytest.mark.parametrize("name", ["gap", "gap/record/no_nesterov", "dropout"])
@pytest.mark.parametrize("gone", [(), ("holdout", "fold")])
def test_a_config_of_format_1_has_the_rest_from_its_recipe(name, gone):
    """Its writer knew 12 fields, and the first one 10."""
    config = parse_experiment(name, epochs=3)
    fields = [field.name for field in dataclasses.fields(config)][:12]
    first = {field: getattr(config, field) for field in fields if field not in gone}
    assert TrainConfig.from_dict({"format": 1, **first}) == config
    with pytest.raises(ConfigError, match="expected an object with the fields"):
        TrainConfig.from_dict({"format": 2, **first})


def test_given_values_replace_the_recipes():
    config = TrainConfig("gap", epochs=1, learning_rate=0.1, augment=False, dropout=0.0)
    assert (config.epochs, config.learning_rate) == (1, 0.1)
    assert (config.augment, config.dropout) == (False, 0.0)


@pytest.mark.parametrize("scalar", [np.int64, np.uint32, np.array, jnp.int32])
def test_scalars_of_numpy_and_jax_are_stored_as_pythons_own(scalar):
    config = TrainConfig(
        np.str_("gap"),
        epochs=scalar(3),
        batch_size=scalar(64),
        learning_rate=np.float32(0.5),
        seed=scalar(7),
        augment=np.bool_(False),
        dropout=np.float64(0.25),
        limit_train=scalar(640),
        holdout=scalar(100),
        fold=scalar(1),
    )
    assert config == from_json(to_json(config))
    for name, value in dataclasses.asdict(config).items():
        assert type(value) in (str, int, float, bool) or name == "network"
    assert [type(seed) for seed in check_seeds(np.arange(3))] == [int, int, int]
    with pytest.raises(ConfigError, match=r"seed is 1\.5; expected a whole number"):
        TrainConfig(seed=np.float32(1.5))


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().epochs = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "gpa"}, r"variant is 'gpa'; .*Did you mean gap\?"),
        ({"variant": "xyz"}, r"variant is 'xyz'; expected one of skeleton, .*, gap_two_pools, "),
        ({"recipe": "recrod"}, r"recipe is 'recrod'; .*Did you mean record\?"),
        ({"recipe": 3}, r"recipe is 3; expected one of notebook, fast, record"),
        *(
            ({"variant": "gap_ghost_norm", "batch_size": size}, r"batch_size is .*a multiple of 4")
            for size in (1, 4, 30)
        ),
        ({"recipe": "fast/rate_0.3"}, r"change of the recipe is 'rate_0.3'; .*mean rate_0\.5\?"),
        ({"recipe": "fast/"}, r"change of the recipe is ''; expected one of "),
        (
            {"variant": "dropout", "recipe": "record"},
            r"recipe is 'record', which is for gap, .*, not for dropout; expected notebook",
        ),
        ({"holdout": 0}, r"holdout is 0; expected a whole number of at least 1"),
        ({"holdout": 9, "fold": -1}, r"fold is -1; expected a whole number of at least 0"),
        ({"fold": 1}, r"fold is 1, but no images are held out; pass --holdout too"),
        ({"dataset": "kminst"}, r"dataset is 'kminst'; .*Did you mean kmnist\?"),
        ({"recipe": "mine"}, r"recipe is 'mine'; expected one of notebook"),
        ({"epochs": 0}, r"epochs is 0; expected a whole number of at least 1"),
        ({"epochs": 1.5}, r"epochs is 1\.5; expected a whole number"),
        ({"batch_size": -1}, r"batch_size is -1; expected a whole number of at least 1"),
        ({"batch_size": 1}, r"batch_size is 1; gap normalises single numbers .* use at least 2"),
        ({"variant": "gap_two_pools", "batch_size": 1}, r"batch_size is 1; gap_two_pools normal"),
        ({"limit_train": 0}, r"limit_train is 0; expected a whole number of at least 1"),
        ({"learning_rate": 0}, r"learning_rate is 0; expected a finite number above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate is nan; expected a finite number"),
        ({"learning_rate": float("inf")}, r"learning_rate is inf; expected a finite number"),
        ({"seed": -1}, r"seed is -1; expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, r"seed is 4294967296; expected a whole number from 0 to 4294967295"),
        ({"augment": 1}, r"augment is 1; expected True or False"),
        ({"nesterov": "yes"}, r"nesterov is 'yes'; expected True or False"),
        ({"schedule": "cosine"}, r"schedule is 'cosine'; expected one of constant, one_cycle"),
        ({"augmentation": "afine"}, r"augmentation is 'afine'; .* Did you mean affine\?"),
        ({"momentum": 1}, r"momentum is 1; expected a number of at least 0 and below 1"),
        ({"ema_decay": 1.0}, r"ema_decay is 1\.0; expected a number of at least 0 and below 1"),
        ({"weight_decay": -1}, r"weight_decay is -1; expected a finite number of at least 0"),
        ({"pct_start": 1}, r"pct_start is 1; expected a number between 0 and 1"),
        ({"div_factor": 0}, r"div_factor is 0; expected a finite number above 0"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected a number of at least 0"),
        ({"dropout": -0.1}, r"dropout is -0\.1; expected a number of at least 0"),
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
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "config has list; expected a JSON object"),
        (
            '{"variant": "gap"}',
            "config is of format None, .* reads format 1 and 2; use the version",
        ),
        (to_json(TrainConfig()).replace('"format": 2', '"format": 3'), "config is of format 3"),
        (
            '{"format": 2, "variant": "gap"}',
            re.escape("config has ['format', 'variant']; expected an"),
        ),
        (to_json(TrainConfig()).replace('"gap"', '"nil"'), "variant is 'nil'"),
    ],
)
def test_damaged_json_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


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


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "seeds is empty; expected at least one"),
        ((1, 2, 1), "seeds has 1 more than once; each seed is one run"),
        ((1, -2), "seed is -2; expected a whole number from 0"),
        (("1",), "seed is '1'; expected a whole number from 0"),
        (range(1001), "there are more than 1000 seeds; expected at most that many"),
    ],
)
def test_seeds_that_cannot_be_trained(seeds, message):
    with pytest.raises(ConfigError, match=message):
        check_seeds(seeds)


@pytest.mark.parametrize(
    ("words", "first", "seeds"),
    [("8", 0, range(8)), ("2", 5, (5, 6)), ("3,7,11", 5, (3, 7, 11)), ("0", 0, ())],
)
def test_seeds_on_the_command_line(words, first, seeds):
    assert parse_seeds(words, first) == tuple(seeds)


@pytest.mark.parametrize("words", ["", "x", "3,", ",3", "-1", "1.5", "3 7", "3,,7", "9" * 11])
def test_seeds_that_are_neither_a_number_nor_a_list(words):
    with pytest.raises(
        ConfigError, match=f"seeds is '{words}'; expected a count, such as 8, or a list"
    ):
        parse_seeds(words, 0)


def test_an_absurd_number_of_seeds_is_refused_at_once():
    with pytest.raises(ConfigError, match="more than 1000 seeds"):
        check_seeds(parse_seeds("9" * 9, 0))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([3], "3"),
        ([3, 4], "3, 4"),
        ([3, 4, 5], "3 to 5"),
        ([3, 5, 7], "3, 5, 7"),
        ([2, 1, 0], "2, 1, 0"),
    ],
)
def test_numbers_in_words(numbers, words):
    assert format_seeds(numbers) == words


@pytest.mark.parametrize(
    ("name", "variant", "recipe"),
    [
        ("gap", "gap", "notebook"),
        ("gap/fast", "gap", "fast"),
        ("gap/no_dropout", "gap", "notebook/no_dropout"),
        ("gap/record/notebook_augmentation", "gap", "record/notebook_augmentation"),
        ("gap_late_pool/affine/no_dropout", "gap_late_pool", "notebook/affine/no_dropout"),
    ],
)
def test_names_of_experiments(name, variant, recipe):
    config = TrainConfig(variant, recipe=recipe, seed=3)
    assert config.name == name
    assert parse_experiment(name, seed=3) == config


def test_an_ablation_changes_one_thing_at_a_time():
    for variant, names in ABLATIONS.items():
        whole, *changed = (parse_experiment(name) for name in names)
        assert whole == TrainConfig(variant)
        for config in changed:
            before, after = (values_of(each.variant, each.recipe) for each in (whole, config))
            differing = {field for field, value in before.items() if after[field] != value}
            # The rate of the schedule is its peak: at a constant rate it is another one.
            expected = [{"schedule", "learning_rate"}, set(), *({field} for field in before)]
            assert differing in expected
            assert bool(differing) == (config.variant == variant)
