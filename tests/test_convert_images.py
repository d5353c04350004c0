"""Smaller images: their sides, their direction, their colours, and what is no image."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_helpers import go, image_bytes, jpeg, members, put, samples, shards
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from wdstools.convert.images import Failure, Shrink, shrink_fields, shrink_image
from wdstools.errors import SourceError

TO_20 = Shrink(20, 90)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def shrunk(data: bytes, shrink: Shrink = TO_20) -> Image.Image:
    small = shrink_image(data, shrink)
    assert small is not None
    image = opened(small)
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


def pattern(width: int = 64, height: int = 48) -> Image.Image:
    """Four quarters in four colours, so that every turn shows."""
    image = Image.new("RGB", (width, height), "white")
    for box, color in (((0, 0), (250, 20, 20)), ((width // 2, 0), (20, 250, 20)), ((0, height // 2), (20, 20, 250))):
        image.paste(color, (*box, box[0] + width // 2, box[1] + height // 2))
    return image


def near(a: Image.Image, b: Image.Image, most: float = 12) -> bool:
    if a.size != b.size:
        return False
    return float(np.abs(np.asarray(a, np.int16) - np.asarray(b.convert("RGB"), np.int16)).mean()) < most


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((40, 40), (20, 20)),
        ((80, 40), (40, 20)),
        ((40, 81), (20, 41)),
        ((21, 600), (20, 571)),
        ((3000, 2000), (30, 20)),
    ],
)
def test_the_shorter_side(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert shrunk(jpeg(*size)).size == wanted


@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60))
def test_sides_and_proportions(width: int, height: int, size: int) -> None:
    small = shrink_image(jpeg(width, height), Shrink(size, 50))
    if min(width, height) <= size:
        assert small is None  # never enlarged, and not compressed again
        return
    assert small is not None
    a, b = opened(small).size
    assert min(a, b) == size
    assert abs(a - width * size / min(width, height)) <= 0.5
    assert abs(b - height * size / min(width, height)) <= 0.5


def test_what_is_small_becomes_a_jpeg_but_no_larger() -> None:
    assert shrink_image(jpeg(20, 70), TO_20) is None
    small = shrunk(image_bytes(pattern(12, 30), "PNG"))
    assert near(small, pattern(12, 30), 25)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [20, 64])
def test_images_come_out_upright(orientation: int, size: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_bytes(pattern(), "JPEG", exif=exif, quality=95)
    if size == 64 and orientation == 1:
        assert shrink_image(data, Shrink(size, 90)) is None
        return
    found = shrunk(data, Shrink(size, 90))
    assert found.getexif().get(0x0112) is None  # or it would be turned twice
    upright = ImageOps.exif_transpose(opened(data))
    assert near(found, upright.resize(found.size, Image.Resampling.LANCZOS))
    assert (found.size[0] > found.size[1]) == (orientation < 5)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(form: str) -> None:
    assert near(shrunk(image_bytes(pattern(), form)), pattern().resize((27, 20), Image.Resampling.LANCZOS))


MODES = {
    "L": pattern().convert("L"),
    "1": pattern().convert("1"),
    "CMYK": pattern().convert("CMYK"),
    "P": pattern().quantize(8),
    "RGBA": pattern().convert("RGBA"),
    "LA": pattern().convert("LA"),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    image = MODES[mode]
    found = shrunk(image_bytes(image, "TIFF" if mode in ("CMYK",) else "PNG"))
    assert near(found, image.convert("RGB").resize((27, 20), Image.Resampling.LANCZOS), 20)


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert shrunk(image_bytes(image, "PNG")).getpixel((10, 10)) == (255, 255, 255)
    palette = Image.new("RGB", (40, 40), (9, 9, 9)).quantize(2)
    data = image_bytes(palette, "PNG", transparency=palette.getpixel((10, 10)))
    assert shrunk(data).getpixel((10, 10)) == (255, 255, 255)


def test_sixteen_bits_are_not_clipped() -> None:
    image = Image.fromarray(np.full((40, 40), 128 * 256, np.uint16))
    assert image.mode == "I;16"
    pixel = shrunk(image_bytes(image, "PNG")).getpixel((10, 10))
    assert all(abs(value - 128) <= 2 for value in pixel)  # type: ignore[union-attr]


def test_colour_profiles_stay() -> None:
    assert shrunk(jpeg(40, 40, icc_profile=b"profile")).info["icc_profile"] == b"profile"


def test_quality() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    data = image_bytes(noise, "PNG")
    sizes = [len(shrink_image(data, Shrink(60, quality)) or b"") for quality in (20, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_fields_and_their_names(tmp_path: Path) -> None:
    big, png = jpeg(40, 40), image_bytes(pattern(), "PNG")
    found = shrink_fields(TO_20, {"jpeg": big, "seg.png": png, "txt": b"no image", "cls": b"1"})
    assert not isinstance(found, Failure)
    assert {name: new for name, (new, _) in found.items()} == {"jpeg": "jpeg", "seg.png": "seg.jpg"}
    found = shrink_fields(Shrink(20, 90, frozenset({"jpeg"})), {"jpeg": big, "seg.png": png})
    assert not isinstance(found, Failure)
    assert list(found) == ["jpeg"]
    (tmp_path / "a.png").write_bytes(png)
    found = shrink_fields(TO_20, {"png": (str(tmp_path / "a.png"), len(png))})
    assert not isinstance(found, Failure)
    assert found["png"] == ("jpg", shrink_image(png, TO_20))


def test_two_images_for_one_field() -> None:
    found = shrink_fields(TO_20, {"jpg": jpeg(40, 40), "png": image_bytes(pattern(), "PNG")})
    assert isinstance(found, Failure)
    assert (found.reason, "--resize-fields" in found.detail) == ("two files for one field", True)


GOOD = jpeg(300, 300, (1, 2, 3))


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", GOOD[:200], GOOD[: len(GOOD) // 2], image_bytes(pattern(), "PNG")[:90], jpeg(10, 10)[:-40]],
    ids=["empty", "text", "header", "half", "png", "small"],
)
def test_broken_images(data: bytes) -> None:
    found = shrink_fields(TO_20, {"jpg": data})
    assert isinstance(found, Failure)
    assert (found.file, found.reason) == ("field 'jpg'", "not a good image")
    assert found.detail


def test_an_image_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found = shrink_fields(TO_20, {"jpg": jpeg(40, 40)})
    assert isinstance(found, Failure)
    assert "decompression bomb" in found.detail


def test_files_that_change(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(GOOD)
    for value, reason in (
        ((str(path), len(GOOD) + 1), "changed while it was packed"),
        ((str(tmp_path), 0), "not a regular file"),
        ((str(tmp_path / "gone.jpg"), 5), "no such file or directory"),
    ):
        found = shrink_fields(TO_20, {"jpg": value})
        assert isinstance(found, Failure)
        assert (found.file, found.reason) == (value[0], reason)


def test_a_conversion_with_smaller_images(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    files: dict[str, Any] = {f"n/{i}.jpg": jpeg(30 + i, 50, (i, 99, 99)) for i in range(12)}
    files |= {"n/small.png": image_bytes(pattern(9, 9), "PNG"), "n/small.txt": b"words"}
    put(tmp_path / "in", files)
    filters = list(warnings.filters)
    for workers in (1, 3):
        go(tmp_path / "in", tmp_path / f"out{workers}/x-%d.tar", resize=20, maxcount=5, workers=workers)
    assert list(warnings.filters) == filters
    assert [members(p) for p in shards(tmp_path / "out1")] == [members(p) for p in shards(tmp_path / "out3")]
    found = samples(tmp_path / "out1")
    assert len(found) == 13
    assert set(found["n/small"]) == {"jpg", "txt", "cls"}
    for i in range(12):
        assert opened(found[f"n/{i}"]["jpg"]).size[0] == 20


def test_broken_images_in_a_conversion(tmp_path: Path) -> None:
    put(tmp_path / "in", {"n/a.jpg": jpeg(40, 40), "n/b.jpg": b"broken", "n/c.jpg": jpeg(50, 40)})
    with pytest.raises(SourceError, match=r"n/b.jpg: not a good image: of no format"):
        go(tmp_path / "in", tmp_path / "out", resize=20)
    summary = go(tmp_path / "in", tmp_path / "out", resize=20, on_error="skip")
    assert sorted(samples(tmp_path / "out")) == ["n/a", "n/c"]
    assert summary.reasons() == {"not a good image": 1}
