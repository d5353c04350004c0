"""Shards that are made here: scikit-learn's real digits, and pictures whose classes can be learnt."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import wdstools
from bench.train.settings import Data, Settings

PER_SHARD = 500


def prepare(settings: Settings) -> None:
    """Make the shards that data.make names in the folder data.train, unless it is there."""
    data = settings.data
    if data.make is None or os.path.exists(data.train):
        return
    print(f"making {data.make} in {data.train}", file=sys.stderr)
    write(Path(data.train), digits(data) if data.make == "digits" else pictures(data), data.label)


def write(folder: Path, samples: Iterator[dict[str, Any]], label: str = "cls", per_shard: int = PER_SHARD) -> None:
    """Write shards, with the label as a column of their index, into a new folder, which is there as a whole or not at
    all; where somebody else made it meanwhile, theirs is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with wdstools.ShardWriter(f"{temporary}/train-%06d.tar", maxcount=per_shard, lift=[label]) as sink:
            for sample in samples:
                sink.write(sample)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not any(folder.glob("*.tar")):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digits(data: Data) -> Iterator[dict[str, Any]]:
    """The 1,797 digits of 8x8 pixels, enlarged to data.size, so that every decoder gets the same pixels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for i, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        small = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
        picture = small.resize((data.size, data.size), Image.Resampling.BICUBIC)
        yield {"__key__": f"digit-{i:04d}", data.image: _payload(picture, data), data.label: int(label)}


def pictures(data: Data) -> Iterator[dict[str, Any]]:
    """data.count pictures: stripes whose direction and colour tell the class, their place and width random, with
    noise. They are larger than data.size by a third, and not square, as photographs are."""
    height, width = data.size * 4 // 3, data.size * 5 // 3
    y, x = np.mgrid[:height, :width].astype(np.float32) / data.size
    for i in range(data.count):
        rng = np.random.default_rng(i)
        label = int(rng.integers(data.classes))
        angle = math.pi * label / data.classes
        stripes = np.sin(
            (x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi * rng.uniform(4, 7) + rng.uniform(0, 2 * math.pi)
        )
        colour = np.array([math.cos(2 * angle + shift) for shift in (0, 2.1, 4.2)], np.float32)
        noise = rng.normal(0, 12, (height // 4 + 1, width // 4 + 1, 1)).astype(np.float32)
        noise = noise.repeat(4, 0).repeat(4, 1)[:height, :width]
        pixels = 128 + stripes[..., None] * (40 + 40 * colour) + 20 * colour + noise
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        yield {"__key__": f"picture-{i:07d}", data.image: _payload(picture, data), data.label: label}


def _payload(picture: Image.Image, data: Data) -> bytes:
    """Bytes of an image file, or of an array [C, H, W] where the field is npy."""
    picture = picture.convert("L" if data.channels == 1 else "RGB")
    file = io.BytesIO()
    if data.image.rpartition(".")[2] == "npy":
        pixels = np.asarray(picture.resize((data.size, data.size)))
        np.save(file, np.atleast_3d(pixels).transpose(2, 0, 1))
    else:
        kind = {"jpg": "jpeg", "pgm": "ppm"}.get(data.image, data.image)
        picture.save(file, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return file.getvalue()
