"""Trains a network the way the original did, in PyTorch: a published figure, tried again.

`python scripts/original.py --variant batch_norm --seeds 3` needs `pip install -e ".[bench]"`. As in
the notebooks an epoch has 469 steps, the last one of 96 images; torchvision's augmentation,
PyTorch's initial weights and random numbers. Nothing of jaxmnist is in it but the images, the
recipes and the networks as data.
"""
# pyright: reportMissingImports=false

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "benchmark"))

import torch
import torch.nn.functional as F  # noqa: N812
from benchmark.networks import describe
from benchmark.peer_pytorch import MOMENTUM, Notebook, make_network, normalise

from jaxmnist import VARIANTS, TrainConfig, data
from jaxmnist.config import parse_seeds
from jaxmnist.report import spread

EVAL_BATCH = 1000
WORKERS = 2

Arrays = dict[str, torch.Tensor]


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--seeds", default="3", help="as in scripts/train.py")
    parser.add_argument("--epochs", type=int, help="for a quick trial")
    parser.add_argument("--data-dir", type=Path, help="as in scripts/train.py")
    arguments = parser.parse_args(argv)
    arrays = load(arguments.data_dir)
    finals, bests = [], []
    for seed in parse_seeds(arguments.seeds, 0):
        config = TrainConfig(arguments.variant, epochs=arguments.epochs, seed=seed)
        tested, trained = train(config, arrays)
        finals.append(tested[-1])
        bests.append(max(tested))
        print(
            f"{arguments.variant}, seed {seed}: train {trained:.2f} %, test {finals[-1]:.2f} %, "
            f"best epoch {bests[-1]:.2f} %",
            flush=True,
        )
    print(
        f"{arguments.variant}, PyTorch {torch.__version__}: test {spread(finals)} %, "
        f"best epochs {spread(bests)} % ({min(bests):.2f} to {max(bests):.2f})"
    )


def load(data_dir: Path | None) -> Arrays:
    """MNIST as tensors."""
    dataset = data.load("mnist", data_dir)
    return {name: torch.tensor(values) for name, values in dataset._asdict().items()}


def train(config: TrainConfig, arrays: Arrays) -> tuple[list[float], float]:
    """Test accuracies in percent, one an epoch, and the train accuracy of the last epoch."""
    torch.manual_seed(config.seed)
    network = make_network(describe(config.variant))
    optimizer = torch.optim.SGD(network.parameters(), config.learning_rate, momentum=MOMENTUM)
    steps = -(-len(arrays["train_images"]) // config.batch_size)
    schedule = None
    if config.schedule == "one_cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, epochs=config.epochs, steps_per_epoch=steps
        )
    stream = augmented(config, arrays) if config.augment else plain(config, arrays)
    tested, trained = [], 0.0
    for _ in range(config.epochs):
        network.train()
        correct = 0
        for _ in range(steps):
            images, labels = next(stream)
            optimizer.zero_grad()
            logits = network(images)
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            correct += int((logits.argmax(1) == labels).sum())
        trained = 100 * correct / len(arrays["train_images"])
        tested.append(test(network, arrays))
    return tested, trained


def plain(config: TrainConfig, arrays: Arrays) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches; the last one of an epoch has what is left."""
    while True:
        for chosen in torch.randperm(len(arrays["train_images"])).split(config.batch_size):
            yield normalise(arrays, "train", chosen)


def augmented(config: TrainConfig, arrays: Arrays) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same through torchvision, an image at a time."""
    loader = torch.utils.data.DataLoader(
        Notebook(arrays),
        config.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    while True:
        yield from loader


@torch.inference_mode()
def test(network: torch.nn.Module, arrays: Arrays) -> float:
    """Test accuracy in percent."""
    network.eval()
    correct = 0
    for start in range(0, len(arrays["test_images"]), EVAL_BATCH):
        images, labels = normalise(arrays, "test", slice(start, start + EVAL_BATCH))
        correct += int((network(images).argmax(1) == labels).sum())
    return 100 * correct / len(arrays["test_images"])


if __name__ == "__main__":
    main(sys.argv[1:])
