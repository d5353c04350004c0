"""open(): any sample, in any order, beside a list; and an index that is not of its shards is an error, never a wrong
sample."""

from __future__ import annotations

import gzip
import io
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import held
from helpers import make_tar, take
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import labelled, save, write_shards

import wdstools
from wdstools import Dataset, ShardWriter, access, build, indexfile
from wdstools.errors import (
    IndexFileError,
    KeyMissingError,
    NotFoundError,
    QueryError,
    ShardError,
    StaleIndexError,
    StoreError,
    UrlError,
    WdsError,
)
from wdstools.index import Index

Sample = dict[str, Any]


def write(folder: Path, n: int = 20, maxcount: int = 6, **options: Any) -> None:
    with ShardWriter(str(folder / "s-%03d.tar"), maxcount=maxcount, **options) as sink:
        for i in range(n):
            sink.write({"__key__": f"k{i:03d}", "bin": bytes([i % 251]) * (i * 37 % 2000), "cls": i})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def model(folder: Path) -> list[Sample]:
    """What tarfile says."""
    samples: list[Sample] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, ext = member.name.partition(".")
                if not samples or samples[-1]["__key__"] != key or samples[-1]["__url__"] != str(path):
                    samples.append({"__key__": key, "__url__": str(path), "__local_path__": str(path)})
                file = archive.extractfile(member)
                assert file is not None
                samples[-1][ext] = file.read()
    return samples


def plain(sample: Sample) -> Sample:
    return {k: bytes(v) if isinstance(v, memoryview) else v for k, v in sample.items()}


# what opens


def test_what_may_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    want = model(folder)
    pattern = f"{folder}/s-{{000..003}}.tar"
    paths = [f"{folder}/s-{i:03d}.tar" for i in range(4)]
    for shards in (folder, str(folder), folder / "s.wdsindex", pattern, paths, iter(paths), map(Path, paths)):
        got = wdstools.open(shards)
        assert isinstance(got, Dataset)
        assert got.index.path == str(folder / "s.wdsindex"), shards
        assert list(got) == want
    assert list(wdstools.open(f"file:{folder}/s.wdsindex")) == want
    monkeypatch.chdir(folder)
    for shards in (".", "s.wdsindex", "s-{000..003}.tar", [os.path.basename(p) for p in paths]):
        assert list(wdstools.open(shards)) == want
    assert not caplog.records
    assert repr(got) == "<Dataset of 20 samples in 4 shards>"


def test_some_of_the_shards(folder: Path) -> None:
    want = model(folder)
    some = wdstools.open([f"{folder}/s-003.tar", f"{folder}/s-001.tar"])
    assert some.index.path is not None
    assert [s["__key__"] for s in some] == [s["__key__"] for s in want[18:] + want[6:12]]
    assert some[0] == want[18]
    assert some["k007"] == want[7]
    with pytest.raises(KeyError):
        some["k000"]
    again = wdstools.open([f"{folder}/s-001.tar"] * 2)
    assert [s["__key__"] for s in again] == [s["__key__"] for s in want[6:12] * 2]


def test_without_an_index(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = model(folder)
    (folder / "s.wdsindex").unlink()
    caplog.set_level(logging.INFO)
    for shards in (folder, f"{folder}/s-{{000..003}}.tar"):
        caplog.clear()
        got = wdstools.open(shards)
        assert list(got) == want
        assert "no index for 4 shards" in caplog.text
        assert got[got.index.key(7)] == want[7]
    assert sorted(os.listdir(folder)) == [f"s-{i:03d}.tar" for i in range(4)], "nothing is written unasked"


def test_an_index_that_lacks_a_shard(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(folder / "s-000.tar", folder / "s-004.tar")
    got = wdstools.open(f"{folder}/s-{{000..004}}.tar")
    assert len(got) == 26
    assert "does not have" in caplog.text
    assert "s-004.tar" in caplog.text


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no index and no \.tar"):
        wdstools.open(tmp_path)
    for missing in (tmp_path / "x.wdsindex", tmp_path / "x.tar"):
        with pytest.raises(NotFoundError, match=missing.name):
            wdstools.open(missing)
    write(tmp_path)
    shutil.copy(tmp_path / "s.wdsindex", tmp_path / "t.wdsindex")
    with pytest.raises(WdsError, match=r"2 indexes \(s.wdsindex, t.wdsindex\)"):
        wdstools.open(tmp_path)
    (tmp_path / "t.wdsindex").write_bytes(b"ARROW1\0\0nonsense")
    with pytest.raises(IndexFileError, match=r"t\.wdsindex"):
        wdstools.open(tmp_path / "t.wdsindex")
    with pytest.raises(WdsError):
        wdstools.open([])


def test_compressed_shards_cannot_be_read_at_random(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").write_bytes(gzip.compress(make_tar([("a.x", b"1" * 5000)])))
    with pytest.raises(WdsError, match="compressed") as caught:
        wdstools.open(f"{tmp_path}/a-0.tar")[0]
    assert not isinstance(caught.value, StaleIndexError)


def test_pipes_cannot_be_read_at_random(folder: Path) -> None:
    with pytest.raises(UrlError, match="random access needs a local file"):
        wdstools.open(f"pipe:cat {folder}/s-000.tar")[0]


def test_an_empty_shard(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").write_bytes(bytes(1024))
    got = wdstools.open(tmp_path)
    assert len(got) == 0
    assert list(got) == list(got[:]) == got.fetch([]) == []
    with pytest.raises(IndexError, match="sample 0 of 0"):
        got[0]
    with pytest.raises(KeyMissingError):
        got["a"]


# what is asked of it


def test_numbers(folder: Path) -> None:
    got, want = wdstools.open(folder), model(folder)
    assert len(got) == len(want) == 20
    for i in range(-20, 20):
        assert got[i] == want[i]
        assert got[np.int64(i)] == want[i]
    for i in (20, -21, 10**30, -(10**30)):
        with pytest.raises(IndexError):
            got[i]
    with pytest.raises(TypeError):
        got[1.5]  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        got[None]  # type: ignore[call-overload]


slices = st.slices(20)


@given(slices, slices, st.lists(st.integers(-3, 3), max_size=5))
@settings(max_examples=60)
def test_slices(tmp_path_factory: pytest.TempPathFactory, a: slice, b: slice, numbers: list[int]) -> None:
    folder = shared(tmp_path_factory)
    got, want = wdstools.open(folder)[a][b], model(folder)[a][b]
    assert len(got) == len(want)
    assert list(got) == want
    assert list(got.keys()) == [s["__key__"] for s in want]
    for i in numbers:
        if -len(want) <= i < len(want):
            assert got[i] == want[i]
            assert got[want[i]["__key__"]] == want[i]
        else:
            with pytest.raises(IndexError):
                got[i]
    good = [i for i in numbers if -len(want) <= i < len(want)]
    assert got.fetch(good) == [want[i] for i in good]


_shared: dict[str, Path] = {}


def shared(factory: pytest.TempPathFactory) -> Path:
    if "folder" not in _shared:
        _shared["folder"] = factory.mktemp("dataset")
        write(_shared["folder"])
    return _shared["folder"]


def test_a_slice_copies_nothing(folder: Path) -> None:
    got = wdstools.open(folder)
    assert got[3:9].index is got.index
    assert isinstance(got[3:9].rows, range)


def test_keys(folder: Path) -> None:
    got, want = wdstools.open(folder), model(folder)
    for sample in want:
        assert got[sample["__key__"]] == sample
        assert sample["__key__"] in got
    with pytest.raises(KeyMissingError, match="no sample has the key 'k0l1'; near: k0") as caught:
        got["k0l1"]
    assert isinstance(caught.value, KeyError)
    assert "k999" not in got
    assert 3 not in got
    assert "" not in got
    assert "k\udcff" not in got
    assert "k003" not in got[5:]


def test_duplicate_keys(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"d-{i}.tar").write_bytes(make_tar([("same.cls", b"%d" % i), (f"own{i}.cls", b"x")]))
    got = wdstools.open(tmp_path)
    assert got["same"]["cls"] == b"0", "the first"
    assert got[1:]["same"]["cls"] == b"1", "the first of the view"
    assert got[::-1]["same"]["cls"] == b"2"
    assert got.index.duplicates() == {"same": [0, 2, 4]}


def test_fetch(folder: Path) -> None:
    got, want = wdstools.open(folder), model(folder)
    numbers = [random.Random(1).randrange(-20, 20) for _ in range(200)]
    assert got.fetch(numbers) == [want[i] for i in numbers]
    assert got.fetch(np.array([3, 3, 1])) == [want[3], want[3], want[1]]
    assert got.fetch(["k003", 5, "k001"]) == [want[3], want[5], want[1]]
    assert got.fetch([3, -3, True, np.int64(7)]) == [want[i] for i in (3, -3, 1, 7)]
    assert got[::-1].fetch([0, -1, "k003"]) == [want[-1], want[0], want[3]]
    assert got.fetch(i for i in (2, 1)) == [want[2], want[1]]
    twice = got.fetch([4, 4])
    assert twice[0] is not twice[1], "changing one does not change the other"
    with pytest.raises(IndexError):
        got.fetch([0, 20])
    with pytest.raises(KeyMissingError):
        got.fetch([0, "none"])


def test_more_shards_in_a_batch_than_may_be_open(tmp_path: Path) -> None:
    n = 3 * access.OPEN_FILES + 5
    for i in range(n):
        (tmp_path / f"s-{i:03}.tar").write_bytes(make_tar([(f"k{i}.cls", b"%d" % i), (f"l{i}.cls", b"%d" % i)]))
    got = wdstools.open(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(3):
        numbers = random.Random(seed).choices(range(2 * n), k=4 * n)
        samples = got.fetch(numbers)
        assert [sample["cls"] for sample in samples] == [b"%d" % (i // 2) for i in numbers]
        assert len(os.listdir("/proc/self/fd")) <= before + access.OPEN_FILES
    (tmp_path / "s-150.tar").unlink()
    got.fetch(range(2 * access.OPEN_FILES))  # it is not open any more
    with pytest.raises(NotFoundError, match=r"s-150\.tar"):
        got.fetch(range(2 * n))
    assert got.fetch([302])[0]["cls"] == b"151"


def test_an_index_that_is_read_and_not_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are found in the file by the reader itself, and their keys live as long as it needs them."""
    want = model(folder)
    monkeypatch.setattr(indexfile, "MAPPED", 0)
    got = wdstools.open(folder)
    numbers = random.Random(0).choices(range(20), k=200)
    assert got.fetch(numbers) == [want[i] for i in numbers]
    monkeypatch.setattr(got.index, "locate", None)  # now that shards are open and batches known, nobody asks Python
    assert got.fetch(numbers) == [got[i] for i in numbers] == [want[i] for i in numbers]


def test_fields_and_views(folder: Path) -> None:
    want = model(folder)
    for i, sample in enumerate(wdstools.open(folder, fields=["cls"])):
        assert sample == {k: v for k, v in want[i].items() if k != "bin"}
    assert list(wdstools.open(folder, fields=[])[3]) == ["__key__", "__url__", "__local_path__"]
    got = wdstools.open(folder, views=True)
    kept = [*got, *got.fetch(range(20)), got["k003"], got[3:][0]]
    assert all(isinstance(s["bin"], memoryview) and s["bin"].readonly for s in kept)
    assert [plain(s) for s in kept] == [*want, *want, want[3], want[3]]
    view = wdstools.open(folder, fields=["cls"], views=True)[4:6]
    assert plain(view[0]) == {k: v for k, v in want[4].items() if k != "bin"}, "a slice keeps both"


def test_where(tmp_path: Path) -> None:
    write(tmp_path, lift=["cls"])
    got = wdstools.open(tmp_path)
    assert [s["cls"] for s in got.where("cls % 7 = 3")] == [b"3", b"10", b"17"]
    assert list(got[::-1].where("cls < 3").keys()) == ["k002", "k001", "k000"], "in the order of the view"
    assert list(got[5:].where("cls < 7").where("cls > 5").keys()) == ["k006"]
    assert len(got.where("false")) == 0
    assert got.where("key = 'k004'")["k004"] == got[4]
    with pytest.raises(QueryError, match="columns:"):
        got.where("width > 3")


def test_a_large_one_beside_tarfile(tmp_path: Path) -> None:
    """Samples of every size, PAX names, more shards than one; every way of asking gives what tarfile gives."""
    draw = random.Random(3)
    for shard in range(3):
        files = []
        for i in range(200):
            key = f"{'deep/' * (i % 30)}{shard}-{i}"
            for ext in ("cls", "jpg", "seg.png")[: draw.randint(1, 3)]:
                files.append((f"{key}.{ext}", draw.randbytes(draw.choice([0, 1, 511, 512, 513, 3000, 70_000]))))
        (tmp_path / f"l-{shard}.tar").write_bytes(make_tar(files, tarfile.PAX_FORMAT if shard else tarfile.GNU_FORMAT))
    want = model(tmp_path)
    for views in (False, True):
        got = wdstools.open(tmp_path, views=views)
        assert len(got) == len(want) == 600
        for i in draw.sample(range(600), 300):
            assert plain(got[i]) == want[i]
            assert plain(got[want[i]["__key__"]]) == want[i]
        assert [plain(s) for s in got[100:400:3]] == want[100:400:3]
        rows = Dataset(got.index, np.array(draw.sample(range(600), 50)), views=views)
        assert [plain(s) for s in rows] == [want[int(r)] for r in rows.rows]


# an index that is stale

HEADERS = {"key": (b"k", 0), "size": (b"7", 134), "checksum": (b"1", 150)}


def change(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_shard_of_another_size(folder: Path) -> None:
    path = folder / "s-001.tar"
    got = wdstools.open(folder)
    for size in (path.stat().st_size + 512, path.stat().st_size - 512, 0):
        os.truncate(path, size)
        fresh = wdstools.open(folder)
        assert fresh[0]["cls"] == b"0", "the other shards are right"
        for ask in (fresh.__getitem__, fresh[:8].__getitem__):
            with pytest.raises(StaleIndexError, match=r"s\.wdsindex.*s-001\.tar.*wds-index build"):
                ask(7)
    with pytest.raises(StaleIndexError):
        got[7]


def test_a_shard_that_is_not_there(folder: Path) -> None:
    (folder / "s-001.tar").unlink()
    got = wdstools.open(folder)
    assert got[0]["cls"] == b"0"
    with pytest.raises(NotFoundError, match=r"s-001\.tar"):
        got[7]
    with pytest.raises(NotFoundError):
        list(got)


def replaced(folder: Path, files: list[tuple[str, bytes]]) -> Dataset:
    """The dataset after s-000.tar has become another tar of the same size."""
    path = folder / "s-000.tar"
    data = make_tar(files)
    data = data[: data.rindex(b"ustar") // 512 * 512 + 1024]
    assert len(data) + 1024 <= path.stat().st_size
    path.write_bytes(data + bytes(path.stat().st_size - len(data)))
    return wdstools.open(folder)


OTHERS: dict[str, list[tuple[str, bytes]]] = {
    "other keys": [(f"x{i:03d}.{e}", b"") for i in range(4) for e in ("bin", "cls")],
    "other order": [(f"k{i:03d}.{e}", b"") for i in (3, 2, 1, 0) for e in ("bin", "cls")],
    "one field only": [(f"k{i:03d}.cls", b"1") for i in range(8)],
    "more fields": [(f"k{i:03d}.{e}", b"") for i in range(4) for e in "abcd"],
    "larger": [(f"k{i:03d}.{e}", b"1" * 900) for i in range(3) for e in ("bin", "cls")],
    "nothing": [("a.x", b"")],
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_shard_that_changed_and_kept_its_size(what: str, folder: Path) -> None:
    got = replaced(folder, OTHERS[what])
    true = model(folder)
    for i in range(6):
        key = f"k{i:03d}"
        samples, error = take(got[i : i + 1])
        if error:
            assert isinstance(error, StaleIndexError)
            assert "s.wdsindex" in str(error)
            assert "s-000.tar" in str(error)
            continue
        (sample,) = samples
        assert sample["__key__"] == key
        (here,) = [s for s in true if s["__key__"] == key]
        fields = {k: v for k, v in sample.items() if k[:2] != "__"}
        assert fields.items() <= here.items(), "never bytes of another sample"
    with pytest.raises(StaleIndexError):
        list(got)


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_does_not_fit(what: str, folder: Path) -> None:
    got = wdstools.open(folder)
    _, _, start, _ = got.index.locate(2)
    data, at = HEADERS[what]
    path = folder / "s-000.tar"
    if what == "key":  # a sound header, of another key
        block = bytearray(path.read_bytes()[start : start + 512])
        block[0:4] = b"z002"
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        change(path, start, bytes(block))
    else:
        change(path, start + at, data)
    for ask in (lambda: got[2], lambda: got.fetch([2]), lambda: got[1:][1], lambda: got["k002"]):
        with pytest.raises(StaleIndexError, match=r"s\.wdsindex: does not describe .*s-000\.tar"):
            ask()
    assert got[1]["cls"] == b"1", "the others are right"


def test_another_payload_is_read_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Headers that fit are all that the index promises; that the shard is another one is said once."""
    got = wdstools.open(folder)
    place = next(f for f in got.index.fields(1) if f.ext == "cls")
    change(folder / "s-000.tar", place.offset, b"9")
    got = wdstools.open(folder)
    assert got[1]["cls"] == b"9"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "s.wdsindex" in caplog.text
    assert "s-000.tar has been copied or changed" in caplog.text
    os.utime(folder / "s-001.tar")
    list(got)
    assert len(caplog.records) == 1


def test_copied_shards_are_read(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("copy") / "c"
    shutil.copytree(folder, other, copy_function=shutil.copyfile)
    got = wdstools.open(other)
    assert [s["cls"] for s in got] == [s["cls"] for s in model(folder)]
    assert got[0]["__local_path__"] == str(other / "s-000.tar")


# processes, threads, descriptors


def test_pickled(folder: Path) -> None:
    want = model(folder)
    for got in (
        wdstools.open(folder),
        wdstools.open(folder)[3:17:2],
        wdstools.open(folder, fields=["cls"], views=True),
    ):
        got[0]
        again = pickle.loads(pickle.dumps(got))
        assert [plain(s) for s in again] == [plain(s) for s in got]
        assert len(pickle.dumps(got)) < 2000, "the name of the index, not the index"
    (folder / "s.wdsindex").unlink()
    memory = wdstools.open(folder)[::2]
    assert list(pickle.loads(pickle.dumps(memory))) == want[::2]


def test_forked(folder: Path) -> None:
    got, want = wdstools.open(folder), model(folder)
    got[0]
    out, into = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        good = [got[i] for i in range(20)] == want
        os.write(into, b"good" if good else b"bad")
        os._exit(0)
    assert [got[i] for i in range(20)] == want
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(out, 10) == b"good"
    os.close(out)
    os.close(into)


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "OPEN_FILES", 2)
    write(tmp_path, n=60, maxcount=3)
    got, want = wdstools.open(tmp_path), model(tmp_path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            i = draw.randrange(60)
            if got[i] != want[i]:
                wrong.append(i)
        wrong.extend(i for i, s in enumerate(got.fetch(range(60))) if s != want[i])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_many_shards_and_few_descriptors(tmp_path: Path) -> None:
    write(tmp_path, n=300, maxcount=1)
    want = model(tmp_path)
    before = held()[0]
    got = wdstools.open(tmp_path)
    assert list(got) == want
    assert held()[0] <= before + access.OPEN_FILES + 1
    order = random.Random(2).sample(range(300), 300)
    assert [got[i] for i in order] == [want[i] for i in order]
    assert held()[0] <= before + access.OPEN_FILES + 1
    del got
    assert held()[0] <= before


def test_a_sample_outlives_its_dataset(folder: Path) -> None:
    sample = wdstools.open(folder, views=True)[3]
    assert plain(sample) == model(folder)[3]


def test_a_dataset_in_a_cycle(folder: Path) -> None:
    """The collector frees it, as after every exception whose traceback holds one. (CPython before 3.11.10 and 3.12.6
    crashes where it clears a memoryview that something else still exports: gh-77894.)"""
    code = (
        "import gc, sys, wdstools\n"
        "for views in (False, True):\n"
        "    for _ in range(20):\n"
        "        held = [wdstools.open(sys.argv[1], views=views)]\n"
        "        held.append(held)\n"
        "        held[0].itself, sample = held[0], held[0][3]\n"
        "        del held\n"
        "        gc.collect()\n"
        "        assert bytes(sample['cls']) == b'3'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_errors_hold_no_descriptors(folder: Path) -> None:
    (folder / "x-0.tar").write_bytes(b"nonsense" * 500)
    before = held()[0]
    for _ in range(10):
        with pytest.raises(ShardError):
            wdstools.open(f"{folder}/x-0.tar")
        with pytest.raises(StoreError):
            wdstools.open(f"{folder}/none.tar")
    assert held()[0] <= before


def test_an_index_made_by_hand(folder: Path) -> None:
    index = build.build([str(p) for p in sorted(folder.glob("*.tar"))][::-1])
    got = Dataset(index)
    assert got[0]["__key__"] == "k018"
    assert Dataset(Index.load(folder / "s.wdsindex"), range(3, 6))[0]["__key__"] == "k003"
    assert io.BytesIO(got["k000"]["bin"]).read() == b""


def test_opening_a_shard_that_is_another_size(tmp_path: Path, no_leaks: None) -> None:
    shards = write_shards(tmp_path, [labelled(["1"], prefix=f"p{i}/") for i in range(3)])
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    fd, path = access.open_shard(index, 1)
    os.close(fd)
    assert path == shards[1]
    os.truncate(shards[1], 512)
    with pytest.raises(StaleIndexError, match=r"t\.wdsindex: does not describe .*-000001\.tar any more: 512"):
        access.open_shard(index, 1)
    os.unlink(shards[1])
    with pytest.raises(NotFoundError):
        access.open_shard(index, 1)
