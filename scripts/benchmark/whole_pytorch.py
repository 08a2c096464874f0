"""A whole training by the notebook's recipe in PyTorch, with the fastest input it has.

Eager and contiguous, its best form for `gap`. The augmentation is that of whole batches of tensors:
as strong as the notebook's, but both its maps in one, and brightness always before contrast.

Prints JSON: the monotonic clock, in seconds, when each epoch was done, with its test accuracy in
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
    """Does the work that the command line has as JSON."""
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
