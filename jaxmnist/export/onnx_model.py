"""ONNX export: a graph of standard operators, one node per layer."""
# pyright: reportMissingImports=false

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.export.network import Arrays, TrainedNetwork
from jaxmnist.network_text import SIZE, LayerSpec

# Versions that every runtime in use supports.
OPSET, IR_VERSION = 17, 8


def write(network: TrainedNetwork, file: Path) -> None:
    """Write the network as an ONNX model from `images`, any number, to `logits` `[N, 10]`.

    Raises:
        OSError: the file cannot be written.
    """
    import onnx
    from onnx import TensorProto, helper

    builder = _Builder()
    ends = [builder.images(network)]  # names of the outputs so far
    for layer, arrays in network.layers():
        ends.append(builder.layer(ends, layer, arrays))
    builder.node("Flatten", ends[-1:], "logits", axis=1)
    kind = TensorProto.FLOAT if network.normalised_input else TensorProto.UINT8
    shape = ["N", SIZE, SIZE, *([1] if network.normalised_input else [])]
    graph = helper.make_graph(
        builder.nodes,
        network.config.variant,
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        builder.constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxmnist",
    )
    helper.set_model_props(model, {"config": json.dumps(network.config.to_dict())})
    onnx.checker.check_model(model, full_check=True)
    file.write_bytes(model.SerializeToString())


def logits_of(network: TrainedNetwork, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits float32 `[N, 10]` of images with onnxruntime.

    Args:
        network: the exported network.
        file: the model.
        images: uint8 `[N, 28, 28]`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": network.input_of(images)})
    return np.asarray(logits)


class _Builder:
    """Nodes and constants of a graph under construction."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def images(self, network: TrainedNetwork) -> str:
        """Add nodes that normalise the input to `[N, 1, 28, 28]`; return the output name."""
        from onnx import TensorProto

        end = "images"
        if not network.normalised_input:
            end = self.node("Cast", [end], "pixels", to=TensorProto.FLOAT)
            steps = (
                ("Div", "white", 255),
                ("Sub", "mean", network.mean),
                ("Div", "std", network.std),
            )
            for operator, name, number in steps:
                constant = self.constant(name, np.float32(number))
                end = self.node(operator, [end, constant], f"by_{name}")
        shape = self.constant("shape", np.array([-1, 1, SIZE, SIZE], np.int64))
        return self.node("Reshape", [end, shape], "normalised")

    def layer(self, ends: list[str], layer: LayerSpec, arrays: Arrays) -> str:
        """Add one layer after the last of `ends`, and return the name of its output."""
        name, end = layer["name"], ends[-1]
        match layer["kind"]:
            case "conv":
                weight = self.constant(f"{name}/weight", arrays["kernel"].transpose(3, 2, 0, 1))
                bias = [self.constant(f"{name}/bias", arrays["bias"])] if "bias" in arrays else []
                return self.node(
                    "Conv",
                    [end, weight, *bias],
                    name,
                    kernel_shape=[layer["kernel_size"]] * 2,
                    strides=[layer["stride"]] * 2,
                    pads=[layer["padding"]] * 4,
                    group=layer["groups"],
                )
            case "norm":
                names = ("scale", "bias", "mean", "var")
                constants = [self.constant(f"{name}/{key}", arrays[key]) for key in names]
                return self.node(
                    "BatchNormalization", [end, *constants], name, epsilon=layer["epsilon"]
                )
            case "group_norm":
                return self.group_norm(end, layer, arrays)
            case "relu":
                return self.node("Relu", [end], name)
            case "max_pool":
                return self.node("MaxPool", [end], name, kernel_shape=[2, 2], strides=[2, 2])
            case "mean":
                return self.node("GlobalAveragePool", [end], name)
            case "max":
                return self.node("GlobalMaxPool", [end], name)
            case "add":
                return self.node("Add", [end, ends[layer["source"] + 1]], name)
            case _:  # dropout is the identity outside training
                return end

    def group_norm(self, end: str, layer: LayerSpec, arrays: Arrays) -> str:
        """Add group normalisation: each group is a channel that is normalised per image."""
        name, groups, features, side = (
            layer[key] for key in ("name", "groups", "features", "side")
        )
        ones = self.constant(f"{name}/ones", np.ones(groups, np.float32))
        zeros = self.constant(f"{name}/zeros", np.zeros(groups, np.float32))
        split = self.constant(f"{name}/split", np.array([0, groups, -1], np.int64))
        whole = self.constant(f"{name}/whole", np.array([-1, features, side, side], np.int64))
        end = self.node("Reshape", [end, split], f"{name}/groups")
        end = self.node(
            "InstanceNormalization",
            [end, ones, zeros],
            f"{name}/normalised",
            epsilon=layer["epsilon"],
        )
        end = self.node("Reshape", [end, whole], f"{name}/channels")
        for operator, key in (("Mul", "scale"), ("Add", "bias")):
            constant = self.constant(f"{name}/{key}", arrays[key].reshape(-1, 1, 1))
            end = self.node(operator, [end, constant], name if key == "bias" else f"{name}/scaled")
        return end
