"""A folder of samples for the tests of the sample routes: images, text, JSON, what has no name, odd keys."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from wdstools.writer import ShardWriter

N = 300
HTML = "<img src=x onerror=alert(1)>&\"'"


def jpeg(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (number % 256, 255 - number % 256, 7)).save(out, "JPEG")
    return out.getvalue()


def sample(number: int) -> dict[str, Any]:
    """Sample 0 to N - 1 of the set train."""
    found: dict[str, Any] = {"__key__": f"k{number:04d}", "cls": str(number % 10).encode()}
    found["jpg"] = jpeg(number)
    found["json"] = json.dumps({"width": 40 + number, "name": None if number % 7 == 0 else f"n{number % 5}"}).encode()
    if number % 3 == 0:
        found["bin"] = bytes(range(256)) * (number + 1)
    return found


def make(folder: Path) -> Path:
    """`folder`/shards, with three sets: train of four shards, with an index; odd, without; and none."""
    root = folder / "shards"
    root.mkdir()
    lift = ["cls", "json:width", "json:name"]
    with ShardWriter(str(root / "train-%06d.tar"), maxcount=80, lift=lift) as writer:
        for number in range(N):
            writer.write(sample(number))
    with tarfile.open(root / "odd-000000.tar", "w", format=tarfile.PAX_FORMAT) as odd:
        for name, data in {
            f"{HTML}.html": b"<script>alert(1)</script>",
            f"{HTML}.txt": "grüß".encode(),
            "deep/er/key.txt": b"one",
            "deep/er/key.seg.png": b"no image",
            "007.txt": b"bond",
            "007.npy": b"\x93NUMPY" + bytes(100),
            "x" * 150 + ".cls": b"3",
            'a\r\nSet-Cookie: b"c.txt': b"header",
            "big.bin": bytes(3_000_000),
            "empty.txt": b"",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            odd.addfile(info, io.BytesIO(data))
    (root / "readme.txt").write_text("hello")
    return root


def payloads(found: dict[str, Any]) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in found.items() if not name.startswith("__")}
