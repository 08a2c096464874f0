"""Participant: the same networks and recipes in PyTorch, in every form that experts use."""
# pyright: reportMissingImports=false

import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from participant import Job, Prepared

try:
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn
except ImportError as error:
    raise ImportError(
        'there is no PyTorch: pip install -e ".[bench]", or name its interpreter by --peer-python'
    ) from error

MOMENTUM = 0.9
# Steps of the schedule: enough for any benchmark, which may take more steps than a run.
TOTAL_STEPS = 702_000
WORKERS = (0, 1, 2, 4)
EVAL_BATCH = 200

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Options of torch.compile by the name of the form; None for no compilation.
COMPILATIONS: dict[str, dict[str, str] | None] = {"eager": None, "compiled": {}}
if DEVICE.type == "cuda":
    COMPILATIONS["CUDA graphs"] = {"mode": "reduce-overhead"}
# Products with all bits, as in jaxmnist; PyTorch's own default for convolutions is TF32.
torch.backends.cudnn.allow_tf32 = False

FORMS = {
    f"{how}, {layout}": (options, memory_format)
    for how, options in COMPILATIONS.items()
    for layout, memory_format in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    )
}

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def prepare(spec: dict[str, Any]) -> Prepared:
    """Return jobs for training with three kinds of input, and for evaluation, in all forms."""
    torch.manual_seed(0)
    arrays, batch_size = load_images(spec), spec["config"]["batch_size"]
    jobs: dict[str, Job] = {}
    for form, (options, memory_format) in FORMS.items():
        trainer = Trainer(spec, options, memory_format)
        jobs[f"step: {form}"] = trainer.training(batches(arrays, batch_size))
        jobs[f"augmented step: {form}"] = trainer.training(batches(arrays, batch_size, augment))
        jobs[f"evaluation: {form}"] = trainer.evaluation(arrays)
    if importlib.util.find_spec("torchvision") is not None:
        trainer = Trainer(spec, None, torch.contiguous_format)
        for workers in WORKERS:
            pipeline = notebook_batches(arrays, batch_size, workers)
            jobs[f"notebook step: {workers} workers"] = trainer.training(pipeline)
    facts = {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(DEVICE),
    }
    return jobs, facts


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Run a full training, in the best form for `gap`, with the fastest input pipeline.

    Augmentation of batches of tensors is as strong as in the notebook, but combines both maps, and
    applies brightness before contrast.

    Returns:
        The seconds from the spec's `begin` to the end of each epoch, with the test accuracy in
        percent.
    """
    config, arrays = spec["config"], load_images(spec)
    torch.manual_seed(config["seed"])
    steps = len(arrays["train_images"]) // config["batch_size"]
    trainer = Trainer(spec, None, torch.contiguous_format)
    change = augment if config["augment"] else unchanged
    stream = batches(arrays, config["batch_size"], change)
    train_steps = trainer.training(stream, steps * config["epochs"])
    evaluate = trainer.evaluation(arrays)
    epochs = []
    for _ in range(config["epochs"]):
        train_steps(steps)
        accuracy = evaluate(1)
        epochs.append((time.monotonic() - spec["begin"], accuracy))
    return {"epochs": epochs}


def load_images(spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Load the arrays that `bench.write_images` wrote."""
    with np.load(spec["images"]) as file:
        return {name: torch.from_numpy(file[name]).to(DEVICE) for name in file.files}


class Trainer:
    """Training of a network."""

    def __init__(
        self,
        spec: dict[str, Any],
        options: dict[str, str] | None,
        memory_format: torch.memory_format,
    ):
        self._config = spec["config"]
        network = make_network(spec["layers"]).to(DEVICE, memory_format=memory_format)
        self._memory_format = memory_format
        self._network = network if options is None else torch.compile(network, **options)
        self._optimizer = torch.optim.SGD(
            network.parameters(), self._config["learning_rate"], momentum=MOMENTUM, fused=True
        )

    def training(self, stream: Batches, total_steps: int = TOTAL_STEPS) -> Job:
        """Return a job that trains on a stream of batches, with the metrics of jaxmnist."""
        schedule = lambda: None  # noqa: E731 - at a constant rate
        if self._config["schedule"] == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                self._optimizer, self._config["learning_rate"], total_steps=total_steps
            ).step
        loss_sum = torch.zeros((), device=DEVICE)
        correct = torch.zeros((), dtype=torch.int64, device=DEVICE)

        def job(times: int) -> None:
            self._network.train()
            for images, labels in itertools.islice(stream, times):
                self._optimizer.zero_grad()
                logits = self._network(images.to(memory_format=self._memory_format))
                loss = F.cross_entropy(logits, labels)
                loss.backward()
                self._optimizer.step()
                schedule()
                loss_sum.add_(loss.detach() * len(labels))
                correct.add_((logits.argmax(1) == labels).sum())
            if not math.isfinite(loss_sum):
                raise RuntimeError("the loss is not finite")

        return job

    def evaluation(self, arrays: dict[str, torch.Tensor]) -> Job:
        """Return a job that evaluates all test images and returns the accuracy in percent."""

        @torch.inference_mode()
        def job(times: int) -> float:
            self._network.eval()
            accuracy = 0.0
            for _ in range(times):
                correct = torch.zeros((), dtype=torch.int64, device=DEVICE)
                loss_sum = torch.zeros((), device=DEVICE)
                for start in range(0, len(arrays["test_images"]), EVAL_BATCH):
                    chosen = slice(start, start + EVAL_BATCH)
                    images, labels = normalised(arrays, "test", chosen)
                    logits = self._network(images.to(memory_format=self._memory_format))
                    loss_sum += F.cross_entropy(logits, labels, reduction="sum")
                    correct += (logits.argmax(1) == labels).sum()
                accuracy = 100 * correct.item() / len(arrays["test_images"])
            return accuracy

        return job


def make_network(layers: list[dict[str, Any]]) -> nn.Sequential:
    """Return a network of `description.describe`."""
    return nn.Sequential(*(make_layer(layer) for layer in layers), nn.Flatten())


def make_layer(layer: dict[str, Any]) -> nn.Module:
    """Return a layer of `description.describe`."""
    inputs, features = layer["inputs"], layer["features"]
    match layer["kind"]:
        case "conv":
            size, padding, bias = layer["kernel_size"], layer["padding"], layer["use_bias"]
            return nn.Conv2d(inputs, features, size, padding=padding, bias=bias)
        case "norm":
            return nn.BatchNorm2d(features)
        case "dropout":
            return nn.Dropout(layer["rate"])
        case "relu":
            return nn.ReLU(inplace=True)
        case "max_pool":
            return nn.MaxPool2d(2)
        case "mean":
            return nn.AvgPool2d(layer["input_side"])
        case kind:
            raise ValueError(f"unknown layer {kind}")


def unchanged(images: torch.Tensor) -> torch.Tensor:
    """Return the images unchanged, for recipes without augmentation."""
    return images


def normalised(
    arrays: dict[str, torch.Tensor],
    part: str,
    chosen: Any,
    change: Callable[[torch.Tensor], torch.Tensor] = unchanged,
) -> tuple[Any, Any]:
    """Return images, changed in the range 0 to 1 and then normalised, with their labels."""
    images = change(arrays[f"{part}_images"][chosen].unsqueeze(1).float().div_(255))
    return images.sub_(arrays["mean"]).div_(arrays["std"]), arrays[f"{part}_labels"][chosen].long()


def batches(
    arrays: dict[str, torch.Tensor],
    batch_size: int,
    change: Callable[[torch.Tensor], torch.Tensor] = unchanged,
) -> Batches:
    """Yield shuffled batches of tensors without a DataLoader, which is faster."""
    count = len(arrays["train_images"])
    while True:
        order = torch.randperm(count, device=DEVICE)
        for start in range(0, count - batch_size + 1, batch_size):
            yield normalised(arrays, "train", order[start : start + batch_size], change)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Augment a batch of tensors, from 0 to 1, with one look-up and two blends."""
    count = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.empty(count, device=images.device).uniform_(low, high)

    angle = torch.deg2rad(uniform(-6, 6) + uniform(-7, 7))
    shear, scale = torch.deg2rad(uniform(-10, 10)), uniform(0.8, 1.2)
    shift = torch.stack([uniform(-0.2, 0.2), uniform(-0.2, 0.2)], dim=1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack(
        [cos - sin * shear.tan(), sin + cos * shear.tan(), shift[:, 0], -sin, cos, shift[:, 1]],
        dim=1,
    )
    grid = F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="nearest", align_corners=False)
    brightness, contrast = (uniform(0.6, 1.4).view(-1, 1, 1, 1) for _ in range(2))
    images = (images * brightness).clamp_(0, 1)
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, contrast).clamp_(0, 1)


class Notebook(torch.utils.data.Dataset):
    """The notebooks' data set, with torchvision's transforms of single PIL images."""

    def __init__(self, arrays: dict[str, torch.Tensor]):
        from torchvision import transforms

        self._images = arrays["train_images"].cpu().numpy()
        self._labels = arrays["train_labels"].tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomRotation((-6.0, 6.0), fill=(1,)),
                transforms.RandomAffine(
                    degrees=7, shear=10, translate=(0.1, 0.1), scale=(0.8, 1.2)
                ),
                transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
                transforms.ToTensor(),
                transforms.Normalize((arrays["mean"].item(),), (arrays["std"].item(),)),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def notebook_batches(arrays: dict[str, torch.Tensor], batch_size: int, workers: int) -> Batches:
    """Yield batches from the notebooks' input pipeline."""
    loader = torch.utils.data.DataLoader(
        Notebook(arrays),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )
    while True:
        for images, labels in loader:
            yield images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
