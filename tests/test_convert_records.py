"""Sources in the formats of other tools: against what their own libraries wrote, and against damage."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import convert_golden
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_helpers import everything, go, image_bytes, keys, run, samples, shards
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wdstools import _core
from wdstools.convert import litjson, tfrecord
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.convert.records import clean, fields_of, sniff
from wdstools.errors import QueryError, SourceError


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_golden.unpack(tmp_path_factory.mktemp("golden"))


def png(i: int) -> bytes:
    return image_bytes(Image.new("RGB", (2, 2), (i * 20 % 255, 3, 9)), "PNG")


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data))).tolist()


def npy(data: bytes) -> Any:
    return np.load(io.BytesIO(data))


# what the libraries wrote


@pytest.mark.parametrize("name", ["mds", "mdsz"])
def test_mds(golden: Path, tmp_path: Path, name: str) -> None:
    go(golden / name, tmp_path / "out")
    found = samples(tmp_path / "out")
    assert list(found) == ["000000", "000001", "000002"]
    for i, sample in enumerate(found.values()):
        assert sample["cls"] == str(i - 1).encode()
        assert sample["raw"] == b"\0\1%d" % i
        assert pixels(sample["image.png"]) == [[[i * 20, 3, 9]] * 2] * 2
        assert pixels(sample["pil.png"]) == [[[i] * 3] * 2]
        assert npy(sample["arr.npy"]).tolist() == list(range(i + 1))
        assert (npy(sample["fix.npy"]).dtype, npy(sample["fix.npy"]).tolist()) == (np.int16, [[-i, -i]] * 2)
        assert npy(sample["dt.npy"]).tolist() == [[1.0] * (i + 1)]
        assert json.loads(sample["json"]) == {
            "u8": i, "f": i / 2, "name": f"n{i}é", "meta": {"a": i}, "si": i * 10,
        }  # fmt: skip
        assert len(sample) == 8


def test_litdata(golden: Path, tmp_path: Path) -> None:
    go(golden / "lit", tmp_path / "out")
    for i, sample in enumerate(samples(tmp_path / "out").values()):
        assert sample["cls"] == str(i).encode()
        assert pixels(sample["image.png"]) == [[[i * 20, 3, 9]] * 2] * 2
        assert npy(sample["t.npy"]).tolist() == [[float(i)] * 3] * 2
        assert npy(sample["v.npy"]).tolist() == list(range(i + 1))
        assert (npy(sample["n.npy"]).dtype, npy(sample["n.npy"]).tolist()) == (np.int16, [[i, i]])
        assert json.loads(sample["json"]) == {
            "ok": i % 2 == 0, "name": f"n{i}", "x": i / 2, "ints": [1, 2],
            "meta.a": ["x", "y"], "meta.d": [{"p": 1, "q": None}], "meta.m": [1, "z"],
        }  # fmt: skip
    assert i == 2


def test_tfrecord(golden: Path, tmp_path: Path) -> None:
    for name in ("a.tfrecord", "a.tfrecord.gz"):
        if name.endswith("gz"):
            (golden / name).write_bytes(gzip.compress((golden / "a.tfrecord").read_bytes()))
        go(golden / name, tmp_path / f"out{len(name)}")
        found = samples(tmp_path / f"out{len(name)}")
        assert list(found) == ["000000000", "000000001", "000000002"]
        for i, sample in enumerate(found.values()):
            assert sample["cls"] == str(i - 1).encode()
            assert pixels(sample["png"]) == [[[i * 20, 3, 9]] * 2] * 2
            assert json.loads(sample["json"]) == {"name": f"n{i}", "box": [0.5 * i, 1.0], "ids": [i, -i, 1 << 40]}


@pytest.mark.parametrize("name", ["hf.parquet", "hfdisk"])
def test_hugging_face(golden: Path, tmp_path: Path, name: str) -> None:
    go(golden / name, tmp_path / "out/x-%06d.tar")
    for i, sample in enumerate(samples(tmp_path / "out").values()):
        assert pixels(sample.pop("png")) == [[[i * 20, 3, 9]] * 2] * 2
        assert sample == {"cls": str(i % 2).encode(), "txt": b"abc"[i : i + 1]}
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"cat": 0, "dog": 1}


# parquet


def table(n: int = 10) -> pa.Table:
    rows = [
        {"key": f"k/{i}", "image": {"bytes": png(i), "path": None}, "mask": b"\x93NUMPY" + bytes([i]), "blob": b"?",
         "score": i / 2, "label": i % 3, "day": None if i % 2 else f"d{i}"}
        for i in range(n)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_parquet_against_a_naive_reading(tmp_path: Path) -> None:
    pq.write_table(table(200), tmp_path / "a.parquet", row_group_size=70)
    go(tmp_path / "a.parquet", tmp_path / "out", maxcount=60)
    assert samples(tmp_path / "out") == {
        f"k/{i}": {
            "image.png": png(i), "mask.npy": b"\x93NUMPY" + bytes([i]), "blob": b"?", "cls": b"%d" % (i % 3),
            "json": json.dumps({"score": i / 2, **({} if i % 2 else {"day": f"d{i}"})}).encode(),
        }
        for i in range(200)
    }  # fmt: skip
    assert keys(tmp_path / "out") == [f"k/{i}" for i in range(200)]


def test_columns_and_conditions(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    options: dict[str, Any] = {
        "where": "label = 1 and score >= 2", "rename": (("image.png", "png"),), "drop": frozenset({"mask", "day"}),
        "inline": ("score",), "key_column": "score",
    }  # fmt: skip
    with pytest.raises(SourceError, match="the key has a dot"):
        go(tmp_path / "a.parquet", tmp_path / "bad", **options)
    options["key_column"] = None
    go(tmp_path / "a.parquet", tmp_path / "out", **options)
    assert samples(tmp_path / "out") == {
        f"k/{i}": {"png": png(i), "blob": b"?", "cls": b"1", "score": str(i / 2).encode()} for i in (4, 7)
    }
    with pytest.raises(QueryError, match="lable"):
        go(tmp_path / "a.parquet", tmp_path / "no", where="lable = 1")
    go(tmp_path / "a.parquet", tmp_path / "kept", keep=frozenset({"cls"}), keys="number", where="label = 1")
    assert samples(tmp_path / "kept") == {f"{i:06d}": {"cls": b"1"} for i in (1, 4, 7)}  # numbers of the rows


def test_a_table_of_paths_is_still_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    pq.write_table(pa.table({"path": ["a.txt"], "n": [7]}), tmp_path / "m.parquet")
    go(tmp_path / "m.parquet", tmp_path / "out")
    assert samples(tmp_path / "out") == {"a": {"txt": b"hello", "json": b'{"n": 7}'}}


def test_a_condition_on_a_manifest(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"t{i}")
    (tmp_path / "m.csv").write_text("path,size\n" + "".join(f"{i}.txt,{i}\n" for i in range(4)))
    go(tmp_path / "m.csv", tmp_path / "out", where="size > 1", rename=(("txt", "text"),))
    assert samples(tmp_path / "out") == {str(i): {"text": b"t%d" % i, "json": b'{"size": %d}' % i} for i in (2, 3)}


def test_several_files_and_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "ds/data").mkdir(parents=True, exist_ok=True)
        for n in range(2):
            name = f"{split}-{n:05d}-of-00002.parquet"
            part = table().slice(5 * n, 5)
            pq.write_table(part, tmp_path / "ds/data" / name)
    with pytest.raises(SourceError, match=r"has several splits.*data/test\*.*data/train\*"):
        go(tmp_path / "ds", tmp_path / "out")
    go(f"{tmp_path}/ds/data/train*", tmp_path / "out")
    assert keys(tmp_path / "out") == [f"k/{i}" for i in range(10)]
    (tmp_path / "ds/data/test-00000-of-00002.parquet").unlink()
    (tmp_path / "ds/data/test-00001-of-00002.parquet").unlink()
    go(tmp_path / "ds", tmp_path / "all")
    assert keys(tmp_path / "all") == [f"k/{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": None}, "no key in its row"),
        ({"key": "a.b"}, "the key has a dot"),
        ({"key": "../b"}, "a key that leaves its folder"),
        ({"image": None, "mask": None, "blob": None, "label": None, "score": None}, "no field in its row"),
    ],
)
def test_bad_rows(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    rows = table(5).drop_columns(["day"]).to_pylist()
    rows[2] |= change
    schema = table(5).drop_columns(["day"]).schema
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=rf"a\.parquet: row 3: {reason}"):
        go(tmp_path / "a.parquet", tmp_path / "out")
    summary = go(tmp_path / "a.parquet", tmp_path / "skip", on_error="skip")
    assert [item.reason for item in summary.skipped] == [reason]
    assert keys(tmp_path / "skip") == ["k/0", "k/1", "k/3", "k/4"]


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    pq.write_table(table(40), tmp_path / "a.parquet")
    options: dict[str, Any] = {"maxcount": 7, "where": "label < 2"}
    go(tmp_path / "a.parquet", tmp_path / "whole/x-%06d.tar", **options)
    count = 0

    def stop(n: int, nbytes: int) -> None:
        nonlocal count
        count += n
        if count > 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(tmp_path / "a.parquet"), f"{tmp_path}/out/x-%06d.tar", Options(**options), progress=stop)
    assert len(shards(tmp_path / "out")) == 2
    assert go(tmp_path / "a.parquet", tmp_path / "out/x-%06d.tar", **options).kept == 2
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_streams_are_in_their_order(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    for option in ({"shuffle": True}, {"splits": (("a", 0.5), ("b", 0.5))}):
        with pytest.raises(SourceError, match="needs samples that can be read in any order"):
            go(tmp_path / "a.parquet", tmp_path / "out", **option)


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(SourceError, match="not a parquet file"):
        go(tmp_path / "a.parquet", tmp_path / "out")


# fields


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"image": b"\xff\xd8\xff.."}, {"jpg"}),
        ({"jpg": b"nothing known"}, {"jpg"}),
        ({"Image Left": b"\xff\xd8\xff", "right": b"GIF8"}, {"image_left.jpg", "right.gif"}),
        ({"x": b"\0\1", "label": 3, "caption": "hi", "text": "there"}, {"x", "cls", "txt", "json"}),
        ({"a/b": b"RIFF....WAVEfmt"}, {"wav"}),
        ({"__index__": b"\0", "json": {"a": 1}, "n": 2}, {"index", "json"}),
        ({"a": np.arange(3)}, {"npy"}),
    ],
)
def test_names_of_fields(values: dict[str, Any], wanted: set[str]) -> None:
    assert set(fields_of(values, None, Options())) == wanted


@given(st.text(max_size=12))
def test_clean_names_are_good(name: str) -> None:
    assert clean(name)[:1] != "_"
    assert "/" not in clean(name)
    assert "\0" not in clean(name)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_sniffed_formats(form: str) -> None:
    short = {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower())
    assert sniff(image_bytes(Image.new("RGB", (3, 3)), form)) == short


# damage


def test_a_damaged_tfrecord(golden: Path, tmp_path: Path) -> None:
    data = (golden / "a.tfrecord").read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    for place in [*range(0, 16, 3), 12 + size // 2, 12 + size + 1, len(data) - 1]:
        bad = bytearray(data)
        bad[place] ^= 4
        (tmp_path / "b.tfrecord").write_bytes(bad)
        with pytest.raises(SourceError, match=r"b\.tfrecord"):
            go(tmp_path / "b.tfrecord", tmp_path / f"out{place}")
    bad = bytearray(data)
    bad[20] ^= 4  # in the first record: the others are still good
    (tmp_path / "c.tfrecord").write_bytes(bad)
    summary = go(tmp_path / "c.tfrecord", tmp_path / "skip", on_error="skip")
    assert [(item.reason, item.file.rpartition(": ")[2]) for item in summary.skipped] == [
        ("a damaged record", "record 1 at byte 0")
    ]
    assert keys(tmp_path / "skip") == ["000000001", "000000002"]
    for cut in (5, 14, len(data) - 3):
        (tmp_path / "d.tfrecord").write_bytes(data[:cut])
        with pytest.raises(SourceError, match="truncated"):
            go(tmp_path / "d.tfrecord", tmp_path / f"cut{cut}", on_error="skip")


@given(st.binary(max_size=300))
def test_parsing_anything(data: bytes) -> None:
    for parse in (tfrecord.parse_example, litjson.loads):
        try:
            parse(data)
        except (ValueError, struct.error):
            continue


def test_crc32c() -> None:
    assert _core.crc32c(b"") == 0
    assert _core.crc32c(b"123456789") == 0xE3069283  # the check value of every catalogue
    assert _core.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert _core.crc32c(bytes(range(32))) == 0x46DD794E


def copy(source: Path, to: Path) -> Path:
    to.mkdir()
    for name, data in everything(source).items():
        (to / name).write_bytes(data)
    return to


@pytest.mark.parametrize("name", ["mds", "lit"])
def test_damaged_chunks(golden: Path, tmp_path: Path, name: str) -> None:
    chunk = {"mds": "shard.00001.mds", "lit": "chunk-0-0.bin"}[name]
    data = (golden / name / chunk).read_bytes()
    attacks = {
        "cut": data[:-1], "no offsets": data[:6], "none": b"", "count": struct.pack("<I", 1 << 30) + data[4:],
        "offset": data[:8] + struct.pack("<I", 1 << 30) + data[12:],
    }  # fmt: skip
    for number, (what, bad) in enumerate(attacks.items()):
        folder = copy(golden / name, tmp_path / f"{number}")
        (folder / chunk).write_bytes(bad)
        with pytest.raises(SourceError, match=chunk):
            go(folder, tmp_path / f"out{number}", on_error="skip")
        assert not shards(tmp_path / f"out{number}"), what
    folder = copy(golden / name, tmp_path / "gone")
    (folder / chunk).unlink()
    with pytest.raises((SourceError, FileNotFoundError), match=chunk):
        go(folder, tmp_path / "out")


def test_mds_hashes_are_compared(golden: Path, tmp_path: Path) -> None:
    folder = copy(golden / "mds", tmp_path / "x")
    path = folder / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert hashlib.sha1(data).hexdigest() not in (folder / "index.json").read_text()
    with pytest.raises(SourceError, match=r"shard\.00001\.mds: its sha1 is not that of the index"):
        go(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "MDS of version 1"),
        ({"shards": [{"format": "mds"}]}, "not an index of MDS"),
    ],
)
def test_an_index_that_is_none(golden: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = copy(golden / "mds", tmp_path / "x")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(SourceError, match=message):
        go(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encryption": {"a": 1}}, "encrypted"),
        ({"item_loader": "TokensLoader"}, "TokensLoader"),
        ({"compression": "lz4"}, "lz4"),
        ({"compression_level": "sample"}, "one by one"),
        ({"data_format": ["int"]}, "12 names for 1 values"),
        ({"data_spec": "[1]"}, "not an index of LitData"),
    ],
)
def test_a_litdata_config_that_cannot_be_read(
    golden: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = copy(golden / "lit", tmp_path / "x")
    index = json.loads((folder / "index.json").read_text())
    index["config"] |= change
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=message):
        go(folder, tmp_path / "out")


def test_the_command(golden: Path, tmp_path: Path) -> None:
    code, out, err = run(golden / "lit", tmp_path / "out/x-%06d.tar", "--drop", "t,v,n", "--where", "ok", "--json")
    assert code == 0, err
    assert json.loads(out)["samples"] == 2
    assert set(samples(tmp_path / "out")["000002"]) == {"png", "cls", "json"}
