"""Small pictures of large ones, made when they are asked for, in bounded time and memory, and kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import secrets
import threading
from collections import OrderedDict
from typing import NamedTuple

from wdstools.ranges import Buffer

log = logging.getLogger("wdstools")

KEPT = 64 << 20  # bytes of thumbnails in memory
NBYTES = 64 << 20  # of an image that is looked at
PIXELS = 50_000_000  # of one
SIZES = range(16, 1025)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")  # none that starts a program
QUALITY = 80


class NoPicture(Exception):
    """What is no image, or none that is safe to decode; with the reason."""


class Thumbnail(NamedTuple):
    kind: str
    data: bytes


def make(data: Buffer, size: int) -> Thumbnail:
    """An image whose longer side has at most `size` pixels, as JPEG, or as WebP where it is transparent.

    Raises NoPicture; ModuleNotFoundError without pillow."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise NoPicture(f"{width} x {height} pixels are more than {PIXELS}")
            image.draft("RGB", (size, size))
            image.thumbnail((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
            small = ImageOps.exif_transpose(image)
            clear = small.has_transparency_data
            small = small.convert("RGBA" if clear else "RGB")
            out = io.BytesIO()
            if clear:
                small.save(out, "WEBP", quality=QUALITY, method=2)
                return Thumbnail("image/webp", out.getvalue())
            small.save(out, "JPEG", quality=QUALITY)
            return Thumbnail("image/jpeg", out.getvalue())
    except (NoPicture, ModuleNotFoundError):
        raise
    except Exception as error:
        raise NoPicture(f"{type(error).__name__}: {str(error)[:200]}") from error


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


class Thumbnails:
    """Thumbnails by name. `folder`: where they are kept on disk as well; what cannot be written is not kept."""

    def __init__(self, folder: str | None = None) -> None:
        self._kept: OrderedDict[str, Thumbnail] = OrderedDict()
        self._nbytes, self._lock = 0, threading.Lock()
        self._folder, self._told = folder, False

    def get(self, name: str) -> Thumbnail | None:
        """From memory."""
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
        return found

    def load(self, name: str) -> Thumbnail | None:
        """From the disk."""
        if self._folder is None:
            return None
        try:
            with open(self._path(name), "rb") as file:
                data = file.read()
        except OSError:
            return None
        if data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9":
            kind = "image/jpeg"
        elif data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 == len(data):
            kind = "image/webp"
        else:
            return None  # not written to its end
        return self._keep(name, Thumbnail(kind, data))

    def put(self, name: str, thumbnail: Thumbnail) -> Thumbnail:
        if self._folder is not None:
            self._save(self._path(name), thumbnail.data)
        return self._keep(name, thumbnail)

    def _keep(self, name: str, thumbnail: Thumbnail) -> Thumbnail:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = thumbnail
                self._nbytes += len(thumbnail.data)
            while self._nbytes > KEPT:
                self._nbytes -= len(self._kept.popitem(last=False)[1].data)
        return thumbnail

    def _path(self, name: str) -> str:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return os.path.join(self._folder or "", digest[:2], digest)

    def _save(self, path: str, data: bytes) -> None:
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if not self._told:
                self._told = True
                log.warning("thumbnails are not kept on disk: %s", error)
