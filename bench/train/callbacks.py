"""Callbacks of the Trainer: checkpoints and stopping, rates and what is logged."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed

from bench.train.steps import StoppedTogether
from bench.train.stopping import Stop, Stopped

FOLDER = "checkpoints"
LAST = "last.ckpt"


class Checkpoints(Callback):
    """Writes OUT/checkpoints/last.ckpt every so many steps, behind the last step of an epoch, and when told to stop.

    It has to stand behind callbacks that measure steps.
    """

    def __init__(self, out: Path, every: int | None, stop: Stop) -> None:
        self.path = out / FOLDER / LAST
        self._every, self._stop = every, stop
        self._saved = -1  # the step of the last one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.listen()
        self._stop.stepping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        stop = self._agreed(trainer)
        due = self._every is not None and step % self._every == 0
        if stop or due or trainer.is_last_batch or step == trainer.max_steps:
            self._save(trainer)
        if stop:
            raise Stopped(stop)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **options: Any) -> None:
        if self._stop.number:
            raise Stopped(self._stop.number)  # the checkpoint is the one behind the last step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop.stepping = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the steps up to a failure of the loader. Other ranks would not take part: they have the last one."""
        self._stop.stepping = False
        progress = trainer.fit_loop.epoch_loop.batch_progress
        between = progress.current.ready == progress.current.completed
        together = trainer.world_size == 1 or isinstance(exception, StoppedTogether)
        if trainer.training and between and together and trainer.global_step > max(self._saved, 0):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        temporary = self.path.with_name(f".{LAST}.tmp")
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)

    def _agreed(self, trainer: Trainer) -> int:
        """The number of the signal that came, on one rank; several agree about it before a step (see Steps)."""
        return self._stop.number if trainer.world_size == 1 else 0


def device_of(trainer: Trainer) -> torch.device:
    return trainer.strategy.root_device


class Meter(Callback):
    """Counts samples/s, and takes the losses and hits of training steps from the module's `step_loss` and `step_hits`.

    Time counts from the end of the first step of the run to the last, without what validations and checkpoints take.
    Tensors are looked at every so many steps, and at the end of an epoch: in between nothing waits for the device.
    """

    def __init__(self, every: int) -> None:
        self._every = every  # steps
        self.curve: list[float] = []  # the loss of every step of this run on this rank
        self.loss: float | None = None  # of the last epoch, of all ranks
        self.accuracy: float | None = None
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []
        self._samples = self._epoch_samples = 0  # of this rank
        self._seconds = 0.0
        self._end: float | None = None
        self._first = True
        self._window = (0, 0.0)

    def rate(self) -> float:
        """Return samples/s of this rank; 0 where nothing was measured."""
        return self._samples / self._seconds if self._seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count = len(batch["label"])
        if not count:  # of a rank that has run out of samples (see IdleDDP)
            return
        self._epoch_samples += count
        last: Any = pl_module
        self._losses.append(last.step_loss)
        self._hits.append(last.step_hits)
        step = trainer.global_step
        due = step % self._every == 0
        loss = float(last.step_loss) if due else None  # waits for the device
        now = time.perf_counter()
        if self._first:
            _settle(trainer)
            now = time.perf_counter()
            self._first = False
        elif self._end is not None:
            self._samples += count
            self._seconds += now - self._end
        self._end = now
        if loss is not None:
            samples, seconds = self._samples - self._window[0], self._seconds - self._window[1]
            self._window = self._samples, self._seconds
            found = {"loss": loss, "epoch": trainer.current_epoch}
            if seconds:
                found["samples_per_s"] = samples / seconds * trainer.world_size
            log(trainer, found, step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._end = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._end is not None:
            _settle(trainer)
            self._seconds += time.perf_counter() - self._end
        self._end = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses = torch.stack(self._losses).float() if self._losses else torch.zeros(0, device=device_of(trainer))
        hits = torch.stack(self._hits).sum() if self._hits else torch.zeros((), device=device_of(trainer))
        sums = torch.stack([losses.sum(), hits.float(), torch.tensor(len(losses)).to(losses)])
        samples = torch.tensor(float(self._epoch_samples), device=losses.device)
        sums = torch.cat([sums, samples[None]])
        if trainer.world_size > 1:
            distributed.all_reduce(sums)
        total, right, steps, samples = sums.tolist()
        self.curve += losses.tolist()
        self.loss, self.accuracy = total / max(steps, 1), right / max(samples, 1)
        found = {"train_loss": self.loss, "train_accuracy": self.accuracy}
        module: Any = pl_module
        if module.validated_epoch == trainer.current_epoch:
            found |= module.validated
        log(trainer, found, trainer.global_step)
        if trainer.is_global_zero:
            told = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            rate = f"{self.rate() * trainer.world_size:,.0f} samples/s"
            print(f"epoch {trainer.current_epoch}  {told}  {rate}", file=sys.stderr, flush=True)
        self._losses, self._hits, self._epoch_samples = [], [], 0
        self._end = None


def log(trainer: Trainer, found: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(found, step)


def _settle(trainer: Trainer) -> None:
    """Wait until the device has done what it was told."""
    device = device_of(trainer)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
