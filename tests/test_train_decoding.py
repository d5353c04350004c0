"""Decoders of the training program: against Pillow at full size, against each other, and on what is no picture."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")

from bench.train.decoding import Draws, Prepare, centre_crop, collate, npy, random_crop  # noqa: E402
from tests.train_data import npy as saved  # noqa: E402
from tests.train_data import picture  # noqa: E402

DECODERS = ["pillow", "simplejpeg"]


@pytest.fixture(autouse=True)
def decoders(request: pytest.FixtureRequest) -> None:
    if "simplejpeg" in request.node.name:
        pytest.importorskip("simplejpeg")


def sample(data: bytes, key: str = "k") -> dict[str, Any]:
    return {"__key__": key, "jpg": data, "cls": b"5"}


def image(found: dict[str, Any]) -> Any:
    return found["image"].astype(np.int32)


def naive(data: bytes, size: int, box: Any, flip: bool, mode: str = "RGB") -> Any:
    """The whole picture decoded at full size, cropped, and resized by Pillow."""
    left, top, right, bottom = map(round, box)
    with Image.open(io.BytesIO(data)) as opened:
        made = opened.convert(mode).crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(made).reshape(size, size, -1).transpose(2, 0, 1).astype(np.int32)
    return array[:, :, ::-1] if flip else array


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("side", [(300, 200), (97, 301), (40, 30), (1024, 768)])
@pytest.mark.parametrize("view", [False, True])
def test_the_middle_of_a_picture(decoder: str, side: tuple[int, int], view: bool) -> None:
    data = picture(1, side)
    found = Prepare(decoder, size=64)(sample(memoryview(data) if view else data))  # type: ignore[arg-type]
    assert found["label"] == 5
    assert found["key"] == "k"
    assert found["image"].dtype == np.uint8
    assert found["image"].shape == (3, 64, 64)
    difference = np.abs(image(found) - naive(data, 64, centre_crop(*side), False))
    if min(side) >= 2 * 64 * 8 / 7:  # decoded at a smaller scale: by part of a pixel another box
        assert difference.mean() < 4
    else:
        assert difference.max() <= 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_random_crops_are_those_of_the_draws(decoder: str) -> None:
    data = picture(2, (400, 300))
    one = Prepare(decoder, size=48, augment=True, seed=9)
    flips = 0
    for epoch in range(12):
        one.set_epoch(epoch)
        draws = Draws(9, epoch, "k")
        box, flip = random_crop(400, 300, draws), draws() < 0.5
        flips += flip
        assert np.abs(image(one(sample(data))) - naive(data, 48, box, flip)).mean() < 4
    assert 0 < flips < 12


def test_augmentation_is_a_function_of_seed_epoch_and_key() -> None:
    data = picture(3, (200, 150))

    def made(seed: int, epoch: int, key: str) -> bytes:
        one = Prepare(size=32, augment=True, seed=seed)
        one.set_epoch(epoch)
        for other in ("a", "b"):
            one(sample(data, other))  # what came before does not matter
        return bytes(one(sample(data, key))["image"].tobytes())

    assert made(1, 2, "k") == made(1, 2, "k")
    assert len({made(1, 2, "k"), made(2, 2, "k"), made(1, 3, "k"), made(1, 2, "l")}) == 4
    # the order of these is a part of what a seed means: a state of an older version would go on with others
    assert [round(x, 6) for x in (Draws(1, 2, "k")(), Draws(0, 0, "")())] == [0.862145, 0.575069]


def test_draws_are_uniform() -> None:
    draws = Draws(0, 0, "key")
    values = np.array([draws() for _ in range(4000)])
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 1000))
def test_random_crops_lie_in_the_picture(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_crop(width, height, Draws(seed, 0, ""))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if min(width, height) > 100 and max(width, height) / min(width, height) < 2:
        assert 0.079 * width * height < (right - left) * (bottom - top)
        assert 0.7 < (right - left) / (bottom - top) < 1.4


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours(decoder: str, kind: str, mode: str, channels: int) -> None:
    if (kind, mode) == ("PNG", "CMYK"):
        kind, mode = "PNG", "P"
    with Image.open(io.BytesIO(picture(4, (90, 80)))) as opened:
        out = io.BytesIO()
        opened.convert(mode).save(out, kind)
    found = Prepare(decoder, size=64, channels=channels)(sample(out.getvalue()))
    expected = naive(out.getvalue(), 64, centre_crop(90, 80), False, "L" if channels == 1 else "RGB")
    assert found["image"].shape == (channels, 64, 64)
    assert np.abs(image(found) - expected).mean() < 3


def test_a_picture_of_the_size_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    found = Prepare(size=28, channels=1)(sample(out.getvalue()))
    np.testing.assert_array_equal(found["image"][0], pixels)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff\xe0", picture(5)[:300], picture(5)[:-40]])
def test_what_is_no_picture_is_an_error(decoder: str, data: bytes) -> None:
    with pytest.raises((ValueError, OSError)):
        Prepare(decoder, size=32)(sample(data))


@pytest.mark.parametrize("missing", ["jpg", "cls"])
def test_a_missing_field_is_an_error(missing: str) -> None:
    given = sample(picture(6))
    del given[missing]
    setting = {"jpg": "data.image", "cls": "data.label"}[missing]
    with pytest.raises(ValueError, match=f"no field '{missing}' in sample 'k', which has (jpg|cls): set {setting}"):
        Prepare(size=32)(given)


def test_labels_that_are_no_numbers_are_errors() -> None:
    with pytest.raises(ValueError, match="cat"):
        Prepare(size=32)(sample(picture(6)) | {"cls": b"cat"})


def test_raw_arrays() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    one = Prepare("raw", size=8)
    for data in (saved(array), saved(np.asfortranarray(array))):
        np.testing.assert_array_equal(one(sample(data))["image"], array)
        np.testing.assert_array_equal(one(sample(memoryview(data)))["image"], array)  # type: ignore[arg-type]
    for wrong in (array[:1], array.astype(np.int16), array[0], np.zeros((3, 9, 8), np.uint8)):
        with pytest.raises(ValueError, match="belongs"):
            one(sample(saved(wrong)))


@pytest.mark.parametrize(
    "data", [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(100), saved(np.zeros(1000, np.uint8))[:-1]]
)
def test_what_is_no_npy_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        npy(data)


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="unpickled"):
        npy(saved(np.array([{}, 1], dtype=object)))


@settings(max_examples=60)
@given(st.data())
def test_npy_is_what_numpy_reads(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
    dtype = data.draw(st.sampled_from(["u1", "<f4", ">i2", "?", "<c8"]))
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    found = npy(saved(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("raw", [False, True])
def test_batches(raw: bool) -> None:
    arrays = [np.random.default_rng(i).integers(0, 256, (3, 8, 8), dtype=np.uint8) for i in range(4)]
    images = arrays if raw else [np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1) for a in arrays]
    for one in images:
        one.flags.writeable = False
    batch = collate([{"image": one, "label": i, "key": str(i)} for i, one in enumerate(images)])
    np.testing.assert_array_equal(batch["image"].numpy(), np.stack(arrays))
    last = batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert last is not raw
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["key"] == ["0", "1", "2", "3"]
    assert math.prod(batch["image"].shape) == 4 * 3 * 8 * 8


def test_encoded_pictures_wait_for_the_device() -> None:
    data = [picture(7), picture(8, (50, 70))]
    batch = collate([Prepare("nvjpeg", size=16)(sample(one, str(i))) for i, one in enumerate(data)])
    assert [bytes(image.numpy()) for image in batch["image"]] == data
    assert batch["box"].shape == (2, 5)
    torch.testing.assert_close(batch["box"][1], torch.tensor([*centre_crop(50, 70, 1), 0.0]))
