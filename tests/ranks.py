"""Trainings of which every sample is noted, in this process or as one rank of several that torchrun started.

`torchrun ... -m tests.ranks JOBS`: JOBS is a JSON list of [NAME, [OVERRIDE, ...]]; each is trained in turn, in one
process group, and OUT/rank-R.json beside each checkpoint says what rank R saw.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.train import ddp, digits, run
from bench.train.module import Classifier
from bench.train.settings import Data, load

CLASSES = 4


def make(folder: Path, count: int, per_shard: int = 400) -> Path:
    """Write `count` pictures of 8x8 pixels into shards."""
    data = Data(image="png", count=count, size=8, channels=1, classes=CLASSES)
    digits.write(folder, digits.pictures(data), per_shard=per_shard)
    return folder


def overrides(shards: Path, val: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.train='{shards}'", f"data.val='{val}'", "data.make=null", f"data.classes={CLASSES}", "data.size=8",
        f"out='{out}'", "model=tiny", "workers=0", "logger=none", "epochs=1", "device=cpu", "batch_size=8", *more,
    ]  # fmt: skip


@contextmanager
def noted() -> Iterator[list[list[str]]]:
    """The keys of every training batch that a model is given, of either engine."""
    seen: list[list[str]] = []
    plain, lightning = ddp.Training.train_step, Classifier.training_step

    def step(self: Any, batch: Any, *others: Any) -> Any:
        seen.append(list(batch["key"]))
        return plain(self, batch, *others)

    def lightning_step(self: Any, batch: Any, *others: Any) -> Any:
        seen.append(list(batch["key"]))
        return lightning(self, batch, *others)

    with patch.object(ddp.Training, "train_step", step), patch.object(Classifier, "training_step", lightning_step):
        yield seen


def trained(given: list[str]) -> dict[str, Any]:
    """Train, and return the keys of this rank's steps, the losses, and the weights that came of it."""
    with noted() as seen:
        result = run.train(load(given))
    state = torch.load(str(result.checkpoint), weights_only=False)
    if "state_dict" in state:
        weights = {name.removeprefix("model."): value for name, value in state["state_dict"].items()}
    else:
        weights = state["model"]
    kept = {name: value.flatten().tolist() for name, value in weights.items()}
    return {"seen": seen, "curve": result.curve, "steps": result.steps, "weights": kept, "loss": result.loss,
            "val_loss": result.val_loss, "accuracy": result.accuracy}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name, given in json.loads(Path(sys.argv[1]).read_text()):
        found = trained(given)
        Path(sys.argv[1]).with_name(f"{name}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
