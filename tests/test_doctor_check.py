"""Checkups: every kind of problem is found where it is, and none in shards that are good."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
import xxhash
from damaging import make
from helpers import make_tar
from indexing import labelled, random_files, touch, with_column, write_shards
from PIL import Image

from wdstools import build
from wdstools.doctor import payloads
from wdstools.doctor.checkup import Lot, Options, Report, checkup
from wdstools.doctor.problems import KINDS, Problem
from wdstools.index import Index

FILES = [(f"{i}.{ext}", bytes([65 + i]) * 700) for i in range(4) for ext in ("cls", "txt")]


def report(paths: Any, index: Index | None = None, **options: Any) -> Report:
    paths = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return checkup(Lot(paths, index, index and "t.wdsindex"), Options(workers=2, **options))


def found(paths: Any, index: Index | None = None, **options: Any) -> dict[str, Problem]:
    problems = report(paths, index, **options).problems
    kinds = [problem.kind for problem in problems]
    assert len(set(kinds)) == len(kinds), problems
    return {problem.kind: problem for problem in problems}


def put(folder: Path, files: Any, name: str = "a.tar", **options: Any) -> Path:
    path = folder / name
    path.write_bytes(files if isinstance(files, bytes) else make_tar(files, **options))
    return path


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_invented(tmp_path: Path, seed: int) -> None:
    made = make(Random(seed), tars=seed % 4 == 0)
    path = put(tmp_path, made.data)
    assert set(found(path)) <= {"pax"}
    assert set(found(path, build.build([str(path)]))) <= {"pax"}
    plain = gzip.compress(made.data)
    assert set(found(put(tmp_path, plain, "b.tar.gz"))) <= {"pax"}


def test_many_shards_of_all_formats(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [random_files(i, 20, f"s{i}/") for i in range(6)])
    told = report(paths, build.build(paths))
    assert (told.errors, told.shards, told.samples) == (0, 6, 120)
    assert {problem.kind for problem in told.problems} <= {"fields", "empty", "pax"}
    assert told.nbytes == sum(map(os.path.getsize, paths))


def test_damage(tmp_path: Path) -> None:
    data = make_tar(FILES)
    end = 8 * 1536
    for bad, kind, offset in [
        (data[:end], "truncated", end),
        (data[: end + 512], "truncated", end + 512),
        (data[:5000], "truncated", 5000),
        (b"", "truncated", 0),
        (data[:3072] + b"x" + data[3073:], "header", 3072),
        (data + b"junk", "trailing", len(data)),
        (data + make_tar([("z.cls", b"1"), ("z.txt", b"2")]), "concatenated", end),
        (data[:1536] + bytes(512) + data[1536:], "zeros", 1536),
        (data[:600] + data[640:], "missing-bytes", 0),
        (data[:1300] + b"x" + data[1301:], "padding", 0),
        (data[:1200] + b"x" * 300 + data[1500:], "payload", 0),
        (data[:-7], "size", None),
    ]:
        told = found(put(tmp_path, bad))
        assert set(told) == {kind}, told
        problem = told[kind]
        assert (problem.kind, problem.offset) == (kind, offset), problem
        assert str(tmp_path / "a.tar") in problem.message
        assert problem.fix.startswith("wds-index repair")
        assert problem.level == ("warning" if kind == "padding" else "error")
    assert set(found(put(tmp_path, data[:3000]))) == {"truncated"}
    assert found(put(tmp_path, data[:4700]))["truncated"].reason == "truncated in a header"
    many = b"".join(data[i * 1536 : i * 1536 + 1536] + b"\xff" * 512 for i in range(8)) * 30
    problems = report(put(tmp_path, many)).problems
    assert 100 <= sum(problem.kind == "header" for problem in problems) <= 102
    assert any("more places of damage follow" in problem.message for problem in problems)


def test_keys(tmp_path: Path) -> None:
    told = found(put(tmp_path, [("a.x", b"1"), ("b.x", b"1"), ("a.y", b"1"), ("b.y", b"1")]))
    assert told.keys() == {"interleaved"}
    assert (told["interleaved"].offset, told["interleaved"].count) == (2048, 2)
    assert told["interleaved"].detail == {"keys": ["a", "b"]}
    told = found(put(tmp_path, [("a.x", b"1"), ("b.x", b"1"), ("a.x", b"1")]))
    assert (told.keys(), told["duplicate-key"].offset) == ({"duplicate-key"}, 2048)
    told = found(put(tmp_path, [("a.x", b"1"), ("a.X", b"1"), ("b.É", b"1"), ("b.é", b"1")]))
    assert (told.keys(), told["duplicate-field"].count) == ({"duplicate-field"}, 2)
    paths = [
        put(tmp_path, [(f"{key}.x", b"1") for key in keys], f"{i}.tar") for i, keys in enumerate(["ab", "cb", "ca"])
    ]
    problems = report(paths).problems
    assert [(p.kind, p.shard, p.count) for p in problems] == [
        ("duplicate-across", str(paths[1]), 1),
        ("duplicate-across", str(paths[2]), 2),
    ]
    assert f"such as 'b' in {paths[0]}" in problems[0].message


def test_costs(tmp_path: Path) -> None:
    files = [("a.x", b"1"), ("a.y", b"1"), ("b.x", b""), ("b.y", b"1"), ("c.x", b"1"), ("d.x", b"1"), ("d.y", b"1")]
    told = found(put(tmp_path, [*files, ("e.x", b"1"), ("e.y", b"1"), ("e.z", b"1")]))
    assert told.keys() == {"empty", "fields"}
    assert (told["empty"].count, told["empty"].detail) == (1, {"fields": {"x": 1}})
    assert told["fields"].count == 2
    assert told["fields"].detail == {"lack": {"y": 1}, "more": {"z": 1}}
    assert {problem.level for problem in told.values()} == {"warning"}
    files = [(f"{i}.x", b"1") for i in range(10)]
    bloated = make_tar(files, tarfile.PAX_FORMAT, 1.5)
    told = found(put(tmp_path, bloated))
    assert told["pax"].detail == {"bytes": 10 * 1024}
    assert told["pax"].count == 10
    long = [(f"{'n' * 300}{i}.x", b"1") for i in range(3)]
    assert found(put(tmp_path, make_tar(long, tarfile.PAX_FORMAT))) == {}, "these are needed"


def test_names(tmp_path: Path) -> None:
    assert found(put(tmp_path, make_tar([("a\udcff.x", b"1")], tarfile.GNU_FORMAT))).keys() == {"name"}
    assert found(put(tmp_path, [("a.__key__", b"1")])).keys() == {"name"}
    (tmp_path / "s").mkdir()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.x")
        info.size, info.pax_headers = 3, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        archive.addfile(info, io.BytesIO(b"abc"))
    assert found(put(tmp_path, out.getvalue())).keys() == {"sparse"}


def test_index(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [labelled(list("123"), prefix=f"p{i}/") for i in range(2)])
    index = build.build(paths)
    assert found(paths, index) == {}
    ends = index.table.column("end").to_pylist()
    keys = index.table.column("key").to_pylist()
    for name, values in [("key", ["p0/x", *keys[1:]]), ("end", [ends[0] - 512, *ends[1:]])]:
        wrong = Index(with_column(index, name, values), index.shards)
        told = report(paths, wrong).problems
        assert [problem.kind for problem in told] == ["index"], told
    touch(paths[0])
    assert found(paths, index).keys() == {"index-older"}
    write_shards(tmp_path, [labelled(list("1234"), prefix="p0/")])
    told = report(paths, index).problems
    assert [(problem.kind, problem.shard) for problem in told] == [("index", paths[0])]
    assert "where the index has" in told[0].message
    os.unlink(paths[1])
    assert {problem.kind for problem in report(paths, index).problems} == {"index", "unreadable"}


def u64s(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def test_foreign_indexes(tmp_path: Path) -> None:
    """a.tar.idx is Energon's, b.tar.idx Lhotse's: they differ in the last number."""
    end, paths = 8 * 1536, [put(tmp_path, make_tar([(f"{n}{f}", d) for f, d in FILES]), f"{n}.tar") for n in "abc"]
    size, starts = os.path.getsize(paths[0]), range(0, 8 * 1536, 3072)
    energon, lhotse = u64s(*starts, end), u64s(*starts, size)
    dali = b"v1.2 4\n" + b"".join(b"cls %d 700 a txt %d 700 a\n" % (s + 512, s + 2048) for s in starts)
    for name, data in (("a", energon), ("b", energon), ("c", energon)):
        (tmp_path / f"{name}.tar.idx").write_bytes(data)
    assert report(paths).problems == []
    for other in (lhotse, dali):
        (tmp_path / "b.tar.idx").write_bytes(other)
        (problem,) = report(paths).problems
        assert (problem.kind, problem.shard) == ("foreign-index", str(paths[1]))
        assert "two formats under one name" in problem.message
    strange = [
        b"v1.2\n4\ncls 512 700 a\n",
        b"v1.2 4",
        b"v1.2 %s\n" % (b"9" * 5000),
        b"v1.2 1\ncls " + b"9" * 5000 + b" 1\n",
    ]
    for stale in (u64s(*starts, end + 512), energon[:-3], b"", b"v1.2 4\ncls 3 700 a\n", b"text", *strange):
        (tmp_path / "b.tar.idx").write_bytes(stale)
        (problem,) = report(paths).problems
        assert "is no index of this shard" in problem.message
    for name in "abc":
        (tmp_path / f"{name}.tar.idx").write_bytes(lhotse)
    assert report(paths).problems == []
    (tmp_path / ".nv-meta").mkdir()
    assert [problem.kind for problem in report(paths).problems] == ["foreign-index"] * 3


def image(kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 48), 50).save(out, kind)
    return out.getvalue()


def test_decode(tmp_path: Path) -> None:
    jpg, png = image("JPEG"), image("PNG")
    good = [("a.jpg", jpg), ("a.png", png), ("a.json", b'{"x": 1}'), ("a.txt", b"\xff"), ("a.seg.png", png)]
    assert found(put(tmp_path, good), decode=True) == {}
    bad = [("b.jpg", jpg[: len(jpg) // 2]), ("b.png", b"no image"), ("b.json", b"{"), ("b.txt", b"\xff"),
           ("b.seg.png", png[:200])]  # fmt: skip
    path = put(tmp_path, [*good, *bad])
    for source in (path, put(tmp_path, gzip.compress(path.read_bytes()), "c.tar.gz")):
        assert found(source) == {}
        (problem,) = found(source, decode=True).values()
        assert (problem.kind, problem.count, problem.level) == ("decode", 4, "error")
        assert problem.detail is not None
        assert [one["name"] for one in problem.detail["members"]] == ["b.jpg", "b.png", "b.json", "b.seg.png"]
    assert [one.name for one in payloads.undecodable(str(path))] == ["b.jpg", "b.png", "b.json", "b.seg.png"]


def test_checksums(tmp_path: Path) -> None:
    path = put(tmp_path, FILES)
    index = build.build([str(path)], checksum="none")
    expected = f"xxh3:{xxhash.xxh3_64_hexdigest(path.read_bytes())}"
    told = report(path, index, checksums=True)
    assert told.checksums == {str(path): expected}
    assert [problem.kind for problem in told.problems] == ["no-checksum"]
    index = build.build([str(path)], checksum="shard")
    assert found(path, index, checksums=True) == {}
    good = path.read_bytes()
    data = bytearray(good)
    data[700] ^= 1
    about = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert found(path, index) == {}, "headers do not tell"
    assert found(path, index, checksums=True).keys() == {"checksum"}
    path.write_bytes(good)
    index = build.build([str(path)], checksum="sample")
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    problem = found(path, index, checksums=True)["checksum"]
    assert "sample '0', bytes [0, " in problem.message


def test_every_kind_has_a_level_and_a_fix() -> None:
    for kind in KINDS:
        problem = Problem(kind, "a b.tar", "x\ny", 5)
        assert problem.level in ("error", "warning")
        assert "{" not in problem.fix
        assert problem.message == "a b.tar: x y at byte 5"
        assert json.loads(json.dumps(problem.to_json()))["kind"] == kind
    assert Problem("truncated", "a b.tar", "x").fix == "wds-index repair 'a b.tar' OUT"
