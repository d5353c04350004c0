"""The LightningModule: a classifier of images, in whatever precision and memory layout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.train import models, persample
from bench.train.feed import normalize
from bench.train.settings import Settings


class Classifier(LightningModule):
    """Trains settings.model on batches of `image`, `label` and `key`.

    Of the last training step it keeps `step_loss` and `step_hits`, on the device; of the last validation `validated`
    (val_loss, val_accuracy, of every sample once) and `file`, the table of its samples. `epoch_over`: the epoch of a
    validation that is none of a fit.
    """

    def __init__(self, settings: Settings, out: Path) -> None:
        super().__init__()
        self.settings, self.out = settings, out
        self.model = build(settings)
        self.step_loss = self.step_hits = torch.zeros(())
        self.validated: dict[str, float] = {}
        self.validated_epoch: int | None = None
        self.file: Path | None = None
        self.epoch_over = 0
        self._samples = persample.Samples()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(prepared(images, self.settings))
        return logits

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_step(self.settings.seed, self.trainer.global_step, self.trainer.global_rank)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss = cross_entropy(logits, batch["label"])
        self.step_loss = loss.detach()
        self.step_hits = (logits.detach().argmax(1) == batch["label"]).sum()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._samples = persample.Samples()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._samples.add(batch["key"], batch["label"], self(batch["image"]))

    def on_validation_epoch_end(self) -> None:
        epoch = self.trainer.current_epoch if self.trainer.state.fn == "fit" else self.epoch_over
        table = self._samples.table(epoch)
        self.validated, self.validated_epoch = persample.metrics(table), epoch
        if self.trainer.is_global_zero:
            self.file = persample.save(table, self.out, epoch)
            if self.settings.loader != "synthetic":
                print(f"the worst samples: {persample.serve_command(self.settings, self.file)}", file=sys.stderr)

    def configure_optimizers(self) -> Any:
        return optimizer(self.settings, self.model)


def build(settings: Settings) -> torch.nn.Module:
    """Return the model of settings: its weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = models.build(settings.model, settings.data.classes, settings.data.channels)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        model.compile()  # in place: the names of its weights stay
    return model


def prepared(images: Tensor, settings: Settings) -> Tensor:
    """Return a batch of uint8 as the model takes it, on the device where it is."""
    images = normalize(images)
    return images.contiguous(memory_format=torch.channels_last) if settings.channels_last else images


def optimizer(settings: Settings, model: torch.nn.Module) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **options)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws depend on the step alone: the same after a resume, and behind any loader."""
    torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank)
