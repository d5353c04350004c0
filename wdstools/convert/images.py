"""Making images smaller: the shorter side to so many pixels, as JPEG. Runs in worker processes; needs Pillow."""

from __future__ import annotations

import io
import multiprocessing.connection
import os
import signal
import stat
import threading
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from wdstools.errors import SourceError

IMAGES = frozenset("jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm".split())
_JPEG = frozenset("jpg jpeg jpe jfif".split())
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
    6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip


class Shrink(NamedTuple):
    """What to make of images. `size`: pixels of the shorter side; `fields`: only these, or every image where empty."""

    size: int
    quality: int
    fields: frozenset[str] = frozenset()

    def wants(self, field: str) -> bool:
        """Say whether a field is to be looked at."""
        return field in self.fields if self.fields else field.rpartition(".")[2] in IMAGES

    def rename(self, field: str) -> str:
        """Return what a field is called once it is a JPEG."""
        head, dot, ext = field.rpartition(".")
        return field if ext in _JPEG or ext not in IMAGES else head + dot + "jpg"


class Failure(NamedTuple):
    """A file that could not be made smaller, and why; it crosses from a worker."""

    file: str
    reason: str
    detail: str


def shrink_fields(shrink: Shrink, fields: Mapping[str, Any]) -> dict[str, tuple[str, bytes]] | Failure:
    """Return {field: (new name, bytes)} of the images that became smaller; the others stay as they are.

    `fields`: bytes, or (path, nbytes).
    """
    found: dict[str, tuple[str, bytes]] = {}
    for name, value in fields.items():
        if not shrink.wants(name):
            continue
        path = str(value[0]) if isinstance(value, tuple) else f"field {name!r}"
        try:
            data = _read(*value) if isinstance(value, tuple) else value
            small = shrink_image(bytes(data), shrink)
        except SourceError as error:
            return Failure(path, str(error), "")
        except OSError as error:
            return Failure(
                path, *((error.strerror.lower(), "") if error.strerror else ("not a good image", str(error)))
            )
        except (ValueError, SyntaxError, EOFError, MemoryError) as error:
            return Failure(path, "not a good image", str(error))
        if small is None:
            continue
        new = shrink.rename(name)
        if new != name and new in fields:
            detail = f"field {name!r} becomes {new!r}, which the sample has; say which images with --resize-fields"
            return Failure(path, "two files for one field", detail)
        found[name] = (new, small)
    return found


def prepare_worker() -> None:
    """Make a worker process leave Ctrl-C to its parent, and end with it, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _read(path: str, nbytes: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise SourceError("not a regular file")
        if about.st_size != nbytes:
            raise SourceError("changed while it was packed")
        data = file.read()
    if len(data) != nbytes:
        raise SourceError("changed while it was packed")
    return data


def shrink_image(data: bytes, shrink: Shrink) -> bytes | None:
    """Return a JPEG, upright and RGB, whose shorter side is `size`; None where the image is no larger than that.

    Raises OSError, ValueError, SyntaxError, EOFError for what is no image.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                short = min(width, height)
                if short <= shrink.size:
                    image.load()  # a broken one must not slip through because it is small
                    return None
                goal = tuple(max(1, (side * shrink.size + short // 2) // short) for side in (width, height))
                profile = image.info.get("icc_profile") if image.mode == "RGB" else None
                # The JPEG decoder can scale down by 2, 4, 8 as it goes; twice the goal is left for the good filter.
                image.draft("RGB", (2 * goal[0], 2 * goal[1]))
                exif = image.getexif()
                whole: Image.Image = image if image.mode == "RGB" else _to_rgb(image)
                small = whole.resize((goal[0], goal[1]), Image.Resampling.LANCZOS)
                turn = _TURNS.get(exif.get(_ORIENTATION, 1))
                if turn is not None:
                    small = small.transpose(Image.Transpose[turn])
                out = io.BytesIO()
                small.save(out, "JPEG", quality=shrink.quality, exif=b"", icc_profile=profile)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
    return out.getvalue()


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    return (
        image.convert("RGBA").convert("RGB")
        if image.mode in ("P", "PA") and "transparency" in image.info
        else image.convert("RGB")
    )
