"""Where metrics go: TensorBoard, Weights & Biases without a network, or nowhere."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from bench.train.settings import Settings, WrongSettings, plain


def make(settings: Settings, out: Path) -> Logger | None:
    """Return the logger of a run, whose log_metrics(metrics, step) is all that is used; rank 0's alone writes.

    Raises WrongSettings where what it needs is not installed.
    """
    if settings.logger == "none":
        return None
    package = "wandb" if settings.logger == "wandb" else "tensorboard"
    if find_spec(package) is None:
        raise WrongSettings(f"logger={settings.logger}: pip install {package}, or logger=none")
    if settings.logger == "tensorboard":
        return TensorBoardLogger(out, name="", version="tensorboard")
    return _offline(settings, out)


def _offline(settings: Settings, out: Path) -> Logger:
    """What it writes, `wandb sync OUT/wandb/offline-run-*` sends."""
    os.environ["WANDB_MODE"] = "offline"  # nothing is asked of a network, whatever else is set
    os.environ.setdefault("WANDB_SILENT", "true")
    options: dict[str, Any] = {"config": plain(settings), "group": settings.data.name}
    return WandbLogger(name=out.name, save_dir=out, project="wdstools", offline=True, **options)


def close(logger: Logger | None) -> None:
    """End the run of a logger: the next one of this process is another."""
    if isinstance(logger, WandbLogger):
        import wandb

        wandb.finish()
