"""Exports say what the network says, in programs that know nothing of it."""

import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError, TrainConfig, create_model
from jaxmnist.export import onnx_model, pytorch, safetensors_file, stablehlo
from jaxmnist.export.network import ExportError, TrainedNetwork, trained_network
from jaxmnist.export.targets import TARGETS, export
from jaxmnist.models import model_of
from jaxmnist.models.description import describe
from jaxmnist.state import jit_once
from jaxmnist.steps import normalise
from tests.conftest import (
    OWN,
    SKELETON_SLOW,
    drawn,
    drawn_variables,
    golden,
    golden_batch,
    golden_variables,
)

MEAN, STD = np.array(0.1307, np.float32), np.array(0.3081, np.float32)
# In ONNX, the operators of each layer of gap between the images and the logits.
CONV, NORM, DROP = ["Conv", "Relu"], ["BatchNormalization"], []
GAP = [
    *[*CONV, *NORM, *CONV, *NORM, "MaxPool"],
    *(CONV + NORM) * 4,
    "GlobalAveragePool",
    *[*CONV, *NORM, "Conv", "Flatten"],
]


def network(variant, normalised_input=False):
    return TrainedNetwork(
        TrainConfig(variant), golden_variables(variant), MEAN, STD, normalised_input
    )


@pytest.fixture
def small_run(small_run, tmp_path_factory):
    """A copy: the commands write into a run's folder."""
    copy = tmp_path_factory.mktemp("copies") / "small"
    return small_run._replace(path=shutil.copytree(small_run.path, copy))


@pytest.fixture(scope="module")
def images():
    return drawn("pixels/export", (5, 28, 28), 0, 255).astype(np.uint8)


def original_logits(variant, images):
    model = jaxmnist.create_model(variant)
    return np.asarray(
        jit_once(model.apply)(golden_variables(variant), normalise(images, MEAN, STD))
    )


@pytest.mark.parametrize("variant", SKELETON_SLOW)
def test_onnx_is_the_network(variant, images, tmp_path):
    file = tmp_path / "model.onnx"
    onnx_model.write(network(variant), file)
    expected = original_logits(variant, images)
    for count in (5, 1):
        found = onnx_model.logits_of(network(variant), file, images[:count])
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)


def test_onnx_is_a_clean_graph_with_the_golden_answers(tmp_path):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    file = tmp_path / "model.onnx"
    onnx_model.write(network("gap", normalised_input=True), file)
    model = onnx.load(file)
    assert [node.op_type for node in model.graph.node] == ["Reshape", *GAP]
    # PyTorch's own figures, computed from these weights.
    batch, _ = golden_batch(len(golden("gap")["eval_log_probs"]))
    (logits,) = ort.InferenceSession(file).run(None, {"images": batch})
    found = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(found, golden("gap")["eval_log_probs"], atol=1e-4)
    onnx_model.write(network("gap"), file)
    model = onnx.load(file)
    first = ["Cast", "Div", "Sub", "Div", "Reshape"]
    assert [node.op_type for node in model.graph.node] == [*first, *GAP]
    assert json.loads(model.metadata_props[0].value)["variant"] == "gap"


@pytest.mark.parametrize(("variant", "normalised"), [("gap", False), ("batch_norm", True)])
def test_stablehlo_is_the_network_for_every_platform(variant, normalised, images, tmp_path):
    file = tmp_path / "model.stablehlo"
    stablehlo.write(network(variant, normalised), file)
    found = stablehlo.logits_of(network(variant, normalised), file, images)
    np.testing.assert_allclose(found, original_logits(variant, images), atol=1e-4)
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert exported.in_avals[0].dtype == (np.float32 if normalised else np.uint8)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cpu", {"stablehlo.dot_general"}),
        ("cuda", {"stablehlo.convolution", "precision HIGHEST"}),
        ("tpu", {"stablehlo.convolution"}),
    ],
)
def test_stablehlo_has_each_platforms_convolution(name, words, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "PLATFORMS", {name: stablehlo.PLATFORMS[name]})
    stablehlo.write(network("less_params"), tmp_path / "model")
    text = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes())).mlir_module()
    possible = ("stablehlo.dot_general", "stablehlo.convolution", "precision HIGHEST")
    assert {word for word in possible if word in text} == words


@pytest.mark.parametrize("to", ["onnx", "stablehlo", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_network_as_text_is_exported_with_every_kind_of_layer(to, images, tmp_path):
    if to == "torch":
        pytest.importorskip("torch")
    config = TrainConfig("own", network=OWN)
    own = TrainedNetwork(config, drawn_variables(model_of(config), "own"), MEAN, STD, False)
    _, difference = export(own, to, tmp_path, images)
    assert difference <= 1e-4
    assert np.ptp(own.logits(images), axis=0).min() > 0.01  # the images make a difference


def test_safetensors_hold_arrays_and_config(images, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "model.safetensors"
    safetensors_file.write(network("batch_norm"), file)
    with safetensors.safe_open(file, "numpy") as opened:
        assert TrainConfig.from_dict(json.loads(opened.metadata()["config"])) == TrainConfig(
            "batch_norm"
        )
        kernel = opened.get_tensor("params/conv1/kernel")
        assert "batch_stats/norm1/var" in opened.keys()  # noqa: SIM118 - it is no dictionary
    variables = golden_variables("batch_norm")
    np.testing.assert_array_equal(kernel, variables["params"]["conv1"]["kernel"])
    found = safetensors_file.logits_of(network("batch_norm"), file, images)
    np.testing.assert_allclose(found, original_logits("batch_norm", images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["skeleton", "gap"])
def test_torch_and_back(variant, images, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "model.pt"
    pytorch.write(network(variant), file)
    found = pytorch.logits_of(network(variant), file, images)
    np.testing.assert_allclose(found, original_logits(variant, images), atol=1e-4)
    # A notebook has other names, and the order of a dict does not count.
    state = torch.load(file, weights_only=True)
    renamed = {f"model.convblock{name}": value for name, value in sorted(state.items())}
    torch.save({"model_state_dict": renamed, "epoch": 3}, file)
    read = pytorch.read(file, variant)
    jax.tree.map(
        np.testing.assert_array_equal,
        read,
        golden_variables(variant)
        | {"batch_stats": golden_variables(variant).get("batch_stats", {})},
    )


@pytest.mark.slow
def test_torch_files_that_are_something_else(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "model.pt"
    pytorch.write(network("gap"), file)
    with pytest.raises(
        ConfigError, match=r"has 36 arrays; dropout has .*: is it another variant\?"
    ):
        pytorch.read(file, "dropout")
    state = torch.load(file, weights_only=True)
    state["0.weight"] = torch.zeros(8, 1, 3, 3)
    torch.save(state, file)
    words = r"0.weight is \[8, 1, 3, 3\]; expected \[4, 1, 3, 3\] for the kernel of conv0"
    with pytest.raises(ConfigError, match=words):
        pytorch.read(file, "gap")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_else_a_torch_file_holds_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "model.pt"
    # A plain Sequential, since PyTorch neither pickles nor scripts a class of a function.
    network = torch.nn.Sequential(*pytorch.make_network(describe(create_model("gap"))))
    state, tensor = network.state_dict(), torch.zeros(2)

    def refuses(found, words):
        if found is not None:
            torch.save(found, file)
        with pytest.raises(ConfigError, match=words) as raised:
            pytorch.read(file, "gap")
        assert str(raised.value).isprintable()
        assert "weights_only" not in str(raised.value)

    refuses(network, r"holds a Python object \(torch.nn.modules.container.Sequential\), as a whole")
    refuses(
        [1, 2], r"it holds a list; expected what torch.save\(model.state_dict\(\), FILE\) writes"
    )
    refuses({}, "it holds an empty dict")
    refuses(tensor, "it holds a Tensor")
    refuses({**state, "epoch": 3}, r"it holds more than tensors: epoch \(int\)")
    refuses({"\x1b[1m": 1}, r"it holds more than tensors: \?\[1m \(int\)")
    refuses({"net": state, "ema": state}, r"save one of them alone: .*\['net'\] or \['ema'\]")
    refuses(
        {**state, "9.bias": tensor.to(torch.complex64)}, "9.bias is a tensor of torch.complex64"
    )
    torch.jit.script(network).save(str(file))
    refuses(None, "it is a TorchScript program")
    file.write_bytes(b"hello")
    refuses(None, "it cannot be read as a file of torch.save")


def test_what_differs_is_refused_and_not_kept(small_run, images, tmp_path, monkeypatch):
    exported = trained_network(small_run)
    file, difference = export(exported, "safetensors", tmp_path, images)
    assert file == tmp_path / "model.safetensors"
    assert difference <= 1e-5
    before, logits_of = file.read_bytes(), safetensors_file.logits_of
    for wrong, said in ((1e-3, "0.001"), (np.nan, "nan")):
        monkeypatch.setattr(safetensors_file, "logits_of", lambda *a, w=wrong: logits_of(*a) + w)
        words = f"safetensors differs by {said} from the original; expected at most 1e-04"
        with pytest.raises(ExportError, match=words):
            export(exported, "safetensors", tmp_path, images)
    assert {path.name for path in tmp_path.iterdir()} == {file.name}
    assert file.read_bytes() == before


def test_a_program_that_fails_says_why(images, tmp_path):
    file = tmp_path / "model.stablehlo"
    file.write_bytes(b"no program")
    with pytest.raises(ExportError, match=r"the exported program fails in a process of its own: ."):
        stablehlo.logits_of(network("gap"), file, images)


@pytest.mark.parametrize("to", ["onnx", "stablehlo", "safetensors"])
def test_the_command(command, small_run, small_idx_dir, to, tmp_path):
    status, out, err = command(
        "export", small_run.path, "--to", to, "--idx-dir", small_idx_dir, *NORMALISED.get(to, ())
    )
    assert (status, err) == (0, "")
    file = small_run.path / "export" / TARGETS[to].file
    assert file.exists()
    assert out.startswith(f"{file}: ")
    assert out.endswith("is the largest difference on 256 test images\n")


NORMALISED = {"onnx": ["--normalised-input"]}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to", "onnx"], "run is missing; expected the folder of a finished run"),
        (["none", "--to", "onnx"], "none does not exist; expected the folder of a run"),
        (["x", "--to", "onnx", "--variant", "gap"], "variant is only for --from-torch"),
        (["x", "--to", "torch", "--normalised-input"], "normalised_input is not for torch"),
        (["--from-torch", "x.pt", "--variant", "gap", "--normalised-input"], "is for --to; leave"),
        (["--from-torch", "x.pt", "--variant", "gap", "--seed", "1"], "seed is for --to; leave"),
        (["--from-torch", "x.pt"], "variant is missing; expected one of skeleton, "),
        (["--from-torch", "x.pt", "--variant", "gaps"], "variant is 'gaps'; .* Did you mean gap?"),
    ],
)
def test_what_the_command_refuses(command, words, reason):
    status, out, err = command("export", *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert re.search(reason, err)


def test_what_is_missing_is_named_with_its_remedy(command, small_run, small_idx_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, err = command("export", small_run.path, "--to", "onnx", "--idx-dir", small_idx_dir)
    assert status == 2
    assert err == "error: onnx is not installed; pip install -e '.[export]' installs it\n"
    assert not (small_run.path / "export" / ".new-model.onnx").exists()
