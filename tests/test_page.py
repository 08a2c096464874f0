"""The page as a file: it is whole, loads nothing, and offers the right examples."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

import jaxmnist
from jaxmnist import TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.inference import pretrained
from jaxmnist.page import document, make_page
from jaxmnist.page.examples import find_easy, find_hard
from jaxmnist.page.networks import describe_network
from jaxmnist.runs.setup import make_setup
from tests.conftest import SCRIPTS, golden_variables

COMMITTED = SCRIPTS.parent / "docs" / "demo.html"


def element(page, start):
    """The content of the element that begins so."""
    (content,) = re.findall(rf"<{start}>(.*?)</", page, re.DOTALL)
    return content


def data_of(page, name):
    return json.loads(element(page, f'script type="application/json" id="{name}-data"'))


@pytest.fixture(scope="module")
def images(small_idx_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.idx, "SHA256", {})
        return data.load("mnist", idx_dir=small_idx_dir)


@pytest.fixture(scope="module")
def make_run(small_idx_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")

    def make_run(name, variant="gap", recipe="notebook", seed=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data.idx, "SHA256", {})
            options = jaxmnist.RunOptions(idx_dir=small_idx_dir)
            setup = make_setup(TrainConfig(variant, recipe=recipe, seed=seed), options)
        return imported.write_run(setup, golden_variables(variant), folder / name, folder)

    return make_run


@pytest.fixture(scope="module")
def run(make_run):
    return make_run("first")


# ---- The file


def test_a_page_has_networks_and_examples(run, images):
    page = make_page([run], images)
    (network,) = data_of(page, "networks")
    layers = network.pop("layers")
    assert network == {
        "name": "gap",
        "idea": "more width in late layers, one-cycle schedule",
        "parameters": 7364,
        "accuracy": run.summary["final_test_accuracy"][0],
        "variant": "gap",
        "mean": pytest.approx(0.1307),
        "std": pytest.approx(0.3081),
    }
    assert layers == describe_network(run)["layers"]
    examples = data_of(page, "examples")
    assert len(examples["hard"]) == 10
    for example in [*examples["easy"], *examples["hard"]]:
        place = example["number"]
        assert example["label"] == images.test_labels[place]
        pixels = np.frombuffer(base64.b64decode(example["pixels"]), np.uint8)
        np.testing.assert_array_equal(pixels, images.test_images[place].ravel())


def test_a_page_without_images_has_no_examples(run):
    assert data_of(make_page([run]), "examples") is None


def test_networks_have_different_names(run, make_run):
    def names(*runs):
        return [network["name"] for network in data_of(make_page(runs), "networks")]

    fast = make_run("fast", recipe="fast")
    assert names(run, fast) == ["gap", "gap/fast"]
    assert names(run, make_run("other", seed=3)) == ["gap seed 0", "gap seed 3"]
    assert names(run, make_run("second"), fast) == ["gap first", "gap second", "gap/fast fast"]
    assert names(run, run) == ["gap 1", "gap 2"]


def test_eight_small_networks_fit_into_a_megabyte_and_a_half(run):
    assert len(make_page([run] * 8)) < 1_500_000 - 50_000  # the examples have 22,000


def test_the_policy_allows_this_script_and_style_alone(run):
    page = make_page([run])
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', page)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": digest(element(page, 'script type="module"')),
        "style-src": digest(element(page, "style")),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not re.search(r' (style|on\w+)="', page)  # no inline code that the policy would stop


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_names_no_address(run, images):
    page = make_page([run], images)
    assert "://" not in page
    assert re.findall(r'(?:src|href)="(.{5})', page) == ["data:"]
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", page)


def test_names_cannot_end_the_element_they_are_in():
    name = "</script><script>alert(1)</script><!--"
    page = document.join_page([{"name": name}], None)
    assert name not in page
    assert data_of(page, "networks") == [{"name": name}]


def test_every_module_is_joined():
    on_disk = {file.name for file in document.FOLDER.glob("*.js")}
    assert set(document.SCRIPTS) == on_disk
    script = document.join_scripts()
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    exported = re.findall(r"^const \{ (.*) \} = \(\(\) => \{$", script, re.MULTILINE)
    names = [name for names in exported for name in names.split(", ")]
    assert len(names) == len(set(names))
    for name in document.SCRIPTS:
        module = (document.FOLDER / name).read_text()
        for imports, source in re.findall(r"^import \{([^}]*)\} from \"./(.*)\";", module, re.M):
            assert document.SCRIPTS.index(source) < document.SCRIPTS.index(name)
            assert {each.strip() for each in imports.split(",") if each.strip()} <= set(names)


def test_the_committed_page_is_not_stale():
    """`python scripts/demo.py --out docs/demo.html --no-browser` makes it again."""
    committed = COMMITTED.read_text()
    runs = [jaxmnist.load_pretrained(name) for name in pretrained.NAMES]
    networks = data_of(make_page(runs), "networks")
    assert committed == document.join_page(networks, data_of(committed, "examples"))
    assert len(committed) < 1_500_000


# ---- The examples


def test_easy_examples_are_the_first_of_each_digit_that_all_read():
    labels = np.array([3, 3, 0, 1, 2, 2, 7])
    log_probs = predictions_of(labels)
    assert find_easy(log_probs, labels) == [2, 3, 4, 0, 6]
    log_probs[1, 0] = sure_of(8, -0.2)
    assert find_easy(log_probs, labels) == [2, 3, 4, 1, 6]


def test_hard_examples_are_the_mistakes_of_each_by_turns():
    labels = np.array([3, 3, 0, 1, 2, 2, 7])
    log_probs = predictions_of(labels)
    log_probs[0, 2] = sure_of(6, -0.3)  # both err on the third
    log_probs[1, 2] = sure_of(8, -0.2)
    log_probs[0, 4] = sure_of(6, -0.2)  # more sure of it
    log_probs[1, 6] = sure_of(1, -0.4)
    assert find_hard(log_probs, labels) == [4, 2, 6]


def test_no_more_than_ten_hard_examples():
    labels = np.zeros(50, int)
    assert find_hard([np.tile(sure_of(1, -0.1), (50, 1))], labels) == list(range(10))


def predictions_of(labels):
    """Log-probabilities of two networks that are right."""
    return np.tile([sure_of(label, -0.1) for label in labels], (2, 1, 1))


def sure_of(digit, log_probability):
    return np.where(np.arange(10) == digit, log_probability, -9.0)
