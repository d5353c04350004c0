"""DALI's index: golden text, what the format cannot say, DALI's own script and reader."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from helpers import make_tar
from hypothesis import given, settings
from indexing import Files, touch
from interoping import PAIRS, RICH, digest, export, imported, indexed, needs_readers, read_with, same, shards

from wdstools.errors import IndexFileError, ShardError, StaleIndexError, UnsupportedError
from wdstools.interop import dali, members
from wdstools.interop.formats import read_claims

GOLDEN = """v1.2 5
JPG 512 700 a/0.JPG cls 2048 1 a/0.cls
txt 4096 0 b.txt
seg.png 4608 512 c.seg.png
"""


def exported(folder: Path, files: list[tuple[str, bytes]]) -> str:
    index = indexed(folder, [files])
    return Path(export(index, "dali").paths[0]).read_text()


def test_golden(tmp_path: Path) -> None:
    assert exported(tmp_path, RICH[0]) == GOLDEN.replace("v1.2 5", "v1.2 3")


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("d/t-0.tar", "d/t-0.idx"),
        ("d.e/t.x.tar", "d.e/t.idx"),
        (".t.tar", ".t.idx"),
        ("t", "t.idx"),
        ("d/t", "d/t.idx"),
    ],
)
def test_where_dali_looks(shard: str, index: str) -> None:
    assert dali.index_path(shard) == index


def test_white_space(tmp_path: Path) -> None:
    """In names it costs the names; in fields there is no way."""
    text = exported(tmp_path / "a", [("a b.jpg", b"1"), ("c.jpg", b"2")])
    assert text == "v1.1 2\njpg 512 1\njpg 1536 1\n"
    written = export(indexed(tmp_path / "b", [[("a\u00a0b.jpg", b"1")]]), "dali")
    assert (written.notes, Path(written.paths[0]).read_text()) == ([], "v1.2 1\njpg 512 1 a\u00a0b.jpg\n")
    for name in ("a.j pg", "a.", "a.\tx"):
        with pytest.raises(UnsupportedError, match="no way to say the field"):
            exported(tmp_path / "c", [("b.txt", b""), (name, b"1")])
        assert not (tmp_path / "c" / "t-000000.idx").exists()


@settings(max_examples=30, deadline=None)
@given(shards(spaces=True))
def test_with_a_walk_and_without_one(sets: list[Files]) -> None:
    """The index says which shards need none; both ways write the same."""
    with tempfile.TemporaryDirectory() as name:
        index = indexed(Path(name), sets)
        plain = [all("." in n and n[n.rfind(".") :].islower() and "JPG" not in n for n, _ in files) for files in sets]
        assert index.shards.exact == list(map(int, plain))
        written = [Path(path).read_bytes() for path in export(index, "dali").paths]
        index.shards.exact = [0] * len(sets)
        assert [Path(path).read_bytes() for path in export(index, "dali", overwrite=True).paths] == written


@pytest.mark.parametrize("change", ["name", "size", "type", "cut", "garbage", "last"])
def test_a_shard_that_is_another_one_but_for_size_and_mtime(tmp_path: Path, change: str) -> None:
    index = indexed(tmp_path, [[(f"{i}.jpg", b"1" * 600) for i in range(3)]])
    assert index.shards.exact == [1]
    path = Path(index.shards.url[0])
    files = [(f"{i}.jpg", b"1" * 600) for i in range(3)]
    number = 2 if change == "last" else 1
    files[number] = ("x.jpg", files[number][1]) if change in ("name", "last") else files[number]
    files[1] = (files[1][0], b"1" * 601) if change == "size" else files[1]
    data = bytearray(make_tar(files))
    if change == "garbage":
        data[1536 : 1536 + 512] = bytes(range(256)) * 2
    if change == "type":
        data[1536 + 156] = ord("5")
        data[1536 + 148 : 1536 + 156] = b"%06o\0 " % (sum(data[1536:2048]) - sum(data[1684:1692]) + 8 * 32)
    if change == "cut":
        del data[2000:]
    about = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(ShardError if change == "cut" else StaleIndexError, match=r"t-000000\.tar"):
        export(index, "dali")
    assert not (tmp_path / "t-000000.idx").exists()


def test_a_copy_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a shard whose index is from before the flag, says what cannot be, or does not know the mtime."""
    index = indexed(tmp_path)
    walked = []
    walk = members.read_members
    monkeypatch.setattr(members, "read_members", lambda url: walked.append(url) or walk(url))
    written = [Path(path).read_bytes() for path in export(index, "dali").paths]
    assert not walked
    touch(index.shards.url[0])
    index.shards.mtime[1] = 0
    index.shards.exact[2] = 0
    assert [Path(path).read_bytes() for path in export(index, "dali", overwrite=True).paths] == written
    assert sorted(walked) == index.shards.url


ATTACKS = {
    "": "line 1: not a DALI index",
    "v1.3 1\njpg 512 1 a.jpg\n": "line 1: not a DALI index",
    "v1.2 -1\n": "line 1",
    "v1.2 99999999999999999999999\n": "line 1",
    "v1.2 1000000000000\n": "says 1000000000000 samples and has 0",
    "v1.2 2\njpg 512 1 a.jpg\n": "says 2 samples and has 1",
    "v1.2 1\njpg 512 1 a.jpg\ncls 1536 1 a.cls\n": "says 1 samples and has 2",
    "v1.2 1\njpg 512 1 a.jpg": "says 1 samples and has 1|lines",
    "v1.2 1\njpg 512 1\n": "line 2: 3 words, not 4",
    "v1.2 1\n\n": "line 2: 0 words",
    "v1.2 1\njpg 0x200 1 a.jpg\n": "is no member",
    "v1.2 1\njpg 512 -1 a.jpg\n": "is no member",
    "v1.2 1\njpg 512 \u0661 a.jpg\n": "is no member",
    "v1.2 1\njpg 512 1 b.jpg\n": "'jpg' of 'a' at byte 512 with 1 bytes, where it has 'jpg' of 'b'",
    "v1.2 1\ncls 512 1 a.cls\n": "'jpg' of 'a'",
    "v1.2 1\njpg 1024 1 a.jpg\n": "where it has 'jpg' of 'a' at byte 1024",
    "v1.2 1\njpg 512 2 a.jpg\n": "with 2 bytes",
    "v1.2 1\njpg 9999999999999999999 9999999999999999999 a.jpg\n": "9999999999999999999",
    "v1.2 1\njpg 512 1 a.jpg txt 512 1 a.txt\n": "sample 0 has 1 fields, not 2",
    "v1.1 2\njpg 512 1\njpg 512 1\n": "it has 1 samples, not 2",
}


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks(tmp_path: Path, text: str) -> None:
    index = indexed(tmp_path, [[("a.jpg", b"1")]])
    Path(tmp_path / "t-000000.idx").write_text(text)
    with pytest.raises(IndexFileError, match=ATTACKS[text]) as caught:
        imported(read_claims("dali", index.shards.url), tmp_path / "again.wdsindex")
    assert "t-000000.idx" in str(caught.value)
    assert not (tmp_path / "again.wdsindex").exists()


def test_both_versions_and_loose_blanks(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[("a.JPG", b"1"), ("a.cls", b"2")]])
    for text in ("v1.1 1\nJPG 512 1 cls 1536 1\n", "v1.2   1\n JPG  512 1 a.JPG\tcls 1536 1 a.cls \n"):
        (tmp_path / "t-000000.idx").write_text(text)
        assert same(index, imported(read_claims("dali", index.shards.url), tmp_path / "again.wdsindex"))


def by_wds2idx(folder: Path, shards: list[str]) -> list[bytes]:
    paths = [folder / f"{i}.theirs" for i in range(len(shards))]
    read_with("wds2idx", {"shards": shards, "indexes": [str(path) for path in paths]}, LC_ALL="C.UTF-8")
    return [path.read_bytes() for path in paths]


@needs_readers
def test_wds2idx_writes_the_same_where_it_is_right(tmp_path: Path) -> None:
    shards = []
    for name, format in (("ustar", tarfile.USTAR_FORMAT), ("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
        sets = [[(n, d) for n, d in files if "." in n and not n.startswith("__")] for files in (*PAIRS, *RICH)]
        index = indexed(tmp_path / name, sets, format=format, mtime=1.5 if name == "pax" else 1e9)
        export(index, "dali")
        shards += index.shards.url
    for shard, theirs in zip(shards, by_wds2idx(tmp_path, shards), strict=True):
        assert Path(dali.index_path(shard)).read_bytes() == theirs


@needs_readers
def test_where_wds2idx_is_wrong(tmp_path: Path) -> None:
    """A GNU long name: it points at the header of the name. A name without a dot: a sample of its own, less a letter. A
    backslash: two. White space: a line that its reader takes for other members."""
    long = "d" * 120
    cases = {
        "long": ([(f"{long}.jpg", b"1")], tarfile.GNU_FORMAT, f"jpg 1536 1 {long}.jpg", f"jpg 512 1 {long}.jpg"),
        "dot": ([("a.jpg", b"1"), ("readme", b"2")], tarfile.USTAR_FORMAT, "jpg 512 1 a.jpg", "readme 1536 1 readme"),
        "back": ([("a\\b.jpg", b"1")], tarfile.USTAR_FORMAT, "jpg 512 1 a\\b.jpg", "jpg 512 1 a\\\\b.jpg"),
        "blank": ([("a b.jpg", b"1")], tarfile.USTAR_FORMAT, "jpg 512 1", "jpg 512 1 a b.jpg"),
    }
    shards, lines = [], []
    for name, (files, format, ours, theirs) in cases.items():
        index = indexed(tmp_path / name, [files], format=format)
        export(index, "dali")
        shards += index.shards.url
        lines.append((ours, theirs))
    for shard, data, (ours, theirs) in zip(shards, by_wds2idx(tmp_path, shards), lines, strict=True):
        assert Path(dali.index_path(shard)).read_text().splitlines()[-1] == ours
        assert data.decode().splitlines()[-1] == theirs
        Path(dali.index_path(shard)).write_bytes(data)
        if "/dot/" in shard:  # members that are no fields are left out
            assert read_claims("dali", [shard])[0].samples == [[("a", "jpg", 512, 1)]]
        else:
            with pytest.raises((IndexFileError, StaleIndexError), match=os.path.basename(shard)[:6]):
                imported(read_claims("dali", [shard]), tmp_path / "again.wdsindex")


@needs_readers
@pytest.mark.parametrize("blank", ["", " "])
def test_dali_reads_it(tmp_path: Path, blank: str) -> None:
    sets = [[(f"{blank}{name}", data) for name, data in files] for files in PAIRS]
    sets.append([("x" * 150 + "/0.jpg", b"long"), ("lone.cls", b"1")])
    index = indexed(tmp_path, sets, format=tarfile.GNU_FORMAT)
    paths = export(index, "dali").paths
    told = {"shards": index.shards.url, "indexes": paths, "fields": ["jpg", "cls"], "count": len(index)}
    want = []
    for row in range(len(index)):
        shard = Path(index.shards.url[index.locate(row)[1]]).read_bytes()
        fields = {f.ext: shard[f.offset : f.offset + f.nbytes] for f in index.fields(row)}
        want.append([digest(fields.get(name, b"")) for name in ("jpg", "cls")])
    assert read_with("dali", told) == want
