"""Class-sorted shards for the demonstration: given as they are, made of a class folder, or of pictures made here."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import wdstools
from wdstools import build

SHARDS = 16  # that a set is cut into
DISTINCT = 8  # pictures of a class that are made; more samples are copies under other keys
PICTURES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}


@dataclass(frozen=True)
class Sorted:
    """Shards whose samples stand in the order of their classes. `index`: what wdstools.open() takes, with the column
    `label`; `spoiled`: keys whose label was made wrong, for the search of the worst samples to find."""

    shards: list[str]
    index: str
    image: str
    label: str
    spoiled: list[str]
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        return sum(os.path.getsize(path) for path in self.shards)

    def open(self) -> Any:
        return wdstools.open(self.index)

    def labels(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The label of every row. ValueError: one is no whole number."""
        values = self.open().to_arrow().column(self.label).to_pylist()
        try:
            return np.array([int(value) for value in values], np.int64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.index}: column {self.label!r} holds what is no class number: {error}") from None


def given(shards: list[str], folder: Path, image: str = "jpg", label: str = "cls") -> Sorted:
    """Shards as they are; where their index lacks the column `label`, one that has it is made in `folder`."""
    found = wdstools.open(shards)
    if label in found.columns():
        index = str(folder / "given.wdsindex")
        found.save_index(index)
    else:
        index = str(folder / "labelled.wdsindex")
        build.build(shards, lift=[label]).save(index)
    return Sorted(shards, index, image, label, [])


def of_tree(tree: Path, folder: Path, copies: int = 1, spoil: int = 12) -> Sorted:
    """Shards of a folder of class folders, class after class, every picture `copies` times; `spoil` labels are wrong.

    Raises ValueError: there are not two classes of pictures.
    """
    classes = [path for path in sorted(tree.iterdir()) if path.is_dir()]
    pictures = [sorted(path for path in one.rglob("*") if path.suffix.lower() in PICTURES) for one in classes]
    if sum(map(bool, pictures)) < 2:
        raise ValueError(f"{tree}: not two folders of pictures ({', '.join(PICTURES)}), nor a folder of .tar")

    def samples() -> Iterator[dict[str, Any]]:
        for label, (one, paths) in enumerate(zip(classes, pictures, strict=True)):
            for path in paths:
                stem = str(path.relative_to(one).with_suffix("")).replace(".", "_")
                data, field = path.read_bytes(), PICTURES[path.suffix.lower()]
                for copy in range(copies):
                    yield {"__key__": f"{one.name}/{stem}-{copy:03d}", field: data, "cls": label}

    return _write(samples(), copies * sum(map(len, pictures)), len(classes), folder, spoil)


def made(folder: Path, classes: int = 60, each: int = 160, side: int = 320, spoil: int = 12) -> Sorted:
    """JPEGs of smooth noise around colours of their class, about 30 kB each; `spoil` labels are wrong."""

    def samples() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for label in range(classes):
            middle = rng.integers(40, 216, (3, 3, 3))
            pictures = [_picture(rng, middle, side) for _ in range(min(each, DISTINCT))]
            for i in range(each):
                yield {"__key__": f"class{label:03d}/{i:05d}", "jpg": pictures[i % len(pictures)], "cls": label}

    return _write(samples(), classes * each, classes, folder, spoil)


def _picture(rng: np.random.Generator, middle: Any, side: int) -> bytes:
    coarse = (np.kron(middle, np.ones((16, 16, 1))) + rng.normal(0, 40, (48, 48, 3))).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def _write(samples: Iterator[dict[str, Any]], count: int, classes: int, folder: Path, spoil: int) -> Sorted:
    rng = random.Random(0)
    wrong = set(rng.sample(range(count), min(spoil, count)))
    spoiled, fields = [], set()
    shards = folder / "shards"
    with wdstools.ShardWriter(f"{shards}/train-%06d.tar", maxcount=-(-count // SHARDS), lift=["cls"]) as sink:
        for number, sample in enumerate(samples):
            if number in wrong:
                sample["cls"] = (sample["cls"] + rng.randrange(1, classes)) % classes
                spoiled.append(sample["__key__"])
            fields |= sample.keys() - {"__key__", "cls"}
            sink.write(sample)
    if len(fields) != 1:
        raise ValueError(f"pictures of several kinds: {', '.join(sorted(fields))}; give a folder of one")
    paths = sorted(str(path) for path in shards.glob("*.tar"))
    return Sorted(paths, str(shards / "train.wdsindex"), fields.pop(), "cls", spoiled)
