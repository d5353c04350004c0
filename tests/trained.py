"""Small trainings: pictures of 8x8 pixels that are made here, and a model that costs nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("hydra")

from bench.train import digits, run  # noqa: E402
from bench.train.run import Result  # noqa: E402
from bench.train.settings import Data, Settings, load  # noqa: E402

COUNT, CLASSES, BATCH = 130, 4, 10

QUIET = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


def make(folder: Path, count: int = COUNT, per_shard: int = 20) -> Path:
    """Write pictures into shards, several of them."""
    data = Data(image="png", count=count, size=8, channels=1, classes=CLASSES)
    digits.write(folder, digits.pictures(data), per_shard=per_shard)
    return folder


def settings(shards: Path, out: Path, *overrides: str) -> Settings:
    return load([
        f"data.train='{shards}'", "data.make=null", f"data.classes={CLASSES}", "data.size=8", f"out='{out}'",
        "model=tiny", f"batch_size={BATCH}", "workers=0", "logger=none", "epochs=2", "device=cpu", *overrides,
    ])  # fmt: skip


def train(shards: Path, out: Path, *overrides: str) -> Result:
    with one_thread():
        return run.train(settings(shards, out, *overrides))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and on a busy machine several wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def naive_split(dataset: Any, part: float = 0.1) -> int:
    """How many samples the validation has."""
    return len(dataset.split(train=1 - part, val=part)["val"])
