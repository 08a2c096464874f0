"""A whole training by the notebook's recipe in PyTorch, from tensors, the fastest input it has.

Prints JSON: the monotonic clock, in seconds, when each epoch was done, with its test accuracy in
percent.
"""
# pyright: reportMissingImports=false

import json
import sys
import time

import numpy as np
import torch
from peer_pytorch import Trainer, augment, batches


def main() -> None:
    """Does the work that the command line has as JSON."""
    work = json.loads(sys.argv[1])
    torch.manual_seed(work["seed"])
    with np.load(work["images"]) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    steps = len(arrays["train_images"]) // work["batch_size"]
    trainer = Trainer(
        {**work, "total_steps": steps * work["epochs"]}, False, torch.contiguous_format
    )
    train = trainer.training(
        (augment(images) if work["augment"] else images, labels)
        for images, labels in batches(arrays, work["batch_size"])
    )
    evaluate = trainer.evaluation(arrays)
    epochs = []
    for _ in range(work["epochs"]):
        train(steps)
        accuracy = evaluate(1)
        epochs.append((time.monotonic(), accuracy))
    print(json.dumps({"epochs": epochs}))


if __name__ == "__main__":
    main()
