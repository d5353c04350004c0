"""The loss and the prediction of every sample of a validation, by key, as Parquet that wds-serve joins to shards."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, distributed
from torch.nn.functional import cross_entropy

from bench.train.settings import Settings
from bench.train.sources import locate

FOLDER = "samples"


class Samples:
    """Collects batches of one validation on one rank. Tensors stay on the device until table()."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._labels: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._losses: list[Tensor] = []

    def add(self, keys: list[str], labels: Tensor, logits: Tensor) -> None:
        """Take a batch: keys, labels [B] and logits [B, classes]."""
        self._keys += keys
        self._labels.append(labels.detach())
        self._predictions.append(logits.detach().argmax(1))
        self._losses.append(cross_entropy(logits.detach().float(), labels, reduction="none"))

    def table(self, epoch: int) -> pa.Table:
        """Return key, label, prediction, loss and epoch of all ranks' samples, by key, each once: a padded tail brings
        some twice. Every rank has to call it."""
        mine = self.parts()
        parts: list[Any] = [mine]
        if distributed.is_available() and distributed.is_initialized():
            parts = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, mine)
        return merged(parts, epoch)

    def parts(self) -> tuple[Any, ...]:
        """Return the keys, and arrays of the labels, predictions and losses, of this rank."""
        return (self._keys, *map(_array, (self._labels, self._predictions, self._losses)))


def merged(parts: list[Any], epoch: int) -> pa.Table:
    """Return the table of what the ranks have: by key, each once."""
    keys = np.array([key for part in parts for key in part[0]], dtype=object)
    columns = [np.concatenate([part[i] for part in parts]) for i in (1, 2, 3)]
    _, first = np.unique(keys.astype(str), return_index=True)
    named = dict(zip(("label", "prediction", "loss"), (column[first] for column in columns), strict=True))
    named["loss"] = named["loss"].astype(np.float32)
    epochs = np.full(len(first), epoch, np.int32)
    return pa.table({"key": pa.array(keys[first].tolist(), pa.string()), **named, "epoch": epochs})


def _array(tensors: list[Tensor]) -> Any:
    return torch.cat(tensors).cpu().numpy() if tensors else np.zeros(0, np.int64)


def metrics(table: pa.Table) -> dict[str, float]:
    """Return the mean `val_loss` and the `val_accuracy` of a table; NaN of none."""
    if not len(table):
        return {"val_loss": float("nan"), "val_accuracy": float("nan")}
    hits = table.column("label").to_numpy() == table.column("prediction").to_numpy()
    return {
        "val_loss": float(np.mean(table.column("loss").to_numpy(), dtype=np.float64)),
        "val_accuracy": float(hits.mean()),
    }


def save(table: pa.Table, out: Path, epoch: int) -> Path:
    """Write OUT/samples/epoch-NNN.parquet, as a whole or not at all, and return it."""
    path = out / FOLDER / f"epoch-{epoch:03d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
    return path


def serve_command(settings: Settings, file: Path) -> str:
    """Return the command that shows the samples with these losses, quoted for a shell."""
    given = settings.data.val or settings.data.train
    if settings.source.kind not in ("folder", "pipe-fread"):
        shards = locate(settings, "val").shards
        given = shards[0].rpartition("/")[0] if settings.source.kind in ("s3", "gcs") else given
    if not os.path.isdir(given) and given.endswith(".tar"):
        given = os.path.dirname(given) or "."
    return shlex.join(["wds-serve", given, "--annotations", str(file)])
