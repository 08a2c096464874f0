"""The benchmark gives every contender the same work, and says so when one cannot do it."""

import argparse
import importlib.util
import json
import sys
import textwrap
from pathlib import Path

import chex
import pytest

import jaxmnist
from jaxmnist import TrainConfig
from jaxmnist.models.description import describe
from tests.conftest import COMPILED_QUICKLY, golden_batch, golden_variables
from tests.test_description import PARAMETERS

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def parts():
    """Imports a module of the benchmark by its name."""
    before = list(sys.path)
    sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "benchmark")]
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture
def contender(parts, tmp_path):
    """Starts a contender whose `prepare` has this body."""
    protocol, started = parts("benchmark.protocol"), []

    def start(body, work=None):
        path = tmp_path / "contender.py"
        path.write_text(
            "from protocol import Offer, serve\n\n\ndef prepare(work):\n"
            + textwrap.indent(textwrap.dedent(body), "    ")
            + "\n\nserve(prepare)\n"
        )
        (tmp_path / "protocol.py").write_text(Path(protocol.__file__).read_text())
        started.append(protocol.Contender([sys.executable, path], work or {}))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_contender_does_its_jobs(contender):
    ours = contender(
        """
        import time
        print("a library that prints")
        return Offer({"nap": lambda times: time.sleep(0.01 * times)}, {"told": work["word"]})
        """,
        {"word": "yes"},
    )
    assert (ours.jobs, ours.facts) == (["nap"], {"told": "yes"})
    assert ours.seconds("nap") >= 0.01


def test_a_job_that_fails_does_not_end_the_others(parts, contender):
    ours = contender(
        """
        import time
        def fail(times):
            raise ValueError("no compiler\\nhere")
        return Offer({"bad": fail, "good": lambda times: time.sleep(0.01 * times)})
        """
    )
    with pytest.raises(
        parts("benchmark.protocol").ContenderError, match=r"ValueError: no compiler$"
    ):
        ours.seconds("bad")
    assert ours.seconds("good") >= 0.01


def test_a_contender_that_dies_leaves_its_last_words(parts, contender):
    error = parts("benchmark.protocol").ContenderError
    with pytest.raises(
        error, match=r"^it ended with status 1: ModuleNotFoundError: No module named 'absent'$"
    ):
        contender("import absent")


def test_a_round_lasts_half_its_length_at_least(parts, monkeypatch):
    protocol = parts("benchmark.protocol")
    clock = [0.0]
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: clock[0])
    done = []

    def job(times):
        done.append(times)
        clock[0] += 0.25 * times

    rounds = protocol.Rounds(job, round_seconds=1.6)
    assert [rounds.seconds(), rounds.seconds()] == [0.25, 0.25]
    assert done == [1, 1, 2, 4, 4, 4]


def test_costs_worked_by_hand(parts):
    networks = parts("jaxmnist.models.description")
    first, *_ = network = describe("gap")
    # 4 features of 9 products each in 26 x 26 places; 28 x 28 numbers in, 4 x 26 x 26 out.
    assert networks.forward_flop(first) == 2 * 9 * 4 * 26 * 26
    assert networks.forward_bytes(first) == 4 * (28 * 28 + 4 * 26 * 26)
    # Products of gap's convolutions forward, by hand; twice more backward but for the first.
    products = [24336, 165888, 11520, 144000, 147456, 93312, 288, 160]
    assert networks.step_flop(network) == 2 * (3 * sum(products) - products[0])


@pytest.mark.parametrize("variant", ["less_params", "batch_norm", "gap"])
def test_the_flax_peer_is_the_same_network(parts, variant):
    network = describe(variant)
    plain = parts("peer_flax").PlainNetwork(tuple(network))
    images, _ = golden_batch(4)
    ours = golden_variables(variant)
    names = {"conv": "Conv_", "norm": "BatchNorm_"}

    def renamed(layers):
        return {names[name[:4]] + name[4:]: leaves for name, leaves in layers.items()}

    theirs = {collection: renamed(layers) for collection, layers in ours.items()}
    expected = jaxmnist.create_model(variant).apply(ours, images)
    chex.assert_trees_all_close(plain.apply(theirs, images), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["skeleton", "gap"])
def test_the_pytorch_peer_is_the_same_network(parts, variant):
    torch = pytest.importorskip("torch")
    network = parts("peer_pytorch").make_network(describe(variant))
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[variant]
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_ratios_are_to_the_best_form(parts):
    times = {
        "ours": {"step": [1.0, 3.0, 2.0], "augmented step": [4.0], "evaluation": [5.0]},
        "pytorch": {
            "step: eager": [8.0],
            "step: compiled": [4.0, 4.0, 9.0],
            "notebook step: 0 workers": [16.0],
        },
    }
    assert parts("bench").ratios(times, ["pytorch"]) == {
        "pytorch: step": {"best": "step: compiled", "ratio": 0.5},
        "pytorch: notebook step": {"best": "notebook step: 0 workers", "ratio": 0.25},
    }


@pytest.mark.parametrize(
    ("words", "peers"),
    [((), []), (("--peer",), ["pytorch"]), (("--peer", "flax", "--peer"), ["flax", "pytorch"])],
)
def test_peers_on_the_command_line(parts, words, peers):
    assert parts("bench").parse(words).peer == peers


def test_no_rounds_are_refused(parts, capsys):
    assert parts("bench").main(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == (
        "error: rounds is 0; expected a whole number of at least 1\n"
    )


def test_a_peer_that_is_not_there_is_named(parts):
    bench = parts("bench")
    with pytest.raises(bench.ContenderError, match=r"pytorch cannot be measured: .*nowhere"):
        bench.alternate({"pytorch": bench.command("peer_pytorch", "nowhere/python")}, {}, 1)


@pytest.fixture(scope="module")
def bench(parts):
    """scripts/bench.py, with rounds too short to mean anything."""
    module = parts("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROUND_SECONDS", 0.01)
        patch.setattr(module, "PAUSE_SECONDS", 0)
        # Nor is it worth waiting until the compiler has made its programs fast.
        patch.setenv("XLA_FLAGS", f"{COMPILED_QUICKLY} --xla_backend_optimization_level=0")
        yield module


def small_images(bench, idx_dir, folder):
    """The small images, where contenders read them."""
    dataset = jaxmnist.data.load("kmnist", idx_dir=idx_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.data, "load", lambda *names: dataset)
        return bench.write_images(argparse.Namespace(data_dir=None, idx_dir=None), folder)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch_it_says_where_to_get_it(parts):
    bench = parts("bench")
    with pytest.raises(bench.ContenderError, match=r'no PyTorch: pip install -e "\.\[bench\]"'):
        bench.alternate({"pytorch": bench.command("peer_pytorch")}, {}, 1)


@pytest.fixture(scope="module")
def measured(bench, small_idx_dir, tmp_path_factory):
    """Everything but the peers that need PyTorch, measured on the small images in short rounds."""
    scratch = tmp_path_factory.mktemp("bench")
    arguments = argparse.Namespace(
        rounds=1,
        layers=True,
        peer=["flax"],
        seeds=None,
        whole=["notebook"],
        data_dir=None,
        idx_dir=small_idx_dir,
    )
    config = TrainConfig("less_params", "kmnist", batch_size=20)
    images = small_images(bench, small_idx_dir, scratch)
    return bench.measure(arguments, config, images, scratch)


@pytest.mark.slow
def test_everything_is_measured(parts, measured):
    assert measured["failed"] == {}
    assert set(measured["seconds"]["ours"]) == {
        "step",
        "augmented step",
        "evaluation",
        "matmul",
        "copy",
    }
    assert set(measured["ratios"]) == {"flax: step", "flax: augmented step", "flax: evaluation"}
    assert len(measured["seconds"]["layers"]) == 2 * len(measured["layers"])
    assert all(
        seconds[0] > 0 for times in measured["seconds"].values() for seconds in times.values()
    )
    assert measured["start"]["cold_seconds"] > 0
    assert measured["start"]["warm_peak_bytes"][0] > 1e8
    assert json.loads(json.dumps(measured)) == measured


@pytest.mark.slow
def test_every_figure_has_its_place_in_the_tables(parts, measured):
    titles = [str(table.title) for table in parts("benchmark.tables").tables("gap", measured)]
    assert [title.split(";")[0].split(" on ")[0] for title in titles] == [
        "gap",
        "gap: peers",
        "gap: jaxmnist's time over the best",
        "gap: every layer alone",
        "gap: from the start of the process",
    ]


@pytest.mark.slow
def test_whole_trainings_are_timed_from_the_start_of_the_process(measured):
    (trained,) = measured["whole"]["jaxmnist, notebook"]
    assert trained["reached"] == {"99.0": None, "99.4": None}
    assert 0 < trained["final_test_accuracy"] < 99
    assert trained["seconds"] > measured["start"]["warm_seconds"][0] / 2


def test_a_goal_is_reached_when_an_epoch_that_has_it_is_done(bench, monkeypatch):
    monkeypatch.setattr(bench.time, "monotonic", iter([100.0, 160.0]).__next__)
    epochs = [[110.0, 98.9], [120.5, 99.0], [130.0, 98.0], [140.0, 99.41]]
    monkeypatch.setattr(bench, "answer_of", lambda words: {"epochs": epochs})
    assert bench.timed(["train"]) == {
        "seconds": 60.0,
        "reached": {"99.0": 20.5, "99.4": 40.0},
        "final_test_accuracy": 99.41,
    }


def test_whole_trainings_take_turns_each_round_with_a_seed(bench, monkeypatch, tmp_path):
    started = []

    def timed(words):
        started.append(words)
        return len(started)

    monkeypatch.setattr(bench, "timed", timed)
    arguments = bench.parse(["--whole", "fast,record/no_decay", "--peer", "--rounds", "2"])
    config = TrainConfig("gap", batch_size=64)
    whole = bench.measure_whole(arguments, config, {"images": "i.npz", "batch_size": 64}, tmp_path)
    # The first two compile, and are not counted.
    assert whole == {
        "jaxmnist, fast": [3, 6],
        "jaxmnist, record/no_decay": [4, 7],
        "pytorch, notebook": [5, 8],
    }
    seeds = [words[words.index("--seed") + 1] for words in started if "--seed" in words]
    assert seeds == ["1", "1", "0", "0", "1", "1"]
    # The notebook's own batches, whatever the steps that are timed have.
    assert [json.loads(started[place][-1]) for place in (4, 7)] == [
        {"images": "i.npz", "batch_size": 128, "epochs": 15, "augment": True, "seed": seed}
        for seed in (0, 1)
    ]


def test_a_recipe_that_is_not_there_is_refused_before_anything_is_timed(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "write_images", None)  # nothing is prepared
    assert bench.main(["--variant", "dropout", "--whole", "fast"]) == 2
    assert "error: recipe is 'fast', which is for gap, not for dropout" in capsys.readouterr().err


def test_whole_trainings_in_a_table(parts):
    def run(seconds, first, final):
        return {
            "seconds": seconds,
            "reached": {"99.0": first, "99.4": None},
            "final_test_accuracy": final,
        }

    whole = {"jaxmnist, fast": [run(30.0, 10.0, 99.3), run(32.0, 14.0, 99.5)]}
    table = parts("benchmark.tables").whole_table("gap", {"whole": whole})
    assert [next(iter(column.cells)) for column in table.columns] == [
        *("jaxmnist, fast", "2", "12.0 s (10.0 to 14.0)", "in 0 of 2"),
        *("31.0 s (30.0 to 32.0)", "99.40 % (99.30 to 99.50)"),
    ]


@pytest.mark.slow
def test_the_pytorch_peer_trains_to_the_end(bench, small_idx_dir, tmp_path):
    pytest.importorskip("torch")
    images = small_images(bench, small_idx_dir, tmp_path)
    config = TrainConfig("gap", batch_size=100)
    work = {
        "layers": describe("gap"),
        "learning_rate": config.learning_rate,
        "schedule": config.schedule,
        "augment": True,
        **{"batch_size": 100, "epochs": 2, "seed": 0, "images": str(images)},
    }
    found = bench.timed([*bench.command("whole_pytorch"), json.dumps(work)])
    assert 0 < found["final_test_accuracy"] < 99


@pytest.mark.slow
def test_seeds_are_measured_in_each_of_the_ways_to_train_them(
    bench, parts, small_idx_dir, tmp_path
):
    work = {
        "variant": "less_params",
        "batch_size": 100,
        "limit_train": 400,
        "images": str(small_images(bench, small_idx_dir, tmp_path)),
    }
    measured = bench.measure_seeds(work, (2,), 1)
    assert measured["failed"] == {}
    assert set(measured["times"]["seeds"]) == {"loop 2", "vmap 2", "processes 2"}
    measured["failed"]["seeds: vmap 2"] = "RuntimeError: out of memory"
    times = measured["times"]["seeds"]
    del times["vmap 2"]
    table = parts("benchmark.tables").seeds_table("gap", {"seeds": measured})
    loop, vmap, _ = table.columns[1].cells
    assert loop == f"{times['loop 2'][0] / 2 * 1e3:.2f} ms"
    assert vmap == "RuntimeError: out of memory"


@pytest.mark.parametrize("words", ["0", "1,x", ""])
def test_numbers_of_seeds_are_at_least_one(parts, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        parts("bench").parse(["--seeds", words])
    assert "argument --seeds: invalid counts value" in capsys.readouterr().err
    assert parts("bench").parse(["--seeds", "1,4"]).seeds == (1, 4)
