"""Making images smaller: the shorter side to so many pixels, as JPEG. Runs in threads; needs Pillow."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

from wdstools.errors import SourceError

_JPEG = frozenset({"jpg", "jpeg", "jpe", "jfif"})
IMAGES = _JPEG | {"png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"}
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
    """A file that could not be made smaller, and why."""

    file: str
    reason: str
    detail: str


def shrink_fields(shrink: Shrink, fields: Mapping[str, Any]) -> dict[str, tuple[str, bytes]] | Failure:
    """Return {field: (new name, bytes)} of the images that are made anew; the others stay as they are.

    `fields`: bytes, or (path, nbytes).
    """
    from PIL import UnidentifiedImageError

    found: dict[str, tuple[str, bytes]] = {}
    for name, value in fields.items():
        if not shrink.wants(name):
            continue
        path = str(value[0]) if isinstance(value, tuple) else f"field {name!r}"
        try:
            data = read_file(*value) if isinstance(value, tuple) else value
            small = shrink_image(bytes(data), shrink)
        except SourceError as error:
            return Failure(path, str(error), "")
        except UnidentifiedImageError:
            return Failure(path, "not a good image", "of no format that Pillow knows")
        except OSError as error:
            reason = (error.strerror.lower(), "") if error.strerror else ("not a good image", str(error))
            return Failure(path, *reason)
        except Exception as error:  # noqa: BLE001  from broken images, Pillow raises almost anything
            return Failure(path, "not a good image", f"{type(error).__name__}: {error}")
        if small is None:
            continue
        new = shrink.rename(name)
        if new != name and new in fields:
            detail = f"field {name!r} becomes {new!r}, which the sample has; say which images with --resize-fields"
            return Failure(path, "two files for one field", detail)
        found[name] = (new, small)
    return found


def read_file(path: str, nbytes: int) -> bytes:
    """Return the bytes of a file of this size. Raises SourceError where it is another, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise SourceError("not a regular file")
        if about.st_size != nbytes:
            raise SourceError("changed while it was packed")
        with open(fd, "rb", closefd=False) as file:
            data = file.read()
    finally:
        os.close(fd)
    if len(data) != nbytes:
        raise SourceError("changed while it was packed")
    return data


def shrink_image(data: bytes, shrink: Shrink) -> bytes | None:
    """Return a JPEG, upright and RGB, whose shorter side is at most `size`; None where the image is one already.

    Raises OSError for what is no image, and whatever else Pillow raises for one that is broken.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        short = min(width, height)
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        if short <= shrink.size:
            image.load()  # a broken one must not slip through because it is small
            if image.format in ("JPEG", "MPO") and turn is None:
                return None
            goal = image.size
        else:
            goal = (_scaled(width, short, shrink.size), _scaled(height, short, shrink.size))
            # The JPEG decoder can scale down by 2, 4, 8 as it goes; twice the goal is left for the good filter.
            image.draft("RGB", (2 * goal[0], 2 * goal[1]))
        profile = image.info.get("icc_profile") if image.mode == "RGB" else None
        small: Image.Image = image if image.mode == "RGB" else _to_rgb(image)
        if small.size != goal:
            small = small.resize(goal, Image.Resampling.LANCZOS)
        if turn is not None:
            small = small.transpose(Image.Transpose[turn])
        out = io.BytesIO()
        small.save(out, "JPEG", quality=shrink.quality, exif=b"", icc_profile=profile)
    return out.getvalue()


def _scaled(side: int, short: int, size: int) -> int:
    return (side * size + short // 2) // short


def _to_rgb(image: Any) -> Any:
    """Without alpha, on white; 16 bits become 8."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow would clip it at 255
        return image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        from PIL import Image

        whole = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")
