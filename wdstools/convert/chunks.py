"""What MDS and LitData have in common: folders with an index.json and files of `u32 N | u32 offsets[N+1] | samples`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from wdstools.convert.records import File
from wdstools.errors import SourceError
from wdstools.storage import Whole, open_source


def load_index(folder: str) -> dict[str, Any] | None:
    """Return the index.json of a folder, None where there is none that is an object. Raises SourceError."""
    path = os.path.join(folder, "index.json")
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise SourceError(f"{path}: not JSON: {error}") from error
    return found if isinstance(found, dict) else None


def read_whole(path: str, compressed: bool) -> bytes:
    """Return the bytes of a file, decompressed if it is `compressed`. Raises SourceError, StoreError, ShardError."""
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not there, but its index.json names it")
    if not compressed:
        with open(path, "rb") as file:
            return file.read()
    with open_source(path) as source, io.BufferedReader(_Raw(Whole(source))) as file:
        return file.read()


class _Raw(io.RawIOBase):
    def __init__(self, source: Whole) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.readinto(memoryview(buffer))


def check_hashes(path: str, data: bytes, hashes: dict[str, str]) -> None:
    """Raises SourceError where a file is not what its index says of it, by those hashes that Python has."""
    for name, wanted in hashes.items():
        if name in hashlib.algorithms_available and hashlib.new(name, data).hexdigest() != wanted:
            raise SourceError(f"{path}: its {name} is not that of the index: damaged, or written anew")


def split_chunk(path: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of every sample of a file. Raises SourceError where its offsets lead nowhere."""
    count = struct.unpack_from("<I", data)[0] if len(data) >= 4 else -1
    head = 4 * (count + 2)
    offsets = np.frombuffer(data, "<u4", count + 1, 4).astype(np.int64) if count >= 0 and head <= len(data) else None
    if offsets is None or offsets[0] < head or offsets[-1] > len(data) or np.any(offsets[1:] < offsets[:-1]):
        raise SourceError(f"{path}: its table of offsets is damaged, or it is cut short at {len(data)} bytes")
    view = memoryview(data)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield start, bytes(view[start:end])


def array(data: bytes, dtype: Any, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    """Return an array that owns its numbers. Raises ValueError."""
    found = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return found if shape is None else found.reshape(shape)


def pil(data: bytes) -> File:
    """Return an image that was kept as Pillow's raw bytes, as PNG. Raises ValueError."""
    from PIL import Image

    width, height, n = struct.unpack_from("<3I", data)
    out = io.BytesIO()
    mode = data[12 : 12 + n].decode()
    image = Image.frombytes(mode, (width, height), data[12 + n :])
    (image if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")).save(out, "PNG")
    return File(out.getvalue(), "png")
