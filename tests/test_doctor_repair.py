"""Repair: keys, duplicates, headers, the destination. What damage does to it is in test_doctor_damage."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers import make_tar

from wdstools import comparison
from wdstools.doctor.repair import repair
from wdstools.errors import ChangedError, DestinationError, NotFoundError, SourceError
from wdstools.index import Index
from wdstools.reader import stream

Files = list[tuple[str, bytes]]
FILES: Files = [(f"{i}.{ext}", f"{i}{ext}".encode() * 300) for i in range(5) for ext in ("cls", "txt")]


def put(folder: Path, files: Files | bytes, name: str = "a.tar", **options: Any) -> str:
    path = folder / name
    path.write_bytes(files if isinstance(files, bytes) else make_tar(files, **options))
    return str(path)


def read(shards: list[str]) -> dict[str, dict[str, bytes]]:
    found = {}
    for sample in stream(shards):
        assert sample["__key__"] not in found
        found[sample["__key__"]] = {k: v for k, v in sample.items() if not k.startswith("__")}
    return found


def expected(files: Files) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for name, data in files:
        found.setdefault(name.partition(".")[0], {})[name.partition(".")[2].lower()] = data
    return found


def test_a_good_shard_stays_as_it_is(tmp_path: Path) -> None:
    done = repair([put(tmp_path, FILES)], str(tmp_path / "out"))
    assert read(done.shards) == expected(FILES)
    assert (done.lost, done.dropped, done.samples) == ([], [], 5)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.tar", "a.wdsindex", "repair.json"]
    index = Index.load(tmp_path / "out" / "a.wdsindex")
    assert comparison.check(index) == []
    assert index.shards.url == [str(tmp_path / "out" / "a.tar")]
    again = repair(done.shards, str(tmp_path / "again"))
    assert Path(again.shards[0]).read_bytes() == Path(done.shards[0]).read_bytes()
    assert json.loads((tmp_path / "out" / "repair.json").read_text())["samples"] == 5


def test_members_that_are_no_fields_come_along(tmp_path: Path) -> None:
    files = [("README", b"read"), ("__meta__", b"m"), *FILES[:2], ("middle", b"x"), *FILES[2:], ("last", b"y")]
    done = repair([put(tmp_path, files)], str(tmp_path / "out"))
    with tarfile.open(done.shards[0]) as archive:
        assert archive.getnames() == [name for name, _ in files]


def test_names_stay(tmp_path: Path) -> None:
    files = [("d/a.JPG", b"1"), ("d/a.Seg.PNG", b"2"), ("n" * 150 + "/é.x", b"3"), ("b..x", b"4"), ("c.", b"5")]
    done = repair([put(tmp_path, files, format=tarfile.PAX_FORMAT)], str(tmp_path / "out"))
    with tarfile.open(done.shards[0]) as archive:
        assert archive.getnames() == [name for name, _ in files]


def test_interleaved_keys(tmp_path: Path) -> None:
    order = [FILES[i] for i in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    done = repair([put(tmp_path, order)], str(tmp_path / "out"))
    assert read(done.shards) == expected(FILES)
    assert done.lost == []


def test_duplicates(tmp_path: Path) -> None:
    first, second = [("a.x", b"1"), ("b.x", b"2")], [("c.x", b"3"), ("a.x", b"4")]
    within = [put(tmp_path, first + second)]
    across = [put(tmp_path, first, "p.tar"), put(tmp_path, second, "q.tar")]
    for number, shards in enumerate((within, across)):
        with pytest.raises(SourceError, match="key 'a' is there more than once: say --keep first"):
            repair(shards, str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        for keep, wanted in [
            ("first", {"a": b"1", "b": b"2", "c": b"3"}),
            ("last", {"b": b"2", "c": b"3", "a": b"4"}),
            ("rename", {"a": b"1", "b": b"2", "c": b"3", "a-2": b"4"}),
        ]:
            done = repair(shards, str(tmp_path / f"{keep}{number}"), keep=keep)
            assert {key: fields["x"] for key, fields in read(done.shards).items()} == wanted
            assert [lost.key for lost in done.dropped] == ([] if keep == "rename" else ["a"])
            assert [item["to"] for item in done.renamed] == (["a-2"] if keep == "rename" else [])
            assert done.lost == []


def test_renamed_keys_are_new(tmp_path: Path) -> None:
    files = [("a.x", b"1"), ("a-2.x", b"2"), ("a.x", b"3"), ("b.x", b"4"), ("a.x", b"5")]
    done = repair([put(tmp_path, files)], str(tmp_path / "out"), keep="rename")
    assert {key: fields["x"] for key, fields in read(done.shards).items()} == {
        "a": b"1", "a-2": b"2", "a-3": b"3", "b": b"4", "a-4": b"5",
    }  # fmt: skip


def test_a_field_twice_is_two_samples(tmp_path: Path) -> None:
    shard = put(tmp_path, [("a.x", b"1"), ("a.y", b"2"), ("a.x", b"3"), ("a.y", b"4")])
    done = repair([shard], str(tmp_path / "out"), keep="last")
    assert read(done.shards) == {"a": {"x": b"3", "y": b"4"}}


def test_a_damaged_copy_gives_way_to_a_whole_one(tmp_path: Path) -> None:
    data = make_tar([*FILES, *FILES])
    broken = data[:2048] + b"\xff" * 100 + data[2148:]  # the header of 0.txt, where 0.cls takes three blocks
    for keep in ("first", "last"):
        done = repair([put(tmp_path, broken)], str(tmp_path / keep), keep=keep)
        assert read(done.shards) == expected(FILES)


def test_pax_bloat_is_stripped(tmp_path: Path) -> None:
    shard = put(tmp_path, FILES, format=tarfile.PAX_FORMAT, mtime=1.5)
    done = repair([shard], str(tmp_path / "out"))
    assert read(done.shards) == expected(FILES)
    assert done.won == 10 * 1024
    assert os.path.getsize(done.shards[0]) <= os.path.getsize(shard) - done.won


def test_partial(tmp_path: Path) -> None:
    data = make_tar(FILES)
    cut = data[: 5 * 2048 + 512 + 700]
    shard = put(tmp_path, cut)
    done = repair([shard], str(tmp_path / "out"))
    kept = set(read(done.shards))
    done = repair([shard], str(tmp_path / "partial"), partial=True)
    got = read(done.shards)
    assert kept < set(got)
    whole = expected(FILES)
    assert all(fields.items() <= whole[key].items() for key, fields in got.items())
    assert done.partial == [key for key in got if key not in kept]
    assert all(lost.reason and lost.shard == shard for lost in done.lost)


def test_what_is_lost_is_listed(tmp_path: Path) -> None:
    data = make_tar(FILES)
    header = 2048  # of 0.txt
    broken = data[: header + 100] + b"\xff" * 50 + data[header + 150 :]
    shard = put(tmp_path, broken)
    done = repair([shard], str(tmp_path / "out"))
    assert set(read(done.shards)) == {"1", "2", "3", "4"}
    told = [(lost.key, lost.member, lost.offset) for lost in done.lost]
    assert told == [(None, "0.txt", 2048), ("0", "0.cls", 0)]
    assert json.loads((tmp_path / "out" / "repair.json").read_text())["lost"][1]["member"] == "0.cls"


def test_nothing_left(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"junk" * 1000, bytes(5000))):
        done = repair([put(tmp_path, data)], str(tmp_path / f"out{number}"))
        assert (done.shards, done.samples) == ([], 0)
        assert os.listdir(tmp_path / f"out{number}") == ["repair.json"]


def test_compressed_and_piped(tmp_path: Path) -> None:
    data = gzip.compress(make_tar(FILES))
    one = repair([put(tmp_path, data, "z.tar.gz")], str(tmp_path / "out"))
    assert one.shards == [str(tmp_path / "out" / "z.tar")]
    two = repair([f"pipe:cat {tmp_path}/z.tar.gz"], str(tmp_path / "out2"))
    assert os.path.basename(two.shards[0]) == "shard-000000.tar"
    assert read(one.shards) == read(two.shards) == expected(FILES)


def test_never_in_place_and_never_over_anything(tmp_path: Path) -> None:
    shard = put(tmp_path, FILES)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    before = Path(shard).read_bytes()
    for out in (tmp_path, tmp_path / "full", tmp_path / "link", shard, tmp_path / "full" / ".."):
        with pytest.raises(DestinationError, match=r"is there already|not repaired in place"):
            repair([shard], str(out))
    with pytest.raises(DestinationError, match="local folder"):
        repair([shard], "s3://bucket/x")
    with pytest.raises(SourceError, match=r"would both become a\.tar"):
        repair([shard, put(tmp_path / "full", FILES)], str(tmp_path / "out"))
    with pytest.raises(NotFoundError):
        repair([shard, str(tmp_path / "nosuch.tar")], str(tmp_path / "out"))
    assert Path(shard).read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "full", "link"]
    (tmp_path / "empty").mkdir()
    assert repair([shard], str(tmp_path / "empty")).samples == 5


def test_a_shard_that_changes_meanwhile(tmp_path: Path) -> None:
    shards = [put(tmp_path, FILES), put(tmp_path, [("z.cls", b"1"), ("z.txt", b"2")], "b.tar")]
    steps: list[int] = []

    def change(n: int) -> None:
        steps.append(n)
        if len(steps) == 2:
            put(tmp_path, FILES[:4])

    with pytest.raises(ChangedError, match=r"a\.tar: changed while it was repaired"):
        repair(shards, str(tmp_path / "out"), progress=change)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "b.tar"]


def test_names_that_readers_would_not_get_back(tmp_path: Path) -> None:
    data = make_tar([("a\udcff.x", b"1"), ("b.x", b"2"), ("c.__key__", b"3")], tarfile.GNU_FORMAT)
    done = repair([put(tmp_path, data)], str(tmp_path / "out"))
    assert read(done.shards) == {"b": {"x": b"2"}}
    assert [lost.reason for lost in done.lost] == ["its name is not UTF-8", "its field has the reserved name __key__"]


def test_a_name_whose_long_form_is_lost_is_not_taken(tmp_path: Path) -> None:
    for fmt in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        long = [(f"{'n' * 120}{i}.{ext}", bytes([i + 65]) * 600) for i in range(4) for ext in ("cls", "txt")]
        data = bytearray(make_tar(long, fmt))
        at = data.find(b"n" * 100, 3000) // 512 * 512 - 512  # an extension header in the middle
        data[at + 148 : at + 154] = b"\xff" * 6
        (tmp_path / str(fmt)).mkdir()
        done = repair([put(tmp_path / str(fmt), bytes(data))], str(tmp_path / f"out{fmt}"))
        assert set(read(done.shards)) < set(expected(long))
        assert len(done.lost) > 0
