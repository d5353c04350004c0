"""Values -> bytes, beside webdataset's own writer; what cannot be encoded, and what is said of it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.writer import default_handlers, encode_based_on_extension1

from wdstools.encode import encode, make_encoder
from wdstools.errors import EncodeError

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)
RGB = np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)


def theirs(value: Any, field: str) -> bytes:
    return bytes(encode_based_on_extension1(value, field, default_handlers))


SAME: dict[str, list[tuple[str, Any]]] = {
    "numbers": [
        (field, value)
        for field in ["cls", "cls2", "class", "count", "index", "inx", "id"]
        for value in (0, -3, 10**30, 2.5, True, None, np.int64(7), np.float32(0.5))
    ],
    "text": [(f, v) for f in ["txt", "text", "transcript", "html", "htm"] for v in ("", "grün", "a\nb")],
    "json": [
        (f, v)
        for f in ("json", "jsn")
        for v in ({"a": [1, None, 2.5, "ü"]}, [], None, 3, True, {"b": 1, "a": 2}, float("inf"))
    ],
    "npy": [("npy", a) for a in (np.arange(6).reshape(2, 3), np.float32(1.5) * np.ones((0, 3), "f4"), GREY.T, RGB > 9)],
    "npz": [("npz", {"a": np.arange(5), "b": RGB}), ("npz", {})],
    "tenbin": [
        (f, v)
        for f in ("ten", "tenbin", "tb")
        for v in (
            np.arange(6, dtype="i4").reshape(2, 3),
            [np.ones(3, "f2"), np.zeros((2, 2), "f8")],
            np.arange(64, dtype="u1"),
            np.zeros((0, 2), "i8"),
            [],
        )
    ],
    "images": [
        (f, v)
        for f in ["jpg", "jpeg", "img", "image", "png", "ppm", "tif", "tiff"]
        for v in (GREY, RGB, RGB / np.float32(255), GREY / 255.0, Image.fromarray(RGB), Image.fromarray(GREY))
    ],
    "deep images": [("png", GREY.astype(np.uint16) * 200), ("tif", GREY.astype(np.int32)), ("png", GREY > 50)],
    "whatever field": [(f, v) for f in ("cls", "jpg", "x", "npy", "seg.png") for v in (b"", b"\xff\0raw", "grün")],
    "last part": [("seg.png", RGB), ("a.b.json", {"a": 1}), ("x.cls", 3), ("JSON", [1]), ("y.JPG", RGB)],
}


@pytest.mark.parametrize("what", SAME)
def test_same_bytes_as_webdataset(what: str) -> None:
    for field, value in SAME[what]:
        assert encode(value, field) == theirs(value, field), (field, value)


def test_the_table_holds_every_handler_of_webdataset() -> None:
    tested = {field.rpartition(".")[2] for cases in SAME.values() for field, _ in cases}
    elsewhere = {"pyd", "pickle", "pth", "mp", "msgpack", "msg", "cbor", "pbm", "pgm"}
    assert set(default_handlers) <= tested | elsewhere


@pytest.mark.parametrize(("field", "mode"), [("pbm", "1"), ("pgm", "L"), ("ppm", "RGB")])
def test_netpbm(field: str, mode: str) -> None:
    """webdataset 1.0.2 fails at pbm and pgm: pillow knows all three as PPM."""
    image = Image.fromarray(RGB).convert(mode)
    got = Image.open(io.BytesIO(encode(image, field)))
    assert got.mode == mode
    assert got.tobytes() == image.tobytes()


def test_pickles_only_on_request() -> None:
    value = {"a": (1, 2)}
    for field in ("pyd", "pickle", "pth"):
        with pytest.raises(EncodeError, match=rf"'{field}'.*allow_pickle=True"):
            encode(value, field)
    assert encode(value, "pyd", allow_pickle=True) == theirs(value, "pyd") == pickle.dumps(value)
    assert encode(value, "pickle", allow_pickle=True) == theirs(value, "pickle")
    with pytest.raises(EncodeError, match="function"):
        encode(lambda: 0, "pyd", allow_pickle=True)


def test_pth() -> None:
    torch = pytest.importorskip("torch")
    got = torch.load(io.BytesIO(encode(torch.arange(3), "pth", allow_pickle=True)))
    assert got.tolist() == [0, 1, 2]


def test_objects_in_arrays_would_be_pickles() -> None:
    array = np.array([{}, None], dtype=object)
    for field, value in (("npy", array), ("npz", {"a": array})):
        with pytest.raises(EncodeError, match="cannot encode"):
            encode(value, field)


def test_gz() -> None:
    for field, value in (("json.gz", {"a": 1}), ("txt.gz", "text"), ("x.gz", b"bytes"), ("npy.gz", GREY)):
        got = encode(value, field)
        assert gzip.decompress(got) == gzip.decompress(theirs(value, field)) == encode(value, field[:-3])
        assert got[4:8] == bytes(4), "no time in it: the same value gives the same bytes"


@pytest.mark.parametrize("field", ["mp", "msgpack", "msg", "cbor"])
def test_packages_that_may_be_missing(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("msgpack", "cbor", "cbor2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EncodeError, match=rf"'{field}': cannot encode a dict.*(msgpack|cbor)"):
        encode({}, field)
    fake = SimpleNamespace(packb=lambda x: json.dumps(x).encode(), dumps=lambda x: json.dumps(x).encode())
    for name in ("msgpack", "cbor"):
        monkeypatch.setitem(sys.modules, name, fake)
    assert encode({"a": 1}, field) == theirs({"a": 1}, field) == b'{"a": 1}'


REFUSED: list[tuple[str, Any, str]] = [
    ("txt", 3, "cannot encode a int: wants a str"),
    ("json", {1, 2}, "cannot encode a set"),
    ("json", np.int64(3), "int64"),
    ("xyz", 3, "no encoder for 'xyz'"),
    ("", 3, "no encoder for ''"),
    ("xyz.gz", 3, "no encoder for 'xyz'"),
    ("npz", [1], "cannot encode a list"),
    ("ten", np.array(["a"]), "tenbin has no"),
    ("ten", np.zeros((1,) * 10), "rank 10"),
    ("ten", np.array([1 + 2j]), "tenbin has no"),
    ("ten", np.arange(3, dtype=np.uint32), "tenbin has no uint32"),
    ("png", np.zeros((2, 2, 4), np.uint8), r"\(h, w, 3\)"),
    ("png", np.zeros(4, np.uint8), r"\(h, w\)"),
    ("png", GREY / 100.0, r"must lie in \[0, 1\]"),
    ("png", GREY / -255.0, r"must lie in \[0, 1\]"),
    ("png", np.full((2, 2), np.nan), r"must lie in \[0, 1\]"),
    ("jpg", ["text"], "cannot encode a list"),
    ("jpg", None, "cannot encode a NoneType"),
    ("jpg", GREY.astype(np.uint16), "cannot encode a ndarray"),
    ("jpg", Image.new("RGBA", (2, 2)), "cannot encode a Image: .*RGBA"),
    ("txt", "\udc80", "cannot encode a str"),
]


@pytest.mark.parametrize(("field", "value", "text"), REFUSED)
def test_refused(field: str, value: Any, text: str) -> None:
    with pytest.raises(EncodeError, match=text) as caught:
        encode(value, field)
    assert str(caught.value).startswith(f"field {field!r}: ")
    assert isinstance(caught.value, TypeError)


def test_wider_than_webdataset() -> None:
    """What webdataset refuses, and has but one meaning."""
    one_channel = encode(GREY[:, :, None], "png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(one_channel))), GREY)
    assert np.array_equal(np.load(io.BytesIO(encode([[1, 2]], "npy"))), [[1, 2]])
    assert encode(bytearray(b"a"), "x") == encode(memoryview(b"a"), "x") == b"a"
    assert encode(np.float16(GREY / 255.0), "png")[1:4] == b"PNG"


def test_custom_encoders() -> None:
    encoder = make_encoder(encoders={"cls": lambda v: b"<%d>" % v, "xyz": lambda v: v})
    assert encoder(3, "cls") == b"<3>"
    assert encoder(3, "a.cls") == b"<3>"
    assert gzip.decompress(encoder(3, "cls.gz")) == b"<3>"
    assert encoder("text", "cls") == b"text", "text and bytes are what they are"
    assert encoder({}, "json") == b"{}"
    for field in ("xyz", "xyz.gz"):
        with pytest.raises(EncodeError, match=rf"'{field}'.*gave a list, not bytes"):
            encoder([1], field)


def test_what_an_encoder_raises_names_the_field() -> None:
    def broken(value: Any) -> bytes:
        raise KeyError("nowhere")

    with pytest.raises(EncodeError, match="'cls': cannot encode a int: 'nowhere'") as caught:
        encode(1, "cls", encoders={"cls": broken})
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyboardInterrupt):
        encode(1, "cls", encoders={"cls": lambda _: (_ for _ in ()).throw(KeyboardInterrupt)})


def test_webdataset_decodes_what_we_encode() -> None:
    decode = webdataset.autodecode.Decoder([webdataset.autodecode.ImageHandler("rgb8")])
    values = {"cls": 7, "json": {"a": [1]}, "txt": "grün", "npy": GREY, "png": RGB, "ten": np.ones(3, "f4"), "id": -1}
    got = decode({"__key__": "a", "__url__": "u", **{f: encode(v, f) for f, v in values.items()}})
    assert (got["cls"], got["json"], got["txt"], got["id"]) == (7, {"a": [1]}, "grün", -1)
    assert np.array_equal(got["npy"], GREY)
    assert np.array_equal(got["png"], RGB)
    assert np.array_equal(got["ten"][0], np.ones(3, "f4"))
