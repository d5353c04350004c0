"""One training in one process of whatever launched it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from bench.train import digits, loaders, loggers, record, strategies
from bench.train.callbacks import FOLDER, LAST, Checkpoints, Meter
from bench.train.datamodule import FeedData
from bench.train.feed import DeviceFeed
from bench.train.gpu import Utilisation
from bench.train.module import Classifier
from bench.train.settings import Settings, WrongSettings, plain
from bench.train.steps import Agreement, Steps
from bench.train.stopping import Stop, Stopped
from wdstools.lightning import DataWait

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
RESULT = "result.json"


@dataclass
class Result:
    """What came of a run; None: there was nothing to measure.

    `samples_per_s`: of all ranks together; `data_wait`: DataWait.summary() of this rank; `loss`, `accuracy`: of the
    last epoch's training; `val_...`: of the last validation; `curve`: the loss of every step of this process on this
    rank; `samples`: the table of the last validation.
    """

    samples_per_s: float | None
    data_wait: dict[str, float]
    loss: float | None
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    steps: int
    out: str
    checkpoint: str | None
    seconds: float
    gpu: dict[str, float | str] = field(default_factory=dict)
    samples: str | None = None
    curve: list[float] = field(default_factory=list)


def train(settings: Settings) -> Result:
    """Train, in one process of whatever launched it: rank and world come from the environment, as torchrun sets it.

    Raises WrongSettings; Stopped after SIGTERM or Ctrl-C, with a checkpoint; what loader and source raise.
    """
    rank, world = ranks()
    with Stop() as stop:
        out = folder(settings, world)
        checkpoint = resumed(settings, out)
        digits.prepare(settings)
        if rank == 0:
            record.start(settings, out, world)
        with device_of(settings) as device, _quiet():
            try:
                result = (_plain if settings.engine == "ddp" else _fit)(settings, out, device, checkpoint, stop)
            except Exception as error:
                loaders.close()
                if stop.number:  # workers got the signal, too
                    raise Stopped(stop.number) from error
                raise
        if rank == 0:
            finish(settings, out, result)
        return result


def _fit(settings: Settings, out: Path, device: torch.device, checkpoint: Path | None, stop: Stop) -> Result:
    rank, world = ranks()
    began = time.perf_counter()
    wait, meter = DataWait(), Meter(settings.log_every)
    checkpoints = Checkpoints(out, settings.checkpoint_every, stop)
    model = Classifier(settings, out)
    logger = loggers.make(settings, out)
    trainer = Trainer(
        **_devices(device, world, settings.regime), precision=PRECISIONS[settings.precision], logger=logger or False,
        callbacks=[wait, meter, checkpoints], max_epochs=settings.epochs, max_steps=settings.max_steps or -1,
        log_every_n_steps=settings.log_every, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, default_root_dir=out,
    )  # fmt: skip

    def feed(part: str) -> Any:
        found = DeviceFeed(loaders.make(settings, part, rank=rank, world=world), device, depth=settings.prefetch)
        if part == "val":
            return found
        uneven = settings.regime == "uneven" and world > 1
        return Steps(found, Agreement(stop), empty=partial(strategies.empty, settings) if uneven else None)

    with Utilisation(device.index if device.type == "cuda" else None) as gpu:
        data = FeedData(feed)
        if checkpoint is not None and (over := epoch_over(checkpoint)) is not None:
            model.epoch_over = over  # the validation was not, or not to its end: a Trainer goes on with the next epoch
            trainer.validate(model, datamodule=data, ckpt_path=checkpoint, verbose=False)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
    loggers.close(logger)
    return Result(
        samples_per_s=meter.rate() * world or None, data_wait=wait.summary(), loss=meter.loss, accuracy=meter.accuracy,
        val_loss=model.validated.get("val_loss"), val_accuracy=model.validated.get("val_accuracy"),
        steps=trainer.global_step, out=str(out), checkpoint=str(checkpoints.path), curve=meter.curve,
        gpu=gpu.summary(), seconds=time.perf_counter() - began, samples=str(model.file) if model.file else None,
    )  # fmt: skip


def _plain(settings: Settings, out: Path, device: torch.device, checkpoint: Path | None, stop: Stop) -> Result:
    """The same by engine=ddp."""
    from bench.train import ddp

    began = time.perf_counter()
    with Utilisation(device.index if device.type == "cuda" else None) as gpu:
        training = ddp.fit(settings, out, device, checkpoint, stop, *ranks())
    return Result(
        samples_per_s=training.rate(), data_wait=training.waits.summary(), loss=training.loss,
        accuracy=training.accuracy, val_loss=training.validated.get("val_loss"),
        val_accuracy=training.validated.get("val_accuracy"), steps=training.step, out=str(out),
        checkpoint=str(training.path), curve=training.curve, gpu=gpu.summary(), seconds=time.perf_counter() - began,
        samples=str(training.file) if training.file else None,
    )  # fmt: skip


def ranks() -> tuple[int, int]:
    """Return rank and world, as torchrun tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def folder(settings: Settings, world: int) -> Path:
    """Return the folder of a run, which is there. Raises WrongSettings."""
    if settings.out is None:
        if world > 1:
            raise WrongSettings("out=FOLDER is needed with several ranks, which have to agree about it")
        Path("runs").mkdir(exist_ok=True)
        settings.out = tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d_%H-%M-%S-"), dir="runs")
    out = Path(settings.out)
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    return out


def resumed(settings: Settings, out: Path) -> Path | None:
    """Return the checkpoint to go on with. Raises WrongSettings where it is not there, or would be overwritten."""
    last = out / FOLDER / LAST
    if settings.resume is None:
        if last.exists():
            raise WrongSettings(f"{out} holds a run: resume=auto goes on with it, out=FOLDER begins another")
        return None
    if settings.resume == "auto":
        return last if last.exists() else None
    if not Path(settings.resume).exists():
        raise WrongSettings(f"resume={settings.resume}: there is no such file")
    return Path(settings.resume)


def epoch_over(checkpoint: Path) -> int | None:
    """Return the epoch behind whose last step a checkpoint was written, None: it was written in its midst.

    Raises ValueError for a checkpoint of another engine."""
    state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)
    if "FeedData" not in state:
        raise ValueError(f"{checkpoint} is no checkpoint of engine=lightning")
    place = state["FeedData"]["train"]
    return place["epoch"] if place["over"] else None


def finish(settings: Settings, out: Path, result: Result) -> None:
    """Save the result, which marks the run as finished."""
    record.write_json(out / RESULT, {"settings": plain(settings), **asdict(result)})


@contextmanager
def device_of(settings: Settings) -> Iterator[torch.device]:
    """The device of this rank. Raises WrongSettings where there is none, or it cannot compute so."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise WrongSettings("device=cuda: torch sees no GPU")
    if settings.device == "cpu" or not cuda:
        if settings.precision == "16":
            raise WrongSettings("precision=16 needs a GPU: precision=bf16 runs on a CPU")
        yield torch.device("cpu")
        return
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    with torch.cuda.device(device):
        yield device


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what Lightning says of itself, and what is not so here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec")  # Lightning's own
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # FeedData is
            warnings.filterwarnings("ignore", ".*smaller than the logging interval")
            warnings.filterwarnings("ignore", ".*does not have many workers")
            yield
    finally:
        logger.setLevel(level)


def _devices(device: torch.device, world: int, regime: str) -> dict[str, Any]:
    found: dict[str, Any] = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1}
    if world > 1:
        from lightning.pytorch.plugins.environments import TorchElasticEnvironment

        here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        found |= {
            "devices": here,
            "num_nodes": world // here,
            "strategy": strategies.strategy(regime, world),
            "plugins": [TorchElasticEnvironment()],
        }
    elif device.type == "cuda":
        found["devices"] = [device.index]
    return found
