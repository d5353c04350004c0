"""What the tests of the training program share: shards of small pictures, settings without Hydra, batches compared."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from wdstools.writer import ShardWriter

COUNT = 60


def picture(number: int, size: tuple[int, int] = (48, 40), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A smooth picture that its number determines."""
    rng = np.random.default_rng(number)
    channels = 1 if mode == "L" else 3
    coarse = rng.integers(0, 256, (6, 8, channels), dtype=np.uint8)
    image = Image.fromarray(coarse[..., 0] if mode == "L" else coarse).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def sample(number: int) -> dict[str, Any]:
    """Of keys that a file system and a URL find odd, too."""
    key = f"folder {number % 3}/k%{number:04d}é"
    raw = np.random.default_rng(number).integers(0, 256, (3, 24, 24), dtype=np.uint8)
    return {
        "__key__": key,
        "jpg": picture(number, (48 + number % 7, 40)),
        "cls": number % 7,
        "npy": npy(raw),
        "txt": b"not asked for",
    }


def write(folder: Path, count: int = COUNT, per_shard: int = 15) -> Path:
    """Shards of samples, with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    with ShardWriter(f"{folder}/train-%06d.tar", maxcount=per_shard) as sink:
        for number in range(count):
            sink.write(sample(number))
    return folder


def settings(train: str | Path, **given: Any) -> Any:
    """Settings as the schema has them. What `data` and `source` have is given by its own name."""
    data = {"name": "t", "train": str(train), "val": None, "val_part": 0.2, "image": "jpg", "label": "cls"}
    data |= {"classes": 7, "size": 24, "channels": 3, "augment": True}
    source = {"kind": "folder", "endpoint": "", "prefix": ""}
    rest: dict[str, Any] = {"seed": 3, "batch_size": 8, "workers": 2, "loader": "indexed", "regime": "uneven"}
    rest |= {"decoder": "pillow", "device": "cpu", "block": 1}
    for part in (data, source, rest):
        part |= {name: given.pop(name) for name in list(given) if name in part}
    assert not given
    return SimpleNamespace(**rest, data=SimpleNamespace(**data), source=SimpleNamespace(**source))


def told(batches: Any) -> list[tuple[str, int, str]]:
    """(key, label, digest of the pixels) of every sample, in order."""
    found = []
    for batch in batches:
        assert set(batch) == {"image", "label", "key"}
        assert len(batch["key"]) == len(batch["image"]) == len(batch["label"])
        assert str(batch["image"].dtype) == "torch.uint8"
        assert str(batch["label"].dtype) == "torch.int64"
        for key, label, image in zip(batch["key"], batch["label"].tolist(), batch["image"], strict=True):
            found.append((key, label, hashlib.md5(image.contiguous().numpy().tobytes()).hexdigest()))
    return found
