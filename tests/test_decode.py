"""Decoders: what the writer encodes comes back, broken payloads are errors with names, and nothing unpickles."""

from __future__ import annotations

import builtins
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wdstools
from wdstools import ShardWriter
from wdstools.decode import make_decoder
from wdstools.encode import encode
from wdstools.errors import DecodeError, ShardError

Sample = dict[str, Any]
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def decoded(decode: Any, field: str, data: bytes) -> Any:
    """A field decoded alone, from bytes and from a view: both give the same."""
    decoder = make_decoder(decode)
    assert decoder is not None
    one, two = (decoder({"__key__": "k", "__url__": "u.tar", field: d})[field] for d in (data, memoryview(data)))
    if isinstance(one, np.ndarray):
        assert np.array_equal(one, two)
    elif not isinstance(one, dict) or field.endswith("json"):
        assert one == two
    return one


def image(mode: str = "RGB", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, kind)
    return stream.getvalue()


class Bomb:
    """Unpickled, it fails the test."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


# by the name of the field

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@given(values, st.text(), st.integers(), st.sampled_from(["<i4", "<f8", "u1", "?"]), st.lists(st.integers(0, 3)))
@settings(max_examples=50)
def test_what_was_encoded_comes_back(value: Any, text: str, number: int, kind: str, shape: list[int]) -> None:
    array = np.ones(shape[:4], kind)
    for field in ("json", "a.JSON".lower(), "jsn"):
        assert decoded("auto", field, json.dumps(value).encode()) == value
    text = text.encode("utf-8", "ignore").decode()
    assert decoded("auto", "txt", encode(text, "txt")) == text
    for field in ("cls", "cls2", "id", "x.count"):
        assert decoded("rgb", field, encode(number, field)) == number
    again = decoded("pil", "npy", encode(array, "npy"))
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)
    arrays = decoded("auto", "npz", encode({"a": array, "b": np.zeros(2)}, "npz"))
    assert list(arrays) == ["a", "b"]
    assert np.array_equal(arrays["a"], array)


@pytest.mark.parametrize("field", ["png", "jpg", "seg.png", "webp", "img"])
def test_images(field: str) -> None:
    for decode in ("auto", "pil", {"png": "pil", "jpg": "pil", "webp": "pil", "img": "pil"}):
        got = decoded(decode, field, image())
        assert isinstance(got, Image.Image)
        assert (got.mode, got.size) == ("RGB", (7, 5))
        assert np.array_equal(np.asarray(got), PIXELS)
    array = decoded("rgb", field, image())
    assert array.dtype == np.uint8
    assert np.array_equal(array, PIXELS)
    assert array.flags.writeable
    for mode in ("L", "P", "RGBA", "1"):
        assert decoded("rgb", field, image(mode)).shape == (5, 7, 3)


def test_other_fields_stay_as_they_are() -> None:
    sample: Sample = {
        "__key__": "k",
        "__url__": "u",
        "mp4": b"1",
        "pyd": b"2",
        "pickle": b"3",
        "bin": b"4",
        "pth": b"5",
    }
    for decode in ("auto", "pil", "rgb", {}, {"cls": "cls"}):
        decoder = make_decoder(decode)
        assert decoder is not None
        assert decoder(dict(sample)) == sample


def test_a_mapping() -> None:
    decode = {"seg.png": "raw", "png": "rgb", "bin": len, "JSON": "json"}
    decoder = make_decoder(decode)
    assert decoder is not None
    got = decoder({"__key__": "k", "png": image(), "seg.png": b"x", "a.bin": b"123", "json": b"[1]", "cls": b"1"})
    assert isinstance(got.pop("png"), np.ndarray)
    assert got == {"__key__": "k", "seg.png": b"x", "a.bin": 3, "json": [1], "cls": b"1"}
    for wrong in ("pickle", "tiff", ""):
        with pytest.raises(ValueError, match="no decoder"):
            make_decoder({"png": wrong})
    for wrong in ("PIL", "pickle", "torch", ""):
        with pytest.raises(ValueError, match="decode="):
            make_decoder(wrong)
    assert make_decoder(None) is None


# what is broken


@pytest.mark.parametrize(
    ("field", "data"),
    [("json", b"{"), ("txt", b"\xff"), ("cls", b"x"), ("npy", b"\x93NUMPY"), ("npz", b"PK"), ("png", image()[:50])]
    + [("jpg", b""), ("json", b""), ("cls", b"")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_broken_payloads(field: str, data: bytes) -> None:
    with pytest.raises(DecodeError, match=f"u.tar: field '{field}' of sample 'k' cannot be decoded: .") as caught:
        decoded("auto", field, data)
    error = caught.value
    assert error.__cause__ is not None
    assert (error.key, error.url, error.field) == ("k", "u.tar", field)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.key) == (DecodeError, str(error), "k")
    assert isinstance(error, ValueError)
    assert not isinstance(error, ShardError)


def test_nothing_unpickles() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, a=np.array([Bomb()], dtype=object))
    for field, data in (("npy", stream.getvalue()), ("npz", zipped.getvalue()), ("npy", pickle.dumps(Bomb()))):
        for decode in ("auto", {"npy": "npy", "npz": "npz"}):
            with pytest.raises(DecodeError, match="cannot be decoded"):
                decoded(decode, field, data)
    for field in ("pyd", "pickle", "pth", "pt", "pkl", "x.pth", "ten", "tb"):
        data = pickle.dumps(Bomb())
        for decode in ("auto", "pil", "rgb"):
            assert decoded(decode, field, data) == data
    assert decoded({"pkl": pickle.loads}, "pkl", pickle.dumps([1])) == [1], "unless it is asked to"


def test_a_bomb_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DecodeError, match="decompression bomb"):
        decoded("auto", "png", image())


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    true = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == "PIL":
            raise ModuleNotFoundError(name)
        return true(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"wdstools\[images\]"):
        decoded("auto", "png", b"")
    assert decoded("auto", "cls", b"3") == 3


# in a Dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=5) as sink:
        for i in range(12):
            sink.write({"__key__": f"k{i:03d}", "png": PIXELS + i, "cls": i, "json": {"i": i}, "bin": b"%d" % i})
    return tmp_path


@pytest.mark.parametrize("views", [False, True])
def test_every_way_of_asking_decodes(folder: Path, views: bool) -> None:
    whole = wdstools.open(folder, decode="rgb", views=views)
    for got in (whole, pickle.loads(pickle.dumps(whole))):
        every = [*got, *got.fetch(range(12)), *(got[i] for i in range(12)), *(got[f"k{i:03d}"] for i in range(12))]
        every += [*got[:], *got.where("true").__getitems__(range(12)), *got.sort_by("key")]
        for n, sample in enumerate(every):
            i = n % 12
            assert (sample["cls"], sample["json"], bytes(sample["bin"])) == (i, {"i": i}, b"%d" % i)
            assert np.array_equal(sample["png"], PIXELS + i)
            assert (sample["__key__"], sample["__url__"][-4:]) == (f"k{i:03d}", ".tar")
    with pytest.raises(ValueError, match="decode="):
        wdstools.open(folder, decode="PIL")


def test_webdatasets_decoder_if_asked(folder: Path) -> None:
    theirs = webdataset.autodecode.Decoder([webdataset.autodecode.imagehandler("rgb8")])
    want = list(wdstools.open(folder, decode="rgb"))
    for got, sample in zip(wdstools.open(folder, decode=theirs), want, strict=True):
        assert np.array_equal(got.pop("png"), sample.pop("png"))
        assert got == sample


def test_a_broken_payload_does_not_blame_the_index(folder: Path) -> None:
    got = wdstools.open(folder, decode={"bin": "json", "cls": lambda data: 1 // int(data)})
    assert got[1]["bin"] == 1
    for ask in (lambda: got[0], lambda: got.fetch([1, 0]), lambda: list(got), lambda: got["k000"]):
        with pytest.raises(DecodeError, match=r"s-000\.tar: field 'cls' of sample 'k000'.*division"):
            ask()
