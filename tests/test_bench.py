"""The benchmark gives every participant the same work, and reports what one cannot do."""

import argparse
import contextlib
import importlib
import json
import re
import sys
import textwrap
from importlib.util import find_spec

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmnist
from jaxmnist import TrainConfig, create_model
from jaxmnist.models import description
from jaxmnist.models.convolution import matmul_conv
from jaxmnist.models.description import describe
from jaxmnist.state import jit_once
from tests.conftest import COMPILED_QUICKLY, SCRIPTS, golden_batch, golden_variables
from tests.test_description import PARAMETERS


@pytest.fixture(scope="module")
def parts():
    """Imports a module of the benchmark by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        patch.syspath_prepend(SCRIPTS / "benchmark")
        yield importlib.import_module


@pytest.fixture(scope="module")
def bench(parts):
    """scripts/bench.py, with rounds too short to mean anything."""
    module = parts("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts("benchmark.participant"), "ROUND_SECONDS", 0.01)
        patch.setattr(module, "PAUSE_SECONDS", 0)
        # Nor is it worth waiting until the compiler has made its programs fast.
        patch.setenv("XLA_FLAGS", COMPILED_QUICKLY)
        yield module


@pytest.fixture
def participant(bench, tmp_path, monkeypatch):
    """Starts a participant whose module has this content."""
    with contextlib.ExitStack() as stack:

        def start(content):
            (tmp_path / "written_here.py").write_text(textwrap.dedent(content))
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
            return stack.enter_context(bench.Participant("written_here"))

        yield start


def test_a_failing_job_does_not_end_the_others(bench, participant):
    ours = participant(
        """
        import time

        def prepare(spec):
            print("a library that prints")
            nap = lambda times: time.sleep(0.01 * times)
            return {"bad": fail, "good": nap}, {"word": spec["word"]}

        def fail(times):
            raise ValueError("no compiler\\nhere")
        """
    )
    assert ours.ask("prepare", {"word": "yes"}) == [["bad", "good"], {"word": "yes"}]
    with pytest.raises(bench.ParticipantError, match=r"^ValueError: no compiler$"):
        ours.seconds("bad")
    assert ours.seconds("good") >= 0.01


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import absent", "^ModuleNotFoundError: No module named 'absent'$"),
        ("import os; os._exit(3)", "^its process ended with status 3$"),
    ],
)
def test_a_participant_that_cannot_start_is_an_error(bench, participant, content, reason):
    with pytest.raises(bench.ParticipantError, match=reason):
        participant(content).ask("prepare", {})


def test_a_round_lasts_half_its_length_at_least(parts, monkeypatch):
    module, done = parts("benchmark.participant"), []

    def ask(self, job, times):
        done.append(times)
        return 0.25 * times

    monkeypatch.setattr(module, "ROUND_SECONDS", 1.6)
    monkeypatch.setattr(module.Participant, "ask", ask)
    monkeypatch.setattr(module.subprocess, "Popen", lambda *words, **pipes: None)
    ours = module.Participant("ours")
    assert [ours.seconds("step"), ours.seconds("step")] == [0.25, 0.25]
    assert done == [1, 1, 2, 4, 4, 4]


def test_costs_worked_by_hand():
    first, *_ = network = describe(create_model("gap"))
    # 4 features of 9 products each in 26 x 26 places; 28 x 28 numbers in, 4 x 26 x 26 out.
    assert description.forward_flop(first) == 2 * 9 * 4 * 26 * 26
    assert description.forward_bytes(first) == 4 * (28 * 28 + 4 * 26 * 26)
    # Products of gap's convolutions forward, by hand; twice more backward but for the first.
    products = [24336, 165888, 11520, 144000, 147456, 93312, 288, 160]
    assert description.step_flop(network) == 2 * (3 * sum(products) - products[0])


@pytest.mark.parametrize("variant", ["less_params", "batch_norm", "gap"])
def test_the_flax_peer_is_the_same_network(parts, variant):
    plain = parts("peer_flax").PlainNetwork(tuple(describe(create_model(variant))))
    images, _ = golden_batch(4)
    ours = golden_variables(variant)
    names = {"conv": "Conv_", "norm": "BatchNorm_"}

    def renamed(layers):
        return {names[name[:4]] + name[4:]: leaves for name, leaves in layers.items()}

    theirs = {collection: renamed(layers) for collection, layers in ours.items()}
    expected = jit_once(jaxmnist.create_model(variant).apply)(ours, images)
    chex.assert_trees_all_close(jit_once(plain.apply)(theirs, images), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["skeleton", "gap"])
def test_the_pytorch_peer_is_the_same_network(parts, variant):
    torch = pytest.importorskip("torch")
    network = parts("peer_pytorch").make_network(describe(create_model(variant)))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[variant]
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_ratios_are_to_the_best_form(bench):
    times = {
        "ours": {"step": [1.0, 3.0, 2.0], "augmented step": [4.0], "evaluation": [5.0]},
        "pytorch": {
            "step: eager": [8.0],
            "step: compiled": [4.0, 4.0, 9.0],
            "notebook step: 0 workers": [16.0],
        },
    }
    assert bench.ratios(times, ["pytorch"]) == {
        "pytorch: step": {"best": "step: compiled", "ratio": 0.5},
        "pytorch: notebook step": {"best": "notebook step: 0 workers", "ratio": 0.25},
    }


@pytest.mark.parametrize(
    ("words", "peers"),
    [((), []), (("--peer",), ["pytorch"]), (("--peer", "flax", "--peer"), ["flax", "pytorch"])],
)
def test_peers_on_the_command_line(bench, words, peers):
    assert bench.parse(words).peer == peers


@pytest.mark.parametrize("words", ["0", "1,x", ""])
def test_numbers_of_seeds_are_at_least_one(bench, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        bench.parse(["--seeds", words])
    assert "argument --seeds: invalid counts value" in capsys.readouterr().err
    assert bench.parse(["--seeds", "1,4"]).seeds == (1, 4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--rounds", "0"], "rounds is 0; expected a whole number of at least 1"),
        (
            ["--variant", "dropout", "--whole", "fast"],
            "recipe is 'fast', which is for gap, not for",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(bench, monkeypatch, capsys, words, error):
    monkeypatch.setattr(bench, "measure", None)
    assert bench.main(words) == 2
    assert f"error: {error}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("nowhere/python", "pytorch cannot be measured: .*nowhere"),
        pytest.param(
            sys.executable,
            r'no PyTorch: pip install -e "\.\[bench\]"',
            marks=pytest.mark.skipif(bool(find_spec("torch")), reason="PyTorch is here"),
        ),
    ],
)
def test_a_peer_that_is_not_there_is_an_error(bench, python, reason):
    with pytest.raises(bench.ParticipantError, match=reason):
        bench.alternate(["pytorch"], {"peer_python": python}, 1)


@pytest.mark.parametrize(("name", "is_refused"), [("ours", True), ("flax", False)])
def test_only_a_peer_may_fail(bench, monkeypatch, name, is_refused):
    class Failing:
        def ask(self, request, spec):
            return ["step"], {}

        def seconds(self, job):
            raise bench.ParticipantError("out of memory")

    monkeypatch.setattr(bench, "start", lambda module, spec: contextlib.nullcontext(Failing()))
    if is_refused:
        with pytest.raises(bench.ParticipantError, match="out of memory"):
            bench.alternate([name], {}, 1)
    else:
        assert bench.alternate([name], {}, 1)["failed"] == {f"{name}: step": "out of memory"}


@pytest.fixture(scope="module")
def measured(bench, small_idx_dir, tmp_path_factory):
    """Everything but what needs PyTorch, measured on the small images in one short round."""
    words = ["--rounds", "1", "--layers", "--peer", "flax", "--seeds", "2", "--whole", "notebook"]
    arguments = bench.parse([*words, "--idx-dir", str(small_idx_dir)])
    config = TrainConfig("less_params", "kmnist", batch_size=20)
    return bench.measure(arguments, config, tmp_path_factory.mktemp("bench"))


@pytest.mark.slow
def test_everything_is_measured(measured):
    assert measured["failed"] == {}
    jobs = {"step", "augmented step", "evaluation", "matmul", "copy"}
    assert set(measured["seconds"]["ours"]) == jobs
    assert set(measured["ratios"]) == {"flax: step", "flax: augmented step", "flax: evaluation"}
    assert set(measured["seconds"]["seeds"]) == {"loop 1", "vmap 2", "processes 2"}
    assert len(measured["seconds"]["layers"]) == 2 * len(measured["layers"])
    assert all(
        seconds[0] > 0 for times in measured["seconds"].values() for seconds in times.values()
    )
    assert measured["start"]["cold_seconds"] > 0
    assert measured["start"]["warm_peak_bytes"][0] > 1e8
    (trained,) = measured["whole"]["jaxmnist, notebook"]
    assert trained["reached"] == {"99.0": None, "99.4": None}
    assert 0 < trained["final_test_accuracy"] < 99
    assert trained["seconds"] > measured["start"]["warm_seconds"][0] / 2
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.slow
def test_every_figure_has_its_place_in_the_tables(parts, measured):
    failed = {**measured, "failed": {"seeds: vmap 8": "RuntimeError: out of memory"}}
    tables = parts("benchmark.tables").tables("gap", failed)
    assert [re.split(r"; | on |: ", table.title)[:2] for table in tables][1:] == [
        ["gap", "peers"],
        ["gap", "every layer alone"],
        ["gap", "a step of one seed, when several are trained"],
        ["gap", "from the start of the process"],
        ["gap", "failed"],
    ]
    seconds = measured["seconds"]["seeds"]["vmap 2"][0]
    assert list(tables[3].columns[2].cells)[1] == f"{seconds / 2 * 1e3:.2f} ms"


def test_a_goal_is_reached_when_an_epoch_that_has_it_is_done(bench):
    epochs = [[10.0, 98.9], [20.5, 99.0], [30.0, 98.0], [40.0, 99.41]]
    assert bench.reached({"epochs": epochs, "seconds": 60.0}) == {
        "seconds": 60.0,
        "reached": {"99.0": 20.5, "99.4": 40.0},
        "final_test_accuracy": 99.41,
    }


def test_whole_trainings_take_turns_each_round_with_a_seed(bench, monkeypatch):
    started = []

    def train(module, spec, config):
        started.append((module, config))
        return {"epochs": [[1.0, 0.0]], "seconds": len(started)}

    monkeypatch.setattr(bench, "train", train)
    arguments = bench.parse(["--whole", "fast,record/no_decay", "--peer", "--rounds", "2"])
    whole = bench.measure_whole(arguments, TrainConfig("gap", batch_size=64), {})
    # The first two compile, and are not counted.
    assert {name: [run["seconds"] for run in runs] for name, runs in whole.items()} == {
        "jaxmnist, fast": [3, 6],
        "jaxmnist, record/no_decay": [4, 7],
        "pytorch, notebook": [5, 8],
    }
    assert [config.seed for _, config in started] == [0, 0, 0, 0, 0, 1, 1, 1]
    # The recipes' own batches, whatever the steps that are timed have.
    assert started[2] == ("train_ours", TrainConfig("gap", recipe="fast"))
    assert started[7] == ("peer_pytorch", TrainConfig("gap", seed=1))


def test_a_peer_alone_trains_nothing_whole(bench):
    assert bench.measure_whole(bench.parse(["--peer"]), TrainConfig("gap"), {}) == {}


def test_whole_trainings_in_a_table(parts):
    def run(seconds, first, final):
        reached = {"99.0": first, "99.4": None}
        return {"seconds": seconds, "reached": reached, "final_test_accuracy": final}

    whole = {"jaxmnist, fast": [run(30.0, 10.0, 99.3), run(32.0, 14.0, 99.5)]}
    table = parts("benchmark.tables").whole_table("gap", {"whole": whole})
    assert [next(iter(column.cells)) for column in table.columns] == [
        *("jaxmnist, fast", "2", "12.0 s (10.0 to 14.0)", "in 0 of 2"),
        *("31.0 s (30.0 to 32.0)", "99.40 % (99.30 to 99.50)"),
    ]


@pytest.mark.slow
def test_the_pytorch_peer_trains_to_the_end(bench, small_idx_dir, tmp_path):
    pytest.importorskip("torch")
    config = TrainConfig("gap", "kmnist", batch_size=100, epochs=2)
    places = argparse.Namespace(data_dir=None, idx_dir=small_idx_dir)
    images = str(bench.write_images(places, config, tmp_path))
    spec = {
        "layers": describe(create_model("gap")),
        "images": images,
        "peer_python": sys.executable,
    }
    found = bench.reached(bench.train("peer_pytorch", spec, config))
    assert 0 < found["final_test_accuracy"] < 99


@pytest.mark.parametrize(("bits", "kept"), [(8, 0.0), (11, 2.0**-9)])
def test_factors_are_rounded_forward_and_backward(parts, bits, kept):
    """1 + 2**-9 has ten bits: eight round it to 1."""
    convolve = parts("benchmark.rounded_products").with_rounded_factors(matmul_conv, bits)
    x, kernel = jnp.full((1, 1, 1, 1, 1, 1), 1 + 2.0**-9), jnp.full((1, 1, 1, 1), 3.0)
    y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, 0, 1), x, kernel)
    np.testing.assert_array_equal(y, 3 * (1 + kept))
    gradients = pull(jnp.full_like(y, 1 + 2.0**-9))
    np.testing.assert_array_equal(gradients[0], 3 * (1 + kept))
    np.testing.assert_array_equal(gradients[1].ravel(), (1 + kept) ** 2)
