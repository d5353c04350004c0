"""ShardWriter: what it writes others read, bytes are the same every time, and a shard is whole or not there."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from conftest import held, no_more
from hypothesis import given, settings
from hypothesis import strategies as st

import wdstools
from wdstools import ShardWriter, tar
from wdstools.build import build
from wdstools.comparison import check
from wdstools.errors import DestinationError, EncodeError, SourceError
from wdstools.index import Index
from wdstools.shardnames import check_pattern, existing_shards
from wdstools.writer import Packer, ShardFile, part_name, sample_nbytes

Sample = dict[str, Any]


def sample(i: int, nbytes: int = 100) -> Sample:
    return {"__key__": f"{i:04d}", "bin": bytes([i % 256]) * nbytes, "cls": i}


def write(pattern: Path | str, samples: Any, **options: Any) -> None:
    with ShardWriter(str(pattern), **options) as sink:
        for s in samples:
            sink.write(s)


def failing(n: int, kind: type[BaseException]) -> Iterator[Sample]:
    yield from map(sample, range(n))
    raise kind


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def keys(folder: Path) -> list[list[str]]:
    return [[s["__key__"] for s in wdstools.stream(path)] for path in sorted(folder.glob("*.tar"))]


# what is in them


def test_read_back_by_everybody(tmp_path: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    samples = [
        {"__key__": f"dir/{i:03d}", "png": image + i, "cls": i, "json": {"i": i}, "txt": "grün", "__url__": "old",
         "_hidden": object()}
        for i in range(25)
    ]  # fmt: skip
    write(tmp_path / "t-%03d.tar", samples, maxcount=10)
    assert names(tmp_path) == ["t-000.tar", "t-001.tar", "t-002.tar", "t.wdsindex"]
    pattern = f"{tmp_path}/t-{{000..002}}.tar"
    got = list(wdstools.stream(pattern))
    assert [s["__key__"] for s in got] == [s["__key__"] for s in samples]
    assert list(got[3])[-4:] == ["cls", "json", "png", "txt"], "fields are sorted"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        theirs = list(webdataset.WebDataset(pattern, shardshuffle=False))
        decoded = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "txt"))
    assert theirs == got
    for i, (png, cls, txt) in enumerate(decoded):
        assert np.array_equal(png, image + i)
        assert (cls, txt) == (i, "grün")
    with tarfile.open(tmp_path / "t-001.tar") as archive:
        members = archive.getmembers()
        assert [m.name for m in members[:4]] == [f"dir/010.{f}" for f in ("cls", "json", "png", "txt")]
        assert {(m.mtime, m.mode & 0o444, m.type) for m in members} == {(tar.MTIME, 0o444, b"0")}
        assert not any(m.pax_headers for m in members)


def test_as_webdataset_writes(tmp_path: Path) -> None:
    samples = [{"__key__": f"{i}", "cls": i, "a.npy": np.arange(i), "txt.gz": "x" * i, "B": b""} for i in range(9)]
    write(tmp_path / "ours-%d.tar", samples)
    with webdataset.TarWriter(str(tmp_path / "theirs-0.tar"), mtime=0) as sink:
        for s in samples:
            sink.write(s)

    def fields(name: str) -> list[Sample]:
        return [{k: v for k, v in s.items() if k[:2] != "__"} for s in wdstools.stream(tmp_path / name)]

    ours, theirs = fields("ours-0.tar"), fields("theirs-0.tar")
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("txt.gz")[:3] == b.pop("txt.gz")[:3] == b"\x1f\x8b\x08"  # theirs has the time in it
        assert a == b
    assert (tmp_path / "ours-0.tar").stat().st_size < (tmp_path / "theirs-0.tar").stat().st_size


GOLDEN = "cfa5bf24aed62bd4671e9e78c68eb97d1998b20bf2162e78733493b42872ba8c"


def test_golden_bytes(tmp_path: Path) -> None:
    """The same samples give the same bytes in every version: a change here is one of everybody's shards."""
    write(tmp_path / "g-%06d.tar", [{"__key__": "d/a", "txt": "text", "cls": 1}, {"__key__": "b", "x": b"1" * 600}])
    data = (tmp_path / "g-000000.tar").read_bytes()
    assert len(data) == 512 * (2 + 2 + 3 + 2)
    assert data[:7] == b"d/a.cls"
    assert data[257:265] == b"ustar\x0000"
    assert data.endswith(bytes(1024))
    assert not data.endswith(bytes(2048)), "no padding to a record of 10 kB"
    assert hashlib.sha256(data).hexdigest() == GOLDEN


def test_pax_only_where_a_name_needs_it(tmp_path: Path) -> None:
    cases = {"short": 1, "n" * 96: 1, "d" * 150 + "/" + "n" * 90: 1, "n" * 97: 3, "ü" * 49: 3, "d" * 300 + "/n": 3}
    for i, (key, blocks) in enumerate(cases.items()):
        write(tmp_path / f"p{i}-%d.tar", [{"__key__": key, "cls": 1}])
        data = (tmp_path / f"p{i}-0.tar").read_bytes()
        assert len(data) == 512 * (blocks + 1 + 2), key
        assert (b"PaxHeader" in data or data[156:157] == b"x") == (blocks == 3)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == [f"{key}.cls"]
        assert [s["__key__"] for s in wdstools.stream(tmp_path / f"p{i}-0.tar")] == [key]


def test_a_header_of_ten_gigabytes() -> None:
    """ustar holds sizes below 8 GiB."""
    nbytes = 10 << 30
    assert len(tar.format_header("a.bin", (8 << 30) - 1)) == 512
    data = tar.format_header("a.bin", nbytes, 7)
    assert len(data) == 3 * 512
    with tarfile.open(fileobj=io.BytesIO(data + bytes(2048))) as archive:
        member = archive.firstmember  # type: ignore[attr-defined]
    assert (member.name, member.size, member.mtime) == ("a.bin", nbytes, 7)


field_names = st.text("abcXY_.", min_size=1, max_size=4).filter(lambda name: name[0] != "_")


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(field_names, st.binary(max_size=900), max_size=4), max_size=12),
    st.integers(1, 5),
    st.integers(1500, 9000),
)  # fmt: skip
def test_random_samples(
    tmp_path_factory: pytest.TempPathFactory, fields: list[dict[str, bytes]], maxcount: int, maxsize: int
) -> None:
    folder = tmp_path_factory.mktemp("w")
    written = []
    with ShardWriter(str(folder / "r-%03d.tar"), maxcount=maxcount, maxsize=maxsize) as sink:
        for i, one in enumerate(fields):
            try:
                sink.write({"__key__": f"{i}", **one})
            except SourceError:
                assert not one or len({f.lower() for f in one}) < len(one), (
                    "only nothing, and one name twice, are refused"
                )
            else:
                written.append((f"{i}", dict(sorted(one.items()))))
    shards = sorted(folder.glob("*.tar"))
    got = []
    for path in shards:
        count = 0
        for s in wdstools.stream(path):
            got.append((s["__key__"], {k: v for k, v in s.items() if k[:2] != "__"}))
            count += 1
        assert 1 <= count <= maxcount
        assert path.stat().st_size <= maxsize or count == 1
    assert got == [(key, {f.lower(): v for f, v in one.items()}) for key, one in written]
    if shards:
        index = Index.load(folder / "r.wdsindex")
        assert check(index) == []
        assert index.table.equals(build([str(path) for path in shards]).table)


# limits


def test_maxcount(tmp_path: Path) -> None:
    write(tmp_path / "c-%02d.tar", map(sample, range(7)), maxcount=3)
    assert [len(k) for k in keys(tmp_path)] == [3, 3, 1]


@pytest.mark.parametrize("maxsize", [1, 3000, 5120, 5121, 20_000, 1e5])
def test_maxsize_is_that_of_the_file(maxsize: float, tmp_path: Path) -> None:
    write(tmp_path / "s-%03d.tar", [sample(i, 40 * i) for i in range(40)], maxsize=maxsize)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    counts = [len(k) for k in keys(tmp_path)]
    assert sum(counts) == 40
    for i, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        assert size <= maxsize or count == 1
        if i + 1 < len(sizes):  # the first of the next would not have fit
            first = sample_nbytes("0000", {"bin": 40 * sum(counts[: i + 1]), "cls": 2})
            assert size + first > maxsize


def test_packer_agrees(tmp_path: Path) -> None:
    """The plan of wds-shard and the C writer end shards at the same samples."""
    sizes = [(i * 7919) % 3000 for i in range(60)]
    packer, plan = Packer(9, 12_000), [0]
    for i, n in enumerate(sizes):
        if packer.add(sample_nbytes(f"{i:04d}", {"bin": n})):
            plan.append(i)
    samples = ({"__key__": f"{i:04d}", "bin": bytes(n)} for i, n in enumerate(sizes))
    write(tmp_path / "s-%03d.tar", samples, maxcount=9, maxsize=12_000)
    assert [int(k[0]) for k in keys(tmp_path)] == plan
    for arguments in ((0, None), (None, 0), (-1, 5)):
        with pytest.raises(ValueError, match="must be positive"):
            Packer(*arguments)


def test_bad_limits(tmp_path: Path) -> None:
    for options in ({"maxcount": 0}, {"maxsize": 0}, {"start_shard": -1}):
        with pytest.raises(ValueError, match="must"):
            ShardWriter(str(tmp_path / "a-%d.tar"), **options)  # type: ignore[arg-type]
    assert names(tmp_path) == []


def test_write_returns_the_bytes_in_the_shard(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "a-%d.tar")) as sink:
        total = sum(sink.write(sample(i)) for i in range(5))
        assert sink.total == 5
    assert (tmp_path / "a-0.tar").stat().st_size == total + tar.END_MARKER


def test_a_shard_without_a_sample_does_not_appear(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "a-%d.tar")) as sink:
        with pytest.raises(SourceError):
            sink.write({"__key__": "a.b", "cls": 1})
    assert names(tmp_path) == []


def test_nothing_written_is_nothing_there(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a-%d.tar", [])
    assert names(tmp_path / "d") == []


# patterns and destinations


@pytest.mark.parametrize(
    "pattern",
    ["a.tar", "a-%s.tar", "a-%x.tar", "a-%i.tar", "a-%5d.tar", "a-%+d.tar", "a-%d-%d.tar", "%d/a.tar", "%d/a-%d.tar",
     "a-%%d.tar", "a-%", "", "pipe:cat > a-%d.tar", "s3://b/a-%d.tar", "file:/tmp/a-%d.tar", "a-%d.tar.gz", "a-%d.tgz",
     "a-%d.tar.zst", "a-%(x)d.tar", "a-%d.tar\0"],
)  # fmt: skip
def test_patterns_that_are_none(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DestinationError, ValueError)) as caught:
        write(pattern, [sample(0)])
    assert isinstance(caught.value, DestinationError) or "\0" in pattern
    assert names(tmp_path) == []


NAMES = ["%d", "a-%06d.tar", "d%%/a%%-%d%%.tar", "./x/%d.tar", "d//.%d.tar", "a b{1,2}-[x]-%02d*.tar"]


@pytest.mark.parametrize("pattern", NAMES)
def test_patterns(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_pattern(pattern)
    assert existing_shards(pattern) == []
    write(pattern, map(sample, range(3)), maxcount=1)
    found = existing_shards(pattern)
    assert [os.path.normpath(p) for p in found] == [os.path.normpath(pattern % i) for i in range(3)]
    folder = Path(pattern % 0).parent
    assert len(names(folder)) == 4, "three shards and their index"
    assert [s["__key__"] for s in wdstools.open(folder)] == ["0000", "0001", "0002"]


def test_start_shard(tmp_path: Path) -> None:
    write(tmp_path / "a-%06d.tar", map(sample, range(3)), maxcount=2, start_shard=41)
    assert names(tmp_path) == ["a-000041.tar", "a-000042.tar", "a.wdsindex"]


def test_other_shards_are_not_touched_without_leave(tmp_path: Path) -> None:
    write(tmp_path / "a-%06d.tar", map(sample, range(4)), maxcount=1)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    for pattern in ("a-%06d.tar", "a-%d.tar"):
        with pytest.raises(DestinationError, match="overwrite"):
            write(tmp_path / pattern, [sample(9)], start_shard=90)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    (tmp_path / "a-x.tar").write_text("not ours")
    (tmp_path / "b-000001.tar").write_text("not ours")
    write(tmp_path / "a-%06d.tar", [sample(9)], overwrite=True)
    assert names(tmp_path) == ["a-000000.tar", "a-x.tar", "a.wdsindex", "b-000001.tar"]
    assert len(Index.load(tmp_path / "a.wdsindex")) == 1


def test_overwrite_takes_the_index_away_first(tmp_path: Path) -> None:
    """A run that fails leaves no index of shards that are gone."""
    write(tmp_path / "a-%d.tar", map(sample, range(4)), maxcount=1)
    with pytest.raises(LookupError):
        write(tmp_path / "a-%d.tar", failing(2, LookupError), maxcount=1, overwrite=True)
    assert names(tmp_path) == ["a-0.tar"]


def test_a_pattern_without_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a-%d.tar", [sample(0)])
    write("new/sub/a-%d.tar", [sample(0)])
    assert names(tmp_path) == ["a-0.tar", "a.wdsindex", "new"]
    assert Index.load("new/sub/a.wdsindex").shards.url == [str(tmp_path / "new/sub/a-0.tar")]


# the index


def test_index_options(tmp_path: Path) -> None:
    write(tmp_path / "a-%d.tar", map(sample, range(3)), index=None)
    assert names(tmp_path) == ["a-0.tar"]
    (tmp_path / "i").mkdir()
    write(tmp_path / "b-%d.tar", map(sample, range(9)), index=str(tmp_path / "i/x.wdsindex"), maxcount=4, lift=["cls"])
    index = Index.load(tmp_path / "i/x.wdsindex")
    assert index.table.column("cls").to_pylist() == list(range(9))
    assert check(index) == []
    assert [s["__key__"] for s in wdstools.open(tmp_path / "i/x.wdsindex")] == [f"{i:04d}" for i in range(9)]


def test_the_index_moves_with_its_shards(tmp_path: Path) -> None:
    write(tmp_path / "old" / "a-%d.tar", map(sample, range(9)), maxcount=4)
    (tmp_path / "old").rename(tmp_path / "new")
    dataset = wdstools.open(tmp_path / "new" / "a.wdsindex")
    assert dataset[8]["__local_path__"] == str(tmp_path / "new" / "a-2.tar")


def test_post(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    write(tmp_path / "a-%d.tar", map(sample, range(5)), maxcount=2, post=lambda p: seen.append((p, os.path.getsize(p))))
    assert [path for path, _ in seen] == [str(tmp_path / f"a-{i}.tar") for i in range(3)]
    assert all(size == os.path.getsize(path) for path, size in seen), "it is called with whole shards"


# errors

BAD_SAMPLES: dict[str, tuple[Sample, type[Exception], str]] = {
    "no key": ({"cls": 1}, SourceError, "__key__"),
    "key not text": ({"__key__": 7, "cls": 1}, SourceError, "__key__"),
    "empty key": ({"__key__": "", "cls": 1}, SourceError, "key"),
    "dot in key": ({"__key__": "a.b", "cls": 1}, SourceError, "a.b"),
    "metadata": ({"__key__": "__x__/a", "cls": 1}, SourceError, "__x__"),
    "nul": ({"__key__": "a\0b", "cls": 1}, SourceError, "NUL|key"),
    "twice": ({"__key__": "0001", "cls": 1}, SourceError, "0001"),
    "no fields": ({"__key__": "n", "__url__": "u"}, SourceError, "n"),
    "field with a slash": ({"__key__": "n", "a/b": b""}, SourceError, "a/b"),
    "one name twice": ({"__key__": "n", "JPG": b"", "jpg": b""}, SourceError, "(?i)jpg"),
    "nul in a field": ({"__key__": "n", "a\0": b""}, SourceError, "NUL|name|field"),
    "field not text": ({"__key__": "n", 3: b""}, TypeError, "int|field"),  # type: ignore[dict-item]
    "no encoder": ({"__key__": "n", "cls": 1, "xyz": 3}, EncodeError, "'xyz'.*int"),
    "refused": ({"__key__": "n", "a": b"x" * 9999, "json": {1, 2}}, EncodeError, "'json'.*set"),
    "pickle": ({"__key__": "n", "pyd": 3}, EncodeError, "allow_pickle"),
}


@pytest.mark.parametrize("what", BAD_SAMPLES)
def test_bad_samples_leave_the_shard_as_it_was(what: str, tmp_path: Path) -> None:
    bad, kind, text = BAD_SAMPLES[what]
    write(tmp_path / "want" / "a-%d.tar", map(sample, range(5)), maxcount=4)
    with ShardWriter(str(tmp_path / "a-%d.tar"), maxcount=4) as sink:
        if what != "twice":
            with pytest.raises(kind, match=text):
                sink.write(bad)
        for i in range(5):
            sink.write(sample(i))
            if i in (1, 3):  # 3: the shard is full
                if what == "twice" and i == 3:
                    continue
                with pytest.raises(kind, match=text):
                    sink.write(bad)
    for name in ("a-0.tar", "a-1.tar"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "want" / name).read_bytes()
    assert names(tmp_path) == ["a-0.tar", "a-1.tar", "a.wdsindex", "want"]


def test_a_key_may_come_again_in_another_shard(tmp_path: Path) -> None:
    write(tmp_path / "a-%d.tar", [sample(0), sample(1), sample(0)], maxcount=2)
    assert Index.load(tmp_path / "a.wdsindex").duplicates() == {"0000": [0, 2]}


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_whole_shards_only(kind: type[BaseException], tmp_path: Path) -> None:
    sink = ShardWriter(str(tmp_path / "a-%d.tar"), maxcount=3)
    with pytest.raises(kind), sink:
        list(map(sink.write, failing(8, kind)))
    assert names(tmp_path) == ["a-0.tar", "a-1.tar"]
    assert [len(k) for k in keys(tmp_path)] == [3, 3]
    with pytest.raises(ValueError, match="closed"):
        sink.write(sample(9))
    sink.close()
    assert names(tmp_path) == ["a-0.tar", "a-1.tar"], "and no index, which would be of a part"


def test_closed(tmp_path: Path) -> None:
    sink = ShardWriter(str(tmp_path / "a-%d.tar"))
    sink.write(sample(0))
    assert names(tmp_path) == [".a-0.tar.tmp"], "a shard appears when it is whole"
    sink.close()
    sink.close()
    with pytest.raises(ValueError, match="closed"):
        sink.write(sample(1))
    assert names(tmp_path) == ["a-0.tar", "a.wdsindex"]


def test_a_post_that_fails(tmp_path: Path) -> None:
    def post(path: str) -> None:
        raise LookupError(path)

    with pytest.raises(LookupError):
        write(tmp_path / "a-%d.tar", map(sample, range(5)), maxcount=2, post=post)
    assert names(tmp_path) == ["a-0.tar"]


@pytest.mark.usefixtures("no_leaks")
def test_a_column_that_cannot_be_lifted(tmp_path: Path) -> None:
    before = held()
    with pytest.raises(ValueError, match="key"):
        write(tmp_path / "a-%d.tar", map(sample, range(5)), lift=["key"])
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []
    assert no_more(held(), before)


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "a-%d.tar", [sample(0)], overwrite=True)
    with pytest.raises(OSError):
        write(tmp_path / "a-0.tar" / ".." / ".." / "none" / "\udcff\udcff" / ("x" * 300) / "a-%d.tar", [sample(0)])


# ShardFile


@pytest.mark.usefixtures("no_leaks")
def test_shard_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    source = tmp_path / "source.bin"
    source.write_bytes(b"s" * 3000)
    with ShardFile(path, part=True, sync=True) as shard:
        shard.metadata["wds.job"] = "7"
        shard.write("b", {"y": b"1", "x": (source, 3000)})
        shard.write("a", {"x": (source, -1)})
        assert (shard.nsamples, path.exists()) == (2, False)
        nbytes = shard.nbytes
    assert path.stat().st_size == nbytes
    got = list(wdstools.stream(path))
    assert [(s["__key__"], list(s)[-1], len(s["x"])) for s in got] == [("b", "y", 3000), ("a", "x", 3000)]
    part = Index.load(part_name(str(path)))
    assert part.metadata["wds.job"] == "7"
    assert check(part) == []
    shard.abort()
    assert path.exists(), "what is committed stays"


def test_shard_file_removed_on_an_exception(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "a.tar", part=True)
    shard.write("a", {"x": b"1"})
    with pytest.raises(LookupError), shard:
        raise LookupError
    assert names(tmp_path) == []


def test_sync_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1]
    )
    write(tmp_path / "a-%d.tar", map(sample, range(4)), maxcount=2, sync=True)
    assert [os.path.basename(p) for p in synced if p.endswith(".tar.tmp")] == [".a-0.tar.tmp", ".a-1.tar.tmp"]
    synced.clear()
    write(tmp_path / "b-%d.tar", map(sample, range(4)), maxcount=2)
    assert not [p for p in synced if "tar" in p]


# processes


def test_a_writer_is_not_pickled(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "a-%d.tar")) as sink:
        sink.write(sample(0))
        with pytest.raises((TypeError, AttributeError), match=r"(?i)pickle|local object"):
            pickle.dumps(sink)


def test_a_fork_in_the_middle(tmp_path: Path) -> None:
    """A child that inherits a writer and goes away does not disturb it."""
    with ShardWriter(str(tmp_path / "a-%d.tar")) as sink:
        sink.write(sample(0, 100_000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads and fork
            child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        sink.write(sample(1, 100_000))
    assert keys(tmp_path) == [["0000", "0001"]]
