"""Pain 3: find the worst samples after a training, and look at them: by a join over the index, and in wds-serve."""

from __future__ import annotations

import base64
import io
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import wdstools
from bench.train.classsorted import Sorted

SIDE, HIDDEN, EPOCHS, BATCH = 16, 128, 12, 128  # of the tiny model: a picture is 16 x 16 pixels to it
SHOWN = 12


class Small:
    """A sample as SIDE x SIDE floats, its label and key."""

    def __init__(self, image: str, label: str) -> None:
        self.image, self.label = image, label

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        picture: Image.Image = Image.open(io.BytesIO(sample[self.image]))
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        pixels = np.asarray(small, np.float32).reshape(-1) / 255 - 0.5
        return {"x": pixels, "label": int(sample[self.label]), "key": sample["__key__"]}


def train(data: Sorted, path: Path, workers: int = 2) -> dict[str, Any]:
    """Train a tiny model on all samples, and write key, label, prediction and loss of each to a parquet. Returns its
    accuracy and seconds."""
    start = time.perf_counter()
    torch.manual_seed(0)
    options: dict[str, Any] = {"shuffle": False, "tail": "uneven", "rank": 0, "world": 1, "num_workers": workers}
    batches = list(
        wdstools.loader(data.open(), BATCH, transform=Small(data.image, data.label), **options)
    )  # decoded once: 3 kB each
    inputs, labels = torch.cat([batch["x"] for batch in batches]), torch.cat([batch["label"] for batch in batches])
    keys = [key for batch in batches for key in batch["key"]]
    classes = int(labels.max()) + 1
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, classes)
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(keys)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        scores = model(inputs)
        losses = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    predictions = scores.argmax(1)
    columns = {"key": keys, "label": labels.numpy(), "prediction": predictions.numpy(), "loss": losses.numpy()}
    pq.write_table(pa.table(columns), path)
    accuracy = float((predictions == labels).float().mean())
    return {"accuracy": accuracy, "train_seconds": time.perf_counter() - start, "epochs": EPOCHS}


def find(data: Sorted, parquet: Path) -> dict[str, Any]:
    """Join the losses to the set and fetch the samples with the highest: rows, pictures (data: URLs), seconds.

    Raises ValueError: no sample of the set is in the parquet, or it lacks a column.
    """
    start = time.perf_counter()
    joined = data.open().join(str(parquet))
    if missing := {"label", "prediction", "loss"} - set(joined.columns()):
        raise ValueError(f"{parquet}: there is no column {', '.join(sorted(missing))}")
    view = joined.where("loss IS NOT NULL").sort_by("loss", descending=True)
    if not len(view):
        raise ValueError(f"{parquet}: no key in it is one of {data.index}")
    samples = view[:SHOWN].fetch(range(min(SHOWN, len(view))))
    seconds = time.perf_counter() - start
    table = view[: max(SHOWN, len(data.spoiled))].to_arrow().select(["key", "label", "prediction", "loss"]).to_pylist()
    top = {row["key"] for row in table[: len(data.spoiled)]}
    return {
        "samples": len(view), "seconds": seconds, "worst": table[:SHOWN],
        "spoiled": len(data.spoiled), "spoiled_found": len(top & set(data.spoiled)),
        "pictures": [thumbnail(sample[data.image]) for sample in samples],
    }  # fmt: skip


def thumbnail(data: bytes, side: int = 160) -> str:
    """A picture as a data: URL of a small JPEG."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((side, side))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def command(shards: str, parquet: Path) -> str:
    """The line that shows the worst samples in a browser."""
    return shlex.join(["wds-serve", shards, "--annotations", str(parquet)])


def shoot(data: Sorted, parquet: Path, folder: Path, picture: Path) -> str | None:
    """Start wds-serve as that line does, and take a picture of the gallery by descending loss. Returns why there is
    none where a program is not installed."""
    try:
        from tests.browsing import browsing
        from tests.serving import serving
    except ModuleNotFoundError as error:
        return f"{error}; pip install pytest selenium"
    import pytest

    opened = "[...document.querySelectorAll('#grid .frame img')].filter((one) => one.naturalWidth).length"
    shown = min(SHOWN, len(data.open()))
    try:
        with serving(folder, data.index, "--annotations", parquet) as live, browsing(folder) as browser:
            browser.clear(1280, 900)
            browser.open(f"{live.url}/#sort=loss&desc=1")
            browser.wait(lambda: browser.run(opened) >= shown, f"{shown} thumbnails", 60)
            browser.driver.save_screenshot(str(picture))
    except pytest.skip.Exception as reason:
        return str(reason)
    return None
