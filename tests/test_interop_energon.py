"""Energon's offsets and prepared folder: golden bytes, against its own preparation, read by its reader; attacks."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import make_tar
from interoping import PAIRS, RICH, claims_of, digest, export, imported, indexed, needs_readers, read_with, same, write

from wdstools import build, urls
from wdstools.errors import DestinationError, IndexFileError, StaleIndexError, UnsupportedError
from wdstools.interop import energon
from wdstools.interop.formats import read_claims


def offsets(path: str | Path) -> list[int]:
    data = Path(path).read_bytes()
    return list(struct.unpack(f"<{len(data) // 8}Q", data))


def tables(path: Path) -> dict[str, Any]:
    database = sqlite3.connect(path)
    found: dict[str, Any] = {}
    for name in ("samples", "sample_parts"):
        found[name] = database.execute(f"SELECT * FROM {name} ORDER BY 1, 2, 3").fetchall()
        found[name + " columns"] = database.execute(f"PRAGMA table_info({name})").fetchall()
    found["indexes"] = database.execute("SELECT name FROM sqlite_master WHERE type='index' AND sql != ''").fetchall()
    database.close()
    return found


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, RICH)
    export(index, "energon")
    assert Path(tmp_path / "t-000000.tar.idx").read_bytes() == struct.pack("<4Q", 0, 3584, 4096, 5120)
    assert offsets(tmp_path / "t-000001.tar.idx") == [0, 1024, 3072, 5632]
    meta = tmp_path / ".nv-meta"
    assert json.loads((meta / ".info.json").read_text())["shard_counts"] == {"t-000000.tar": 3, "t-000001.tar": 3}
    assert yaml.safe_load((meta / "split.yaml").read_text()) == {
        "split_parts": {"train": ["t-{000000..000001}.tar"], "val": [], "test": []}, "exclude": [],
    }  # fmt: skip
    assert yaml.safe_load((meta / "dataset.yaml").read_text()) == {
        "__module__": "megatron.energon", "__class__": "CrudeWebdataset",
    }  # fmt: skip
    assert len((meta / "index.uuid").read_text()) == 36
    found = tables(meta / "index.sqlite")
    assert found["samples"][:3] == [(0, "a/0", 0, 0, 3584), (0, "b", 1, 3584, 512), (0, "c", 2, 4096, 1024)]
    assert found["sample_parts"][0] == (0, 0, "JPG", 512, 700)


def test_where_energon_looks() -> None:
    for shard, path in (("a/b.tar", "a/b.tar.idx"), ("b", "b.tar.idx"), ("a.b/c", "a.b/c.tar.idx")):
        assert energon.index_path(shard) == path


def test_what_was_edited_stays(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    export(index, "energon")
    (tmp_path / ".nv-meta" / "split.yaml").write_text("split_parts: {train: [t-000000.tar]}\n")
    written = export(index, "energon", overwrite=True)
    assert [note.split(": ")[1] for note in written.notes] == ["was there, and stays as it is"] * 2
    assert (tmp_path / ".nv-meta" / "split.yaml").read_text() == "split_parts: {train: [t-000000.tar]}\n"


def test_the_folder_above(tmp_path: Path) -> None:
    """A dataset of shards in several folders; and one that they do not lie in."""
    paths = write(tmp_path / "a", PAIRS[:1]) + [shutil.move(p, p + "x.tar") for p in write(tmp_path / "b", PAIRS[1:2])]
    index = build.build(paths)
    export(index, "energon", tmp_path)
    counts = json.loads((tmp_path / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert counts == {"a/t-000000.tar": 4, "b/t-000000.tarx.tar": 4}
    assert same(index, imported(read_claims("energon", [str(tmp_path)]), tmp_path / "x.wdsindex"))
    assert same(index, imported(read_claims("energon", [str(tmp_path / ".nv-meta")]), tmp_path / "x.wdsindex"))
    assert same(index, imported(read_claims("energon", paths), tmp_path / "x.wdsindex"))
    with pytest.raises(DestinationError, match="below the folder"):
        export(index, "energon", tmp_path / "a")


def test_keys_that_come_twice(tmp_path: Path) -> None:
    index = indexed(tmp_path, [PAIRS[0], PAIRS[0]])
    with pytest.raises(UnsupportedError, match=r"the key 'p0/0' is in .*t-000001.tar too"):
        export(index, "energon")
    assert not (tmp_path / "t-000000.tar.idx").exists()


def test_lhotses_file_is_told_from_energons(tmp_path: Path) -> None:
    index = indexed(tmp_path)
    export(index, "lhotse")
    before = (tmp_path / "t-000000.tar.idx").read_bytes()
    with pytest.raises(DestinationError, match=r"t-000000\.tar\.idx: is an index of Lhotse.*, not an index of Energon"):
        export(index, "energon", overwrite=True)
    assert (tmp_path / "t-000000.tar.idx").read_bytes() == before
    with pytest.raises(StaleIndexError, match="it is Lhotse's: import --from lhotse"):
        read_claims("energon", index.shards.url)


OFFSETS = {
    "empty": (b"", "0 bytes are no array"),
    "odd": (b"\0" * 15, "15 bytes are no array"),
    "descending": (struct.pack("<3Q", 0, 1024, 512), "do not ascend"),
    "one less": (struct.pack("<2Q", 0, 3072), "it has 2 samples, not 1"),
    "moved": (struct.pack("<3Q", 0, 512, 3072), "sample 1 begins at byte 1024, not 512"),
    "not at 0": (struct.pack("<3Q", 512, 1024, 3072), "sample 0 begins at byte 0, not 512"),
    "outside": (struct.pack("<3Q", 0, 1024, 1 << 63), "the members do not end at byte 9223372036854775808"),
    "in the padding": (struct.pack("<3Q", 0, 1024, 4096), ""),
    "inside": (struct.pack("<3Q", 0, 1024, 1536), "the members do not end at byte 1536"),
}


@pytest.mark.parametrize("what", OFFSETS)
def test_attacks_on_offsets(tmp_path: Path, what: str) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1"), ("b.jpg", b"2" * 600), ("readme", b"")]])
    data, message = OFFSETS[what]
    (tmp_path / "t-000000.tar.idx").write_bytes(data)
    if what == "in the padding":  # zeros follow: nothing is lost, and nothing can be told
        return
    with pytest.raises(IndexFileError, match=message) as caught:
        imported(read_claims("energon", index.shards.url), tmp_path / "again.wdsindex")
    assert "t-000000.tar.idx" in str(caught.value)


SQL = {
    "DELETE FROM samples WHERE sample_index = 1": "3 samples, where",
    "INSERT INTO samples VALUES (0, 'new', 4, 0, 0)": "more samples, where",
    "INSERT INTO samples VALUES (7, 'new', 0, 0, 0)": "1 samples of shards that .info.json does not have",
    "UPDATE samples SET byte_offset = byte_offset + 512 WHERE sample_index = 1": "lies elsewhere than in",
    "UPDATE samples SET sample_key = x'00ff' WHERE sample_index = 1 AND tar_file_id = 0": "lies elsewhere",
    "UPDATE samples SET sample_key = 'other' WHERE sample_index = 1 AND tar_file_id = 0": "'jpg' of 'other'",
    "UPDATE sample_parts SET part_name = 'png'": "where it has 'png'",
    "UPDATE sample_parts SET content_byte_offset = -1": "a part of sample 0 of shard 0 that is none",
    "UPDATE sample_parts SET content_byte_offset = 1e300": "that is none",
    "UPDATE sample_parts SET content_byte_size = 9223372036854775807": "with 9223372036854775807 bytes",
    "UPDATE sample_parts SET sample_index = 1000000000000": "a part of sample 1000000000000 of shard 0, which has 4",
    "DELETE FROM sample_parts": "sample 0 has 2 fields, not 0",
    "DROP TABLE sample_parts": "not an index: no such table",
    "ALTER TABLE samples RENAME COLUMN sample_key TO k": "not an index: no such column",
}


@pytest.mark.parametrize("sql", SQL)
def test_attacks_on_the_sample_index(tmp_path: Path, sql: str) -> None:
    index = indexed(tmp_path)
    export(index, "energon")
    database = sqlite3.connect(tmp_path / ".nv-meta" / "index.sqlite")
    database.execute(sql)
    database.commit()
    database.close()
    with pytest.raises(IndexFileError, match=SQL[sql]):
        imported(claims_of(index, "energon", tmp_path), tmp_path / "again.wdsindex")
    assert not (tmp_path / "again.wdsindex").exists()


@pytest.mark.parametrize(
    "told",
    ['{"shard_counts": {"../t.tar": 1}}', '{"shard_counts": {"/etc/t.tar": 1}}', '{"shard_counts": [1]}', "[]", "{",
     '{"shard_counts": {"t-000000.tar": -1}}', '{"shard_counts": {"t-000000.tar": true}}', "[" * 100_000,
     '{"shard_counts": {"pipe:touch x.tar": 1}}', '{"shard_counts": {"t-000000.tar": 5}}'],
)  # fmt: skip
def test_attacks_on_the_shard_table(tmp_path: Path, told: str) -> None:
    index = indexed(tmp_path)
    export(index, "energon")
    (tmp_path / ".nv-meta" / "index.sqlite").unlink()
    (tmp_path / ".nv-meta" / ".info.json").write_text(told)
    with pytest.raises(IndexFileError):
        imported(claims_of(index, "energon", tmp_path), tmp_path / "again.wdsindex")


@needs_readers
def test_energon_prepares_the_same_and_reads_it(tmp_path: Path) -> None:
    sets = [*PAIRS, *RICH]
    index = indexed(tmp_path / "ours", sets, format=tarfile.PAX_FORMAT, mtime=1.5)
    # a sample after a folder: Energon reads the first from byte 0 all the same
    folder = tarfile.TarInfo("p9/")
    folder.type = tarfile.DIRTYPE
    shard = tmp_path / "ours" / "t-000000.tar"
    shard.write_bytes(folder.tobuf(tarfile.USTAR_FORMAT) + make_tar(sets[0]))
    index = build.build(index.shards.url)
    names = [os.path.basename(url) for url in index.shards.url]
    export(index, "energon")
    (tmp_path / "theirs").mkdir()
    for url in index.shards.url:
        shutil.copy(url, tmp_path / "theirs")
    keys = index.table.column("key").to_pylist()
    told = {"folder": str(tmp_path / "ours"), "keys": keys, "shards": [[index.shards.url[0], 4]]}
    found = read_with("energon", told | {"copy": str(tmp_path / "theirs"), "names": names})
    for name in names:
        assert (tmp_path / "ours" / f"{name}.idx").read_bytes() == (tmp_path / "theirs" / f"{name}.idx").read_bytes()
    ours, theirs = (tmp_path / which / ".nv-meta" for which in ("ours", "theirs"))
    assert tables(ours / "index.sqlite") == tables(theirs / "index.sqlite")
    assert json.loads((ours / ".info.json").read_text()) == json.loads((theirs / ".info.json").read_text())
    for meta in (ours, theirs):  # theirs in the order of a shuffle
        split = yaml.safe_load((meta / "split.yaml").read_text())["split_parts"]["train"]
        assert sorted(urls.expand(split)) == names
    again = imported(read_claims("energon", [str(tmp_path / "theirs")]), tmp_path / "again.wdsindex")
    assert again.table.column("key").to_pylist() == keys
    want = {}
    for row, key in enumerate(keys):
        data = Path(index.shards.url[index.locate(row)[1]]).read_bytes()
        want[key] = {f.ext: digest(data[f.offset : f.offset + f.nbytes]) for f in index.fields(row)}
    assert {key: {n.lower(): d for n, d in fields.items()} for key, fields in found["loaded"].items()} == want
    assert [place[1] for place in found["samples"]] == index.table.column("start").to_pylist()
    starts = offsets(energon.index_path(index.shards.url[0]))
    assert starts[0] == 512
    assert found["offsets"] == [[0, *starts[1:-1]]]  # as said
