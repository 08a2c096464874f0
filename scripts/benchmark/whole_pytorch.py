"""Trains to the end by the notebook's recipe in PyTorch, with its fastest input pipeline.

Eager and contiguous is PyTorch's best form for `gap`. Whole batches of tensors are augmented: as
strongly as in the notebook, but with both maps in one, and brightness always before contrast.

Prints JSON: the monotonic clock, in seconds, at the end of each epoch, with its test accuracy in
percent.
"""
# pyright: reportMissingImports=false

import json
import sys
import time

import numpy as np
import torch
from peer_pytorch import Trainer, augment, batches, unchanged


def main() -> None:
    """Run the training that the command line describes in JSON."""
    work = json.loads(sys.argv[1])
    torch.manual_seed(work["seed"])
    with np.load(work["images"]) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    steps = len(arrays["train_images"]) // work["batch_size"]
    trainer = Trainer(
        {**work, "total_steps": steps * work["epochs"]}, False, torch.contiguous_format
    )
    change = augment if work["augment"] else unchanged
    train = trainer.training(batches(arrays, work["batch_size"], change))
    evaluate = trainer.evaluation(arrays)
    epochs = []
    for _ in range(work["epochs"]):
        train(steps)
        accuracy = evaluate(1)
        epochs.append((time.monotonic(), accuracy))
    print(json.dumps({"epochs": epochs}))


if __name__ == "__main__":
    main()
