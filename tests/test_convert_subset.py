"""Subsets and other orders of shards, copied by their byte ranges."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
import webdataset
from convert_helpers import everything, go, keys, put, run, samples, shards
from helpers import make_tar

import wdstools
from wdstools import build, comparison
from wdstools.convert import subset
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.convert.plan import make_plan
from wdstools.errors import QueryError, SourceError, StaleIndexError
from wdstools.index import Index

SAMPLES = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of webdataset, with a PAX header before every member, their index, and a table of losses."""
    folder = tmp_path_factory.mktemp("old")
    rng = random.Random(0)
    with webdataset.ShardWriter(f"{folder}/a-%06d.tar", maxcount=17, verbose=0) as sink:
        for i in rng.sample(range(SAMPLES), SAMPLES):
            sink.write({"__key__": f"x/{i:03d}", "bin": rng.randbytes(rng.randrange(3000)), "cls": i % 7})
    build.refresh(f"{folder}/a.wdsindex", sorted(map(str, folder.glob("*.tar"))), lift=["cls"])
    table = pa.table({"key": [f"x/{i:03d}" for i in range(SAMPLES)], "loss": [(i * 37 % 60) / 10 for i in range(60)]})
    pyarrow.csv.write_csv(table, folder / "losses.csv")
    return folder


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """A copy of it, dated a minute ago."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name, data in everything(made).items():
        (folder / name).write_bytes(data)
        about = (made / name).stat()
        os.utime(folder / name, ns=(about.st_atime_ns - 60 * 10**9, about.st_mtime_ns - 60 * 10**9))
    return folder


def loss(key: str) -> float:
    return (int(key[2:]) * 37 % 60) / 10


def copied(old: Path, out: Path) -> None:
    """Every sample of `out` has the bytes that it had, headers included, and the index says where."""
    before, after = Index.load(old / "a.wdsindex"), Index.load(next(out.glob("*.wdsindex")))
    assert not comparison.check(after)
    for row in range(len(after)):
        (was,) = before.find(after.key(row))
        _, a, start, end = before.locate(was)
        _, b, begin, stop = after.locate(row)
        mine = Path(after.shards.url[b]).read_bytes()[begin:stop]
        assert mine == Path(before.shards.url[a]).read_bytes()[start:end]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_condition(old: Path, tmp_path: Path, workers: int) -> None:
    summary = go(old / "a.wdsindex", tmp_path / "out/h-%06d.tar", where="cls in (2, 3)", maxcount=5, workers=workers)
    wanted = [key for key in keys(old) if int(key[2:]) % 7 in (2, 3)]
    assert keys(tmp_path / "out") == wanted  # in the order of the index
    assert summary.samples == len(wanted)
    assert samples(tmp_path / "out") == {key: samples(old)[key] for key in wanted}
    copied(old, tmp_path / "out")
    assert wdstools.open(str(tmp_path / "out/h.wdsindex")).to_arrow()["cls"].to_pylist() == [
        int(key[2:]) % 7 for key in wanted
    ]


def test_the_hardest_ones(old: Path, tmp_path: Path) -> None:
    code, _, err = run(
        old / "a.wdsindex", f"{tmp_path}/out/hard-%06d.tar", "--join", old / "losses.csv", "--where", "loss > 2",
        "--sort-by", "loss", "--desc", "--sample", "0.5", "--column", "loss", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = keys(tmp_path / "out")
    assert len(found) == 20  # of 39
    assert [loss(key) for key in found] == sorted(map(loss, found), reverse=True)
    assert min(map(loss, found)) > 2
    copied(old, tmp_path / "out")
    index = Index.load(tmp_path / "out/hard.wdsindex")
    assert index.lifted() == ["loss"]
    assert index.table["loss"].to_pylist() == list(map(loss, found))


def test_a_sample_of_so_many(old: Path, tmp_path: Path) -> None:
    whole = keys(old)
    drawn = []
    for number, options in enumerate([{"sample": 20}, {"sample": 20}, {"sample": 20, "seed": 1}, {"sample": 60}]):
        go(old / "a.wdsindex", tmp_path / f"{number}", **options)
        drawn.append(keys(tmp_path / f"{number}"))
        assert drawn[-1] == [key for key in whole if key in set(drawn[-1])]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(d) for d in drawn] == [20, 20, 20, 60]


def test_shuffled_and_split(old: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"where": "cls < 6", "splits": (("a", 0.5), ("b", 0.5)), "by": "cls", "shuffle": True}
    go(old / "a.wdsindex", tmp_path / "out", **options)
    a, b = (keys(tmp_path / "out", name) for name in "ab")
    assert sorted(a + b) == sorted(key for key in keys(old) if int(key[2:]) % 7 < 6)
    assert abs(len(a) - len(b)) <= 1
    assert a != sorted(a)
    assert {key: samples(old)[key] for key in a} == samples(tmp_path / "out", "a")


def test_fields_are_changed_too(old: Path, tmp_path: Path) -> None:
    # what is not copied whole keeps the order that was asked for, all the same
    options: dict[str, Any] = {"where": "cls = 2", "sort_by": "key", "descending": True, "drop": frozenset({"cls"})}
    go(old / "a.wdsindex", tmp_path / "out", **options)
    wanted = sorted((key for key in keys(old) if int(key[2:]) % 7 == 2), reverse=True)
    assert keys(tmp_path / "out") == wanted
    assert samples(tmp_path / "out") == {key: {"bin": samples(old)[key]["bin"]} for key in wanted}


def test_sizes_are_those_of_the_plan(old: Path, tmp_path: Path) -> None:
    options = Options(where="cls < 5", maxsize=20_000)
    ready = make_plan(str(old / "a.wdsindex"), str(tmp_path / "out/x-%06d.tar"), options)
    assert ready.shards is not None
    convert(str(old / "a.wdsindex"), str(tmp_path / "out/x-%06d.tar"), options)
    assert len(ready.shards[0]) > 3
    for plan in ready.shards[0]:
        assert os.path.getsize(plan.path) == plan.nbytes <= 20_000


def test_a_run_that_was_stopped_goes_on(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"where": "cls < 5", "maxcount": 4, "join": (str(old / "losses.csv"),), "sort_by": "loss"}
    go(old / "a.wdsindex", tmp_path / "whole/x-%06d.tar", **options)
    copy, count = subset.Spans.copy, 0

    def fail(self: subset.Spans, row: int, file: Any) -> None:
        nonlocal count
        count += 1
        if count == 15:
            raise KeyboardInterrupt
        copy(self, row, file)

    with monkeypatch.context() as patch:
        patch.setattr(subset.Spans, "copy", fail)
        with pytest.raises(KeyboardInterrupt):
            go(old / "a.wdsindex", tmp_path / "out/x-%06d.tar", **options, workers=1)
    summary = go(old / "a.wdsindex", tmp_path / "out/x-%06d.tar", **options)
    assert summary.kept == 3
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def moved(old: Path, change: str) -> str:
    """Make the index stale: the shard stays as large as it was."""
    path = old / "a-000001.tar"
    data = bytearray(path.read_bytes())
    index = Index.load(old / "a.wdsindex")
    row = index.shards.nsamples[0] + 3
    start = index.locate(row)[2]
    if change == "another sample":
        other = bytes(data).replace(index.key(row).encode(), b"x/999")
        data[:] = make_checksums(other)
    elif change == "another end":
        _, _, begin, stop = index.locate(row + 1)
        data[start : start + stop - begin] = data[begin:stop]
    elif change == "no header":
        data[start : start + 512] = b"z" * 512
    else:
        data += bytes(512)
    path.write_bytes(data)
    return index.key(row)


def make_checksums(data: bytes) -> bytes:
    """Headers whose names were changed get the checksum that they need."""
    found = bytearray(data)
    for at in range(0, len(found), 512):
        block = found[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            found[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(found)


@pytest.mark.parametrize("change", ["another sample", "another end", "no header", "another size"])
def test_a_stale_index(old: Path, tmp_path: Path, change: str) -> None:
    moved(old, change)
    with pytest.raises(StaleIndexError) as caught:
        go(old / "a.wdsindex", tmp_path / "out", where="cls < 9", on_error="skip")
    assert "a.wdsindex" in str(caught.value)
    assert "a-000001.tar" in str(caught.value)
    assert not any(path.name == "out-000000.tar" for path in shards(tmp_path / "out"))


def test_a_shard_that_is_cut_while_it_is_read(old: Path, tmp_path: Path) -> None:
    ready = make_plan(str(old / "a.wdsindex"), str(tmp_path / "out"), Options(where="cls < 9"))
    entry = ready.entries[len(ready.entries) - 1]
    span = ready.listing.fields(entry)
    span.source._access.files.get(3)
    os.truncate(old / "a-000003.tar", 1024)
    from wdstools.writer import ShardFile

    file = ShardFile(tmp_path / "x.tar")
    try:
        with pytest.raises(StaleIndexError, match=r"a-000003\.tar.*truncated"):
            span.source.copy(span.row, file)
    finally:
        file.abort()


def test_two_samples_with_one_key(tmp_path: Path) -> None:
    for number in range(2):
        data = make_tar([("k.txt", b"%d" % number), (f"m{number}.txt", b"")])
        put(tmp_path / "in", {f"a-{number}.tar": data})
    build.refresh(str(tmp_path / "in/a.wdsindex"), [str(tmp_path / f"in/a-{n}.tar") for n in range(2)])
    with pytest.raises(SourceError, match="two samples with one key: 'k'"):
        go(tmp_path / "in/a.wdsindex", tmp_path / "out", where="true")
    summary = go(tmp_path / "in/a.wdsindex", tmp_path / "out", where="true", on_error="skip")
    assert [item.key for item in summary.skipped] == ["k"]
    assert samples(tmp_path / "out") == {"k": {"txt": b"0"}, "m0": {"txt": b""}, "m1": {"txt": b""}}


def test_a_key_that_leaves_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.tar": make_tar([("../up.txt", b"1"), ("ok.txt", b"2")])})
    with pytest.raises(SourceError, match="leaves its folder"):
        go(tmp_path / "in/a.tar", tmp_path / "out", where="true")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"where": "nothing > 2"}, QueryError, "nothing"),
        ({"where": "cls > 7"}, SourceError, "no sample is left"),
        ({"sort_by": "nothing"}, QueryError, "nothing"),
        ({"sample": 61}, SourceError, "there are 60 samples"),
        ({"descending": True}, SourceError, "--desc is for --sort-by"),
        ({"join": ("nowhere.csv",)}, FileNotFoundError, "nowhere"),
    ],
)
def test_what_cannot_be(old: Path, tmp_path: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        go(old / "a.wdsindex", tmp_path / "out", **options)


def test_only_of_shards_with_an_index(old: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--where, --join"):
        go(f"pipe:cat {old}/a-000000.tar", tmp_path / "out", where="cls = 1")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/a.txt").write_text("x")
    with pytest.raises(SourceError, match="--where is for shards"):
        go(tmp_path / "flat", tmp_path / "out", where="cls = 1")


@pytest.mark.parametrize("value", ["0", "1.5", "x", "0.0", "-1"])
def test_parts_that_are_none(old: Path, tmp_path: Path, value: str) -> None:
    code, _, err = run(old / "a.wdsindex", tmp_path / "out", f"--sample={value}")
    assert code == 2
    assert "neither a number" in err
