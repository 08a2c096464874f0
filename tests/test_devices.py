"""The same run on one device and on many; `eight_devices.py` has what is measured."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jaxmnist import ConfigError, RunOptions, TrainConfig, load_run, train
from jaxmnist.parallel import devices
from jaxmnist.parallel.devices import Devices, choose_devices, fetch, lay
from jaxmnist.runs import train as train_module
from tests.conftest import COMPILED_QUICKLY, QUICK, finish
from tests.test_runs import plain

PROGRAM = Path(__file__).parent / "eight_devices.py"


@pytest.fixture
def start(start):
    return functools.partial(start, flags=COMPILED_QUICKLY)


def measured(what, variant="quick", **fields):
    """The lines of one call of the program, but for that of one device."""
    network = QUICK if variant == "quick" else None
    config = json.dumps({"variant": variant, "network": network, **fields})
    words = [sys.executable, PROGRAM, what, config]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, *many = map(json.loads, done.stdout.splitlines())
    assert (one["devices"], one["difference"]) == (1, 0)
    return many


def assert_shared_out(line):
    """Twenty steps on many devices equal those on one, and each device does its part."""
    assert line["dtype"] == "float64"
    assert line["difference"] < 1e-9, line
    assert line["difference_of_sums"] < 1e-3, line
    # A gather would bring back what was shared out.
    assert set(line["exchanges"]) == {"all-reduce"}
    # Were the work not shared out, the difference would be as small.
    assert 0.99 < line["share"] * line["devices"] < 1.07, line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "recipe"),
    [("skeleton", "notebook"), ("batch_norm", "notebook"), ("gap", "record")],
)
def test_eight_devices_train_as_one(variant, recipe):
    (line,) = measured("steps", variant, recipe=recipe)
    assert (line["devices"], line["parallel"]) == (8, "jit")
    assert_shared_out(line)


@pytest.mark.slow
def test_any_number_of_devices_trains_as_one():
    lines = measured("forms", "gap")
    found = [(line["devices"], line["parallel"]) for line in lines]
    assert found == [(2, "jit"), (4, "jit"), (8, "jit"), (8, "pmap")]
    for line in lines:
        assert_shared_out(line)


@pytest.mark.slow
def test_a_step_in_float32_is_that_of_one_device():
    (line,) = measured("step")
    assert (line["devices"], line["dtype"]) == (8, "float32")
    assert line["difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_devices_share_seeds_first_and_then_batches(schedule):
    """With a constant rate, too, of which JAX knows that it is the same for all seeds."""
    lines = measured("seeds", schedule=schedule)
    assert [line["shape"] for line in lines] == [[4, 2], [4, 1], [1, 8]]
    for line in lines:
        assert line["difference"] < 1e-9, line
        assert line["difference_of_sums"] < 1e-3, line


@pytest.fixture
def with_eight(monkeypatch):
    """Says that there are eight devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "devices", lambda: list(range(8)))


def test_all_devices_are_chosen_unless_fewer_are_requested(with_eight):
    assert choose_devices(None, "jit") == Devices(8)
    assert choose_devices(3, "pmap") == Devices(3, "pmap")
    assert Devices(3).all == [0, 1, 2]


@pytest.mark.parametrize(("batch_size", "count"), [(128, 8), (100, 5), (7, 7), (13, 1)])
def test_the_default_number_of_devices_divides_the_batch(with_eight, batch_size, count):
    chosen = choose_devices(None, "jit", batch_size)
    assert chosen == Devices(count)
    idle = devices.idle_devices(chosen, batch_size)
    if count == 8:
        assert idle == []
    else:
        assert idle == [
            f"{count} of 8 devices train: {batch_size} images cannot be divided equally among 8"
        ]
    with pytest.raises(ConfigError, match="devices is 9"):
        choose_devices(9, "jit", batch_size)


@pytest.mark.parametrize(
    ("count", "parallel", "message"),
    [
        (0, "jit", r"devices is 0; expected a whole number from 1 to 8, which is how many there"),
        (9, "jit", r"devices is 9; expected a whole number from 1 to 8"),
        (2, "pmpa", r"parallel is 'pmpa'; expected one of jit, pmap. Did you mean pmap\?"),
    ],
)
def test_unavailable_devices_are_refused(with_eight, count, parallel, message):
    with pytest.raises(ConfigError, match=message):
        choose_devices(count, parallel)


def test_several_processes_use_all_devices(with_eight, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert choose_devices(8, "jit") == Devices(8)
    with pytest.raises(ConfigError, match=r"devices is 4, but the 2 processes have 8"):
        choose_devices(4, "jit")
    with pytest.raises(ConfigError, match=r"parallel is pmap, but there are 2 processes; use jit"):
        choose_devices(8, "pmap")


def test_ghost_normalisation_needs_whole_parts_on_each_device(with_eight):
    config = TrainConfig("gap_ghost_norm", batch_size=16)
    train_module.choose_parallelism(config, (0,), RunOptions(devices=4))
    with pytest.raises(ConfigError, match="each of 8 devices has 2 images of a batch, which do"):
        train_module.choose_parallelism(config, (0,), RunOptions(devices=8))


@pytest.mark.parametrize(
    ("devices", "seeds", "batch_size", "shape"),
    [
        (Devices(8), 1, 120, (1, 8)),
        (Devices(8), 8, 120, (8, 1)),
        (Devices(8), 16, 120, (8, 1)),
        (Devices(8), 4, 120, (4, 2)),
        (Devices(8), 3, 120, (4, 2)),
        (Devices(8), 5, 120, (8, 1)),
        (Devices(8), 9, 120, (8, 1)),
        (Devices(6), 2, 120, (2, 3)),
        (Devices(8, "pmap"), 8, 120, (1, 8)),
        (Devices(8), 3, 100, (4, 2)),
        (Devices(8), 3, 101, (8, 1)),  # 101 is prime: each device has whole batches
        (Devices(8), 1, 100, (2, 4)),  # one seed of several remains
    ],
)
def test_shape_of_the_mesh(devices, seeds, batch_size, shape):
    assert devices.shape(seeds, batch_size) == shape


@pytest.mark.parametrize(
    ("count", "batch_size", "choices"),
    [
        (3, 128, "among 3 devices; use --devices 2 or 4, or --batch-size 126 or 129"),
        (8, 100, "among 8 devices; use --devices 5, or --batch-size 96 or 104"),
        (8, 4, "among 8 devices; use --devices 4, or --batch-size 8"),
    ],
)
def test_an_indivisible_batch_names_sizes_that_work(with_eight, count, batch_size, choices):
    with pytest.raises(ConfigError, match=f"^{batch_size} images cannot .* {re.escape(choices)}$"):
        Devices(count).check_divides(batch_size)


@pytest.mark.parametrize(("count", "batch_size", "seeds"), [(8, 128, 1), (3, 128, 2), (1, 7, 1)])
def test_divisible_batches(with_eight, count, batch_size, seeds):
    Devices(count).check_divides(batch_size, seeds)


def test_compiled_programs_are_found_on_disk(tmp_path):
    """In a process of its own, since JAX opens its cache once."""
    compile_one = (
        "import sys, jax; from pathlib import Path; "
        "from jaxmnist.parallel.devices import enable_compilation_cache; "
        "enable_compilation_cache(Path(sys.argv[1]), 1); jax.jit(lambda x: x + 1)(1.0)"
    )
    words = [sys.executable, "-W", "error::UserWarning", "-c", compile_one, tmp_path]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "1-cores").glob("*-cache")) != []


@pytest.mark.parametrize(
    ("words", "device"),
    [(["--devices", "2", "--parallel", "pmap"], "2 x cpu"), (["--seeds", "3"], "4 x cpu")],
)
def test_the_command_trains_on_many(start, tmp_path, words, device):
    """Three seeds on four devices leave a place over."""
    few = ["--variant", "quick", "--network", QUICK, "--schedule", "constant", "--epochs", "2"]
    few += ["--dataset", "fashion_mnist", "--batch-size", "64", "--limit-train", "128"]
    status, _, errors = finish(start(*few, *words, "--out", "many", devices=4))
    assert (status, errors) == (0, "")
    assert json.loads((tmp_path / "many" / "summary.json").read_text())["device"].startswith(device)
    assert finish(start(*few, "--out", "one"))[0] == 0
    run = load_run(tmp_path / "many")
    alone = load_run(tmp_path / "one")
    chex.assert_trees_all_close(plain(run.state), plain(alone.state), atol=1e-5)
    last = run.snapshots[0].rows[-1]
    assert last["test_loss"] == pytest.approx(alone.rows[-1]["test_loss"], rel=1e-4)


def test_an_indivisible_batch_makes_no_folder(with_eight, tmp_path):
    config = TrainConfig(batch_size=100)
    with pytest.raises(ConfigError, match="100 images cannot be divided equally among 8"):
        train(config, tmp_path / "run", options=RunOptions(devices=8))
    assert not (tmp_path / "run").exists()


def test_fetch_reverses_lay():
    mesh = jax.make_mesh((1,), (devices.DATA,), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree = {"key": jax.random.key(3), "numbers": np.arange(5)}
    found = fetch(lay(tree, whole))
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(tree["key"])).all()
    assert (found["numbers"] == tree["numbers"]).all()
    assert isinstance(found["numbers"], np.ndarray)
