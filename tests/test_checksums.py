"""Checksums of shards and samples: against xxhash, and every flipped bit is found where it is."""

from __future__ import annotations

import gzip
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from convert_helpers import class_tree, everything, go, run, shards
from helpers import make_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools import _core, build
from wdstools.checksums import level_of, verify_checksums
from wdstools.columns import CHECKSUM
from wdstools.errors import ChecksumError, IndexFileError, SourceError
from wdstools.index import Index
from wdstools.merge import merge_files
from wdstools.writer import ShardFile


def naive(index: Index) -> tuple[list[str], list[int]]:
    """Checksums as they should be: (of the shards, of the samples)."""
    data = [Path(url).read_bytes() for url in index.shards.url]
    rows = [index.locate(row) for row in range(len(index))]
    samples = [xxhash.xxh3_64_intdigest(data[shard][start:end]) for _, shard, start, end in rows]
    return ["xxh3:" + xxhash.xxh3_64_hexdigest(each) for each in data], samples


def kept(index: Index) -> tuple[list[str], list[int]]:
    return index.shards.checksum, index.table[CHECKSUM].to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards; the second has a sample that is larger than what is read at once."""
    rng = random.Random(1)
    for number in range(3):
        files = [(f"k{number}{i}.bin", rng.randbytes(rng.randrange(2000))) for i in range(5)]
        if number == 1:
            files[2] = ("k12.bin", rng.randbytes(700_000))
        (tmp_path / f"a-{number}.tar").write_bytes(make_tar(files))
    return tmp_path


def indexed(folder: Path, checksum: Any = "sample", **options: Any) -> Index:
    names = sorted(map(str, folder.glob("*.tar")))
    return build.refresh(str(folder / "a.wdsindex"), names, checksum=checksum, **options).index


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 700_000) | st.integers(0, 600), min_size=1, max_size=6), st.integers(0, 9))
def test_against_xxhash(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    gaps = [rng.randrange(3) * 100 for _ in sizes]
    places, at = [], 0
    for gap, size in zip(gaps, sizes, strict=True):
        places.append((at + gap, at + gap + size + 1))
        at = places[-1][1]
    data = rng.randbytes(at + rng.randrange(1000))
    starts, ends = (np.array(column, np.uint64).tobytes() for column in zip(*places, strict=True))
    wanted = np.array([xxhash.xxh3_64_intdigest(data[a:b]) for a, b in places], np.uint64).tobytes()
    fd = os.memfd_create("x")
    try:
        os.write(fd, data)
        for source in (fd, io.BytesIO(data)):
            found = _core.checksums(source, "u", starts, ends)
            assert found == (len(data), xxhash.xxh3_64_intdigest(data), wanted)
    finally:
        os.close(fd)
    cut = _core.checksums(io.BytesIO(data[: places[-1][1] - 1]), "u", starts, ends)
    assert cut[2] == wanted[:-8]


@pytest.mark.parametrize("places", [([5], [5]), ([5], [4]), ([0, 3], [4, 6]), ([4, 0], [6, 2]), ([1], [])])
def test_places_that_are_none(places: tuple[list[int], list[int]]) -> None:
    starts, ends = (np.array(each, np.uint64).tobytes() for each in places)
    with pytest.raises(ValueError, match="must be"):
        _core.checksums(io.BytesIO(bytes(9)), "u", starts, ends)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_of_what_is_written(data: st.DataObject) -> None:
    """Also where samples are refused and taken back, whether or not they have left the buffer."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = ShardFile(f"{folder}/x.tar", checksum=2)
        wrote = 0
        for number in range(data.draw(st.integers(1, 12))):
            size = data.draw(st.sampled_from([0, 10, 5000, 300_000, 900_000]))
            payload = random.Random(number).randbytes(size)
            if data.draw(st.booleans()):
                with pytest.raises(SourceError):
                    file.write(f"k{number}", {"a": payload, "b/": b"", "b.__key__/": b""} if size else {})
            else:
                file.write(f"k{number}", {"a": payload})
                wrote += 1
        index = file.commit()
        assert len(index) == wrote
        assert kept(index) == naive(index)


def test_an_index_keeps_them(folder: Path) -> None:
    index = indexed(folder)
    assert kept(index) == naive(index)
    assert kept(Index.load(folder / "a.wdsindex")) == naive(index)
    assert level_of(index) == "sample"
    assert CHECKSUM not in index.lifted() + index.columns() + index.view().column_names
    assert verify_checksums(index) == []
    assert verify_checksums(index, from_disk=True, workers=1) == []


def test_a_refresh_keeps_what_there_is(folder: Path) -> None:
    assert level_of(indexed(folder, None)) == "none"
    assert level_of(indexed(folder, "shard")) == "shard"
    path = folder / "a-1.tar"
    path.write_bytes(make_tar([("new.txt", b"new")]))
    for level in ("shard", "sample"):
        previous = Index.load(folder / "a.wdsindex")
        built = build.refresh(str(folder / "a.wdsindex"), previous.shards.url, checksum=level, previous=previous)
        assert (level_of(built.index), built.reused) == (level, 2 if level == "shard" else 3)
        assert built.index.shards.checksum == naive(built.index)[0]
        again = build.refresh(str(folder / "a.wdsindex"), previous.shards.url, previous=built.index)
        assert not again.written
    assert kept(built.index) == naive(built.index)
    gone = build.refresh(str(folder / "a.wdsindex"), previous.shards.url, previous=built.index, checksum="none")
    assert gone.written
    assert level_of(gone.index) == "none"


def test_merged_with_one_that_has_none(folder: Path, tmp_path: Path) -> None:
    one, two = (str(folder / f"a-{n}.tar") for n in range(2))
    build.refresh(str(folder / "one.wdsindex"), [one], checksum="sample")
    build.refresh(str(folder / "two.wdsindex"), [two])
    merge_files([str(folder / "one.wdsindex"), str(folder / "two.wdsindex")], str(folder / "all.wdsindex"))
    index = Index.load(folder / "all.wdsindex")
    index.validate()
    assert index.table[CHECKSUM].null_count == 5
    assert verify_checksums(index, [0]) == []
    (error,) = verify_checksums(index)
    assert isinstance(error, IndexFileError)
    assert "keeps no checksum" in str(error)
    assert two in str(error)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << (place % 8)
    about = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("level", ["shard", "sample"])
def test_every_flipped_bit_is_found(folder: Path, level: Any) -> None:
    index = indexed(folder, level)
    rng = random.Random(5)
    for _ in range(40):
        number = rng.randrange(3)
        path = folder / f"a-{number}.tar"
        place = rng.randrange(path.stat().st_size)
        flip(path, place)
        (error,) = verify_checksums(index)
        flip(path, place)
        assert isinstance(error, ChecksumError)
        assert error.url == str(path)
        hit = [row for row in map(index.locate, range(len(index))) if row[1] == number and row[2] <= place < row[3]]
        if hit and level == "sample":
            assert f"sample {hit[0][0]!r}, bytes [{hit[0][2]}, {hit[0][3]})" in str(error)
        elif level == "sample":
            assert "all samples are what they were" in str(error)
    assert verify_checksums(index) == []


def test_a_shard_that_is_cut_or_gone(folder: Path) -> None:
    index = indexed(folder)
    os.truncate(folder / "a-1.tar", 1024)
    (folder / "a-2.tar").unlink()
    short, gone = verify_checksums(index)
    assert "1024 bytes, where the index has" in str(short)
    assert isinstance(gone, FileNotFoundError)


def test_compressed_shards(folder: Path) -> None:
    plain = folder / "a-0.tar"
    (folder / "z.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    index = build.build([str(folder / "z.tar.gz")], checksum="sample")
    assert index.shards.checksum == ["xxh3:" + xxhash.xxh3_64_hexdigest(plain.read_bytes())]
    assert verify_checksums(index) == []


def test_a_pipe_is_run_only_if_asked(folder: Path) -> None:
    index = build.build([f"pipe:cat {folder}/a-0.tar"], checksum="shard")
    (error,) = verify_checksums(index)
    assert "not read: commands" in str(error)
    assert verify_checksums(index, run_pipes=True) == []


@pytest.mark.parametrize("level", ["none", "shard", "sample"])
def test_wds_shard_keeps_them(tmp_path: Path, level: str) -> None:
    class_tree(tmp_path / "in")
    go(tmp_path / "in", tmp_path / "out/x-%06d.tar", checksum=level, maxcount=4, verify=level != "none")
    index = Index.load(tmp_path / "out/x.wdsindex")
    assert level_of(index) == level
    if level != "none":
        assert index.shards.checksum == naive(index)[0]
    if level == "sample":
        assert kept(index) == naive(index)


def test_copied_samples_have_the_checksums_that_they_had(folder: Path, tmp_path: Path) -> None:
    before = indexed(folder)
    go(folder / "a.wdsindex", tmp_path / "out/x-%06d.tar", where="key != 'k03'", sort_by="key", checksum="sample")
    after = Index.load(tmp_path / "out/x.wdsindex")
    assert kept(after) == naive(after)
    old = dict(zip(before.table["key"].to_pylist(), kept(before)[1], strict=True))
    assert {key: old[key] for key in after.table["key"].to_pylist()} == dict(
        zip(after.table["key"].to_pylist(), kept(after)[1], strict=True)
    )


def test_a_damaged_sample_is_not_copied(folder: Path, tmp_path: Path) -> None:
    index = indexed(folder)
    flip(folder / "a-0.tar", index.locate(3)[2] + 600)
    with pytest.raises(
        ChecksumError, match=r"a-0\.tar: sample 'k03', bytes \[.*its checksum is not that of .*wdsindex"
    ):
        go(folder / "a.wdsindex", tmp_path / "out/x-%06d.tar", where="true", checksum="sample")
    assert not (tmp_path / "out/x-000000.tar").exists()
    go(folder / "a.wdsindex", tmp_path / "out/y-%06d.tar", where="key != 'k03'", checksum="sample")


def test_verify_finds_what_the_disk_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in")
    commit = ShardFile.commit

    def bad(self: ShardFile) -> Index:
        index = commit(self)
        if self.path.endswith("x-000001.tar"):
            flip(Path(self.path), index.locate(2)[2] + 700)
        return index

    with monkeypatch.context() as patch:
        patch.setattr(ShardFile, "commit", bad)
        with pytest.raises(ChecksumError, match=r"x-000001\.tar: sample 'n01/img_001', bytes \[") as caught:
            go(tmp_path / "in", tmp_path / "out/x-%06d.tar", maxcount=4, verify=True, checksum="sample", shuffle=False)
    assert "the same command makes them anew" in str(caught.value)
    assert [path.name for path in shards(tmp_path / "out")] == [f"x-00000{n}.tar" for n in (0, 2, 3)]
    options: dict[str, Any] = {"maxcount": 4, "checksum": "sample", "shuffle": False}
    summary = go(tmp_path / "in", tmp_path / "out/x-%06d.tar", verify=True, **options)
    assert summary.kept == 3
    go(tmp_path / "in", tmp_path / "whole/x-%06d.tar", **options)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_verify_of_what_is_complete(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out/x-%06d.tar", "--verify")[0] == 0
    assert run(tmp_path / "in", tmp_path / "out/x-%06d.tar", "--verify")[0] == 0
    flip(tmp_path / "out/x-000000.tar", 1000)
    code, _, err = run(tmp_path / "in", tmp_path / "out/x-%06d.tar", "--verify")
    assert code == 1
    assert "x-000000.tar: its checksum is xxh3:" in err
    assert "--overwrite" in err
    assert run(tmp_path / "in", tmp_path / "out/x-%06d.tar", "--verify", "--checksum", "none")[0] == 1
