"""engine=ddp: the training as a plain loop over torch's DistributedDataParallel, with the results of the other engine.

One process of however many: rank and world from the environment, as torchrun sets them; nccl on GPUs, gloo elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Joinable, JoinHook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bench.train import loaders, loggers, module, persample
from bench.train.callbacks import FOLDER, LAST
from bench.train.feed import DeviceFeed
from bench.train.regimes import joined
from bench.train.settings import Settings
from bench.train.steps import Agreement, Steps, StoppedTogether
from bench.train.stopping import Stop
from wdstools.lightning import DataWait

SILENCE = timedelta(minutes=10)  # after which a collective that a rank does not come to is an error


def join(device: torch.device, world: int) -> None:
    """Be in the process group of the environment: the one that is there (Ray makes one), else one of our own, until
    the process ends: a second one at the same place can meet what the first one left there, and hang."""
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=SILENCE)
        atexit.register(leave)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def fit(
    settings: Settings, out: Path, device: torch.device, checkpoint: Path | None, stop: Stop, rank: int, world: int
) -> Training:
    """Train on this rank, from a checkpoint where one is given, and return what came of it.

    SIGTERM or SIGINT to any rank: a checkpoint, and StoppedTogether on all of them.
    """
    join(device, world)
    training = Training(settings, out, device, Agreement(stop), rank, world)
    if checkpoint is not None:
        training.load(checkpoint)
    try:
        training.run(stop)
    except StoppedTogether:
        training.save()
        raise
    finally:
        stop.stepping = False
        loggers.close(training.logger)
    return training


class Training:
    """A training of one rank: its state, and its loop."""

    def __init__(
        self, settings: Settings, out: Path, device: torch.device, agreement: Agreement, rank: int, world: int
    ) -> None:
        self.settings, self.path, self.device, self.rank, self.world = (
            settings,
            out / FOLDER / LAST,
            device,
            rank,
            world,
        )
        self.epoch = self.step = 0  # the epoch that runs; steps of all epochs
        self.in_epoch, self.whole = 0, False  # steps of this epoch; whether it lacks nothing but its validation
        self.curve: list[float] = []  # the loss of every step of this process on this rank
        self.loss = self.accuracy = float("nan")  # of the last epoch, of all ranks
        self.validated: dict[str, float] = {}
        self.file: Path | None = None
        self.samples, self.waits = 0, DataWait()
        self.seconds = self.saving = 0.0  # of training; of the checkpoints in this epoch's steps
        self.plain = module.build(settings).to(device)
        self.model: Any = self.plain
        if world > 1:
            self.model = DistributedDataParallel(self.plain, device_ids=[device] if device.type == "cuda" else None)
        self.optimizer = module.optimizer(settings, self.plain)
        self.kind = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}[settings.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.kind is torch.float16)
        regime = settings.regime if world > 1 else "exact"  # one rank waits for nobody
        self.feed = Steps(self.feed_of("train"), agreement, joined=regime == "uneven")
        try:
            self.length: int | None = len(self.feed)  # of this rank's epoch
        except TypeError:
            self.length = None
        self.val = self.feed_of("val")
        joinables = [agreement, self.model, Carried(self.kept, rank)]
        self.join = lambda: joined(joinables, regime)
        self.logger = loggers.make(settings, out) if rank == 0 else None

    def feed_of(self, part: str) -> Any:
        feed = loaders.make(self.settings, part, rank=self.rank, world=self.world)
        return DeviceFeed(feed, self.device, depth=self.settings.prefetch)

    def run(self, stop: Stop) -> None:
        """Train to the end of the last epoch, or to max_steps; a checkpoint is behind the last step in any case."""
        while self.epoch < self.settings.epochs and not self.done():
            stop.listen()
            if not self.whole:
                stop.stepping = True
                self.feed.set_epoch(self.epoch)  # of one that a checkpoint goes on with: its rest
                self.train_epoch()
                self.save()
                stop.stepping = False
            if self.whole:
                self.validate()
                self.epoch, self.in_epoch, self.whole = self.epoch + 1, 0, False
        if self.in_epoch == 0:
            self.save()  # nothing is lacking any more

    def done(self) -> bool:
        return self.settings.max_steps is not None and self.step >= self.settings.max_steps

    def train_epoch(self) -> None:
        """Take the steps of an epoch, or its rest; after it, all ranks have taken as many."""
        self.model.train()
        losses: list[Tensor] = []
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # losses, steps, hits, samples
        begin, self.saving = time.perf_counter(), 0.0
        self.waits.on_train_epoch_start(*UNSEEN)
        with self.join(), contextlib.closing(iter(self.feed)) as batches:
            for batch in batches:
                self.waits.on_train_batch_start(*UNSEEN, batch, self.in_epoch)
                losses.append(self.train_step(batch, sums))
                self.waits.on_train_batch_end(*UNSEEN, None, batch, self.in_epoch)
                if self.done():
                    self.whole = self.in_epoch == self.length
                    break
            else:
                self.whole = True
        self.curve += [float(loss) for loss in losses]  # waits for the device
        self.seconds += time.perf_counter() - begin - self.saving
        taken = torch.tensor([self.step, self.in_epoch, int(self.whole)])
        reduced(taken, dist.ReduceOp.MAX)
        self.step, self.in_epoch, self.whole = int(taken[0]), int(taken[1]), bool(taken[2])
        reduced(sums)
        loss, steps, hits, samples = sums.tolist()
        self.samples += int(samples)
        if steps:
            self.loss, self.accuracy = loss / steps, hits / samples

    def train_step(self, batch: Any, sums: Tensor) -> Tensor:
        """Take a step, and return its loss, still on the device."""
        module.seed_step(self.settings.seed, self.step, self.rank)
        labels = batch["label"].to(self.device)
        logits = self.logits(self.model, batch)
        loss = cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        loss, hits = loss.detach(), (logits.detach().argmax(1) == labels).sum()
        sums += torch.stack([loss, torch.ones_like(loss), hits, torch.full_like(loss, len(labels))])
        self.step, self.in_epoch = self.step + 1, self.in_epoch + 1
        if self.logger and self.step % self.settings.log_every == 0:
            self.logger.log_metrics({"loss": float(loss), "epoch": self.epoch}, self.step)
        if self.settings.checkpoint_every and self.step % self.settings.checkpoint_every == 0:
            self.save()
        return loss

    def logits(self, model: Any, batch: Any) -> Tensor:
        images = module.prepared(batch["image"].to(self.device), self.settings)
        with torch.autocast(self.device.type, self.kind, enabled=self.kind is not torch.float32):
            found: Tensor = model(images)
        return found.float()

    @torch.no_grad()
    def validate(self) -> None:
        """Write the loss of every sample, and note the means."""
        self.model.eval()
        for buffer in self.plain.buffers() if self.world > 1 else ():
            dist.broadcast(buffer, 0)  # running means, of which every rank has its own
        collected = persample.Samples()
        for batch in self.val:
            collected.add(batch["key"], batch["label"].to(self.device), self.logits(self.plain, batch))
        table = collected.table(self.epoch)
        self.validated = persample.metrics(table)
        found = {"train_loss": self.loss, "train_accuracy": self.accuracy, **self.validated}
        if self.rank == 0:
            self.file = persample.save(table, self.path.parent.parent, self.epoch)
            told = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            print(f"epoch {self.epoch}  {told}  {self.rate():,.0f} samples/s", file=sys.stderr, flush=True)
            if self.settings.loader != "synthetic":
                print(f"the worst samples: {persample.serve_command(self.settings, self.file)}", file=sys.stderr)
        if self.logger:
            self.logger.log_metrics(found, self.step)

    def rate(self) -> float:
        """Return samples/s of all ranks together, in training."""
        return self.samples / self.seconds if self.seconds else float("nan")

    def kept(self, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the optimizer keeps, after it was set to `state`, if that is given."""
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def save(self) -> None:
        """Write the last checkpoint, on rank 0, whole or not at all. No collective: in a Join, ranks may be gone."""
        if self.rank:
            return
        state: dict[str, Any] = {name: getattr(self, name) for name in PLACE}
        if self.in_epoch and not self.whole:
            if not self.feed.exact:
                print(f"no checkpoint in mid-epoch: loader={self.settings.loader} has no place there", file=sys.stderr)
                return
            state["loader"] = self.feed.state_dict()
        begin, temporary = time.perf_counter(), self.path.with_name(f".{LAST}.tmp")
        torch.save({**state, "model": self.plain.state_dict(), **self.kept()}, temporary)
        os.replace(temporary, self.path)
        self.saving += time.perf_counter() - begin

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, of as many ranks or, at the same global batch, of others.

        Raises ValueError for one of the other engine or a place that this loader cannot go to, StateError for one of
        other data or another order.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        lacking = {*PLACE, "model", "optimizer", "scaler"} - state.keys()
        if lacking:
            raise ValueError(f"{path} is no checkpoint of engine=ddp: it has no {', '.join(sorted(lacking))}")
        for name in PLACE:
            setattr(self, name, state[name])
        if "loader" in state:
            self.feed.load_state_dict(state["loader"])
        self.plain.load_state_dict(state["model"])
        self.kept(state)
        if self.rank == 0:
            print(f"goes on at epoch {self.epoch}, step {self.step}, from {path}", file=sys.stderr)


PLACE = ("epoch", "in_epoch", "whole", "step", "loss", "accuracy")  # of a training


class Carried(Joinable):
    """What a Join has to carry from the ranks that were last in it to those that were not, besides the weights: the
    state of the optimizer, without which the ranks' weights part at the next step."""

    def __init__(self, kept: Callable[..., dict[str, Any]], rank: int) -> None:
        super().__init__()
        self.kept, self.rank = kept, rank

    def join_hook(self, **_: Any) -> JoinHook:
        """Of Join."""
        return CarriedHook(self)

    @property
    def join_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        return dist.group.WORLD


class CarriedHook(JoinHook):
    def __init__(self, carried: Carried) -> None:
        self.carried = carried

    def post_hook(self, is_last_joiner: bool) -> None:
        rank = self.carried.rank
        told = torch.tensor([rank if is_last_joiner else -1, int(not is_last_joiner)])
        dist.all_reduce(told, dist.ReduceOp.MAX)
        source, needed = told.tolist()
        if needed:
            box = [self.carried.kept() if rank == source else None]
            dist.broadcast_object_list(box, source, device=torch.device("cpu"))
            if not is_last_joiner:
                self.carried.kept(box[0])


class Unseen:
    """In the place of the Trainer and its module, for DataWait."""

    loggers: tuple[()] = ()

    def log(self, *_: object, **__: object) -> None:
        pass


UNSEEN: Any = (Unseen(), Unseen())


def reduced(tensor: Tensor, operation: Any = None) -> None:
    """Add up, or whatever the operation is, a tensor over all ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, operation or dist.ReduceOp.SUM)
