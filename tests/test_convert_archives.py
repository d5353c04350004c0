"""Zip files and tars of tars: as the folders that they would unpack to."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from convert_helpers import go, keys, listed, samples
from helpers import make_tar

from wdstools.errors import ShardError, SourceError


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("folder/", b"")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def nested(path: Path, classes: int = 3, each: int = 4) -> dict[str, dict[str, bytes]]:
    rng = random.Random(2)
    wanted, inner = {}, []
    for c in reversed(range(classes)):
        files = [(f"img_{i}.JPEG", rng.randbytes(rng.randrange(3000))) for i in range(each)]
        inner.append((f"n{c:02d}.tar", make_tar(files)))
        wanted |= {f"n{c:02d}/{n[:-5]}": {"jpeg": data, "cls": b"%d" % c} for n, data in files}
    path.write_bytes(make_tar(inner))
    return wanted


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_zip(tmp_path: Path, method: int) -> None:
    files = {
        "b/2.jpg": b"two", "b/2.txt": b"zwei", "b/1.jpg": bytes(70_000), "a.jpg": b"", "__MACOSX/b/._2.jpg": b"x",
        ".DS_Store": b"x",
    }  # fmt: skip
    zipped(tmp_path / "x.zip", files, method)
    for number, options in enumerate([{}, {"workers": 4, "maxcount": 1}]):
        go(tmp_path / "x.zip", tmp_path / f"{number}", **options)
        assert samples(tmp_path / f"{number}") == {
            "a": {"jpg": b""}, "b/1": {"jpg": bytes(70_000)}, "b/2": {"jpg": b"two", "txt": b"zwei"},
        }  # fmt: skip
    go(tmp_path / "x.zip", tmp_path / "less", drop=frozenset({"txt"}), rename=(("jpg", "image"),), shuffle=True)
    assert samples(tmp_path / "less") == {
        "a": {"image": b""},
        "b/1": {"image": bytes(70_000)},
        "b/2": {"image": b"two"},
    }


def test_damaged_zips(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {f"{i}.txt": b"hello %d" % i for i in range(5)}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"hello 3", b"hellO 3"))
    with pytest.raises(SourceError, match=r"3\.txt: cannot be read: Bad CRC-32"):
        go(path, tmp_path / "out")
    summary = go(path, tmp_path / "skip", on_error="skip")
    assert [item.key for item in summary.skipped] == ["3"]
    assert keys(tmp_path / "skip") == ["0", "1", "2", "4"]
    path.write_bytes(data[:-30])
    with pytest.raises(SourceError, match=r"x\.zip: not a zip file"):
        go(path, tmp_path / "cut")


def test_names_that_make_no_sample(tmp_path: Path) -> None:
    zipped(tmp_path / "x.zip", {"a.txt": b"1", "README": b"2", "../up.txt": b"3"})
    with pytest.raises(SourceError, match="no extension"):
        go(tmp_path / "x.zip", tmp_path / "out")
    summary = go(tmp_path / "x.zip", tmp_path / "skip", on_error="skip")
    assert summary.reasons() == {"a key that leaves its folder": 1, "no extension": 1}
    assert samples(tmp_path / "skip") == {"a": {"txt": b"1"}}


def test_a_tar_of_tars(tmp_path: Path) -> None:
    wanted = nested(tmp_path / "train.tar")
    go(tmp_path / "train.tar", tmp_path / "out", maxcount=5, splits=(("a", 0.5), ("b", 0.5)), by="cls")
    assert samples(tmp_path / "out") == wanted
    assert json.loads((tmp_path / "out/classes.json").read_text()) == {"n00": 0, "n01": 1, "n02": 2}
    go(tmp_path / "train.tar", tmp_path / "flat", layout="flat")
    assert samples(tmp_path / "flat") == {key: {"jpeg": each["jpeg"]} for key, each in wanted.items()}
    assert keys(tmp_path / "flat") == sorted(wanted)


def test_the_same_as_the_unpacked_folder(tmp_path: Path) -> None:
    nested(tmp_path / "train.tar")
    with tarfile.open(tmp_path / "train.tar") as outer:
        for info in outer:
            inner = outer.extractfile(info)
            assert inner is not None
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
                tar.extractall(tmp_path / "in" / info.name[:-4], filter="data")
    go(tmp_path / "in", tmp_path / "one/x-%d.tar", seed=3)
    go(tmp_path / "train.tar", tmp_path / "two/x-%d.tar", seed=3)
    assert (tmp_path / "one/x-0.tar").read_bytes() == (tmp_path / "two/x-0.tar").read_bytes()


def test_damaged_tars_of_tars(tmp_path: Path) -> None:
    nested(tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    with tarfile.open(tmp_path / "t.tar") as tar:
        offset = tar.getmembers()[1].offset_data
    for number, place in enumerate([offset + 20, offset + 512 * 2 + 600]):
        bad = bytearray(data)
        bad[place : place + 4] = b"\xff\xff\xff\xff"
        (tmp_path / "bad.tar").write_bytes(bad)
        try:
            go(tmp_path / "bad.tar", tmp_path / f"out{number}")
        except ShardError as error:
            assert "n01.tar" in str(error)  # noqa: PT017
        else:
            assert number == 1  # in a payload: nobody can tell
    inner = make_tar([("a.txt", b"1")])
    (tmp_path / "cut.tar").write_bytes(make_tar([("a.tar", inner[:700]), ("b.tar", inner)]))
    with pytest.raises(ShardError, match=r"a\.tar"):
        go(tmp_path / "cut.tar", tmp_path / "cut")
    (tmp_path / "mixed.tar").write_bytes(make_tar([("a.tar", inner), ("b.txt", b"")]))
    with pytest.raises(SourceError, match=r"b\.txt beside tars"):
        go(tmp_path / "mixed.tar", tmp_path / "mixed")


def test_a_shard_is_no_tar_of_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("a.txt", b"1"), ("b.tar", b"2")]))
    assert listed(tmp_path / "a.tar")[0].kind == "shards"
