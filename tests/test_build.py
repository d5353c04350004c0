"""Building, refreshing and checking indexes."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import make_tar
from indexing import (
    fields_of,
    labelled,
    model,
    naive_hash,
    random_files,
    rows_of,
    save,
    touch,
    with_column_added,
    write_shards,
)

from wdstools import build, comparison, errors, shardindex
from wdstools.dataset import Dataset
from wdstools.index import Index


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, [random_files(i, prefix=f"p{i}/") for i in range(4)])


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read, from now on."""
    seen: list[str] = []
    before = shardindex.index_shard

    def spy(url: str, **options: Any) -> Index:
        seen.append(os.path.basename(url))
        return before(url, **options)

    monkeypatch.setattr(build, "index_shard", spy)
    return seen


@pytest.mark.parametrize("workers", [1, 2, 8, None])
def test_any_number_of_workers(shards: list[str], workers: int | None) -> None:
    steps: list[int] = []
    index = build.build(shards, workers=workers, progress=steps.append)
    assert rows_of(index) == model([Path(path).read_bytes() for path in shards])
    assert index.shards.url == shards
    assert sorted(steps) == sorted(index.shards.nbytes) == sorted(os.path.getsize(path) for path in shards)
    assert index.shards.mtime == [os.stat(path).st_mtime_ns for path in shards]
    assert sum(index.shards.nmembers) >= sum(len(row.fields) for row in rows_of(index))


def test_the_order_is_that_of_the_shards_given(shards: list[str]) -> None:
    index = build.build(shards[::-1])
    assert rows_of(index) == model([Path(path).read_bytes() for path in shards[::-1]])


def test_hashes_are_those_of_the_keys_in_order(shards: list[str]) -> None:
    table = build.build(shards).table
    hashes = [naive_hash(key) for key in table.column("key").to_pylist()]
    assert table.column("_hash").to_pylist() == sorted(hashes)
    assert [hashes[row] for row in table.column("_row").to_pylist()] == sorted(hashes)


def test_a_broken_shard_is_named_with_its_offset(shards: list[str]) -> None:
    data = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(data[:1024])
    with pytest.raises(errors.TruncatedError, match=r"t-000002\.tar: .* at byte 1024"):
        build.build(shards)
    os.unlink(shards[2])
    with pytest.raises(errors.NotFoundError, match=r"t-000002\.tar"):
        build.build(shards)


def test_the_same_shard_twice(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for again in (shards[0], "t-000000.tar", "./t-000000.tar", f"file://{shards[0]}"):
        with pytest.raises(errors.IndexFileError, match=r"t-000000\.tar is there more than once"):
            build.build([*shards, again])


# ------------------------------------------------------------------------------------------------------------- refresh


def test_refresh_of_what_has_not_changed_is_the_index_itself(
    shards: list[str], scanned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    scanned.clear()
    monkeypatch.chdir(tmp_path)
    for given in (shards, [os.path.basename(path) for path in shards], [f"file://{path}" for path in shards]):
        built = build.refresh(str(tmp_path / "new.wdsindex"), given, previous=index)
        assert (built.index is index, built.reused, scanned) == (True, 4, [])


@pytest.mark.parametrize("change", ["size", "mtime", "both", "gone and back"])
def test_refresh_reads_what_changed(shards: list[str], scanned: list[str], tmp_path: Path, change: str) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    scanned.clear()
    about = os.stat(shards[1])
    if change != "mtime":
        Path(shards[1]).write_bytes(make_tar(labelled(["1"] * 9, prefix="new")))
    if change == "size":
        os.utime(shards[1], ns=(about.st_atime_ns, about.st_mtime_ns))
    else:
        touch(shards[1], 1e-9)
    if change == "gone and back":
        os.unlink(shards[1])
        write_shards(tmp_path, [labelled(["2"])], first=1)
    built = build.refresh(str(tmp_path / "new.wdsindex"), shards, previous=index)
    assert (built.reused, scanned) == (3, ["t-000001.tar"])
    assert rows_of(built.index) == rows_of(build.build(shards)) == model([Path(p).read_bytes() for p in shards])
    assert built.index.shards.mtime[1] == os.stat(shards[1]).st_mtime_ns


def test_refresh_with_shards_added_removed_and_moved(shards: list[str], scanned: list[str], tmp_path: Path) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    more = write_shards(tmp_path, [random_files(7)], first=4)
    wanted = [shards[3], more[0], shards[0], shards[2]]
    scanned.clear()
    built = build.refresh(str(tmp_path / "new.wdsindex"), wanted, previous=index)
    assert (built.reused, scanned) == (3, ["t-000004.tar"])
    assert rows_of(built.index) == model([Path(p).read_bytes() for p in wanted])
    assert built.index.shards.url == wanted
    built.index.validate()
    assert comparison.check(built.index) == []
    for key in [row.key for row in rows_of(built.index)]:
        assert built.index.find(key) == [r for r in range(len(built.index)) if built.index.key(r) == key]
    assert build.refresh(str(tmp_path / "new.wdsindex"), shards[:2], previous=index).reused == 2


def test_refresh_with_columns(tmp_path: Path, scanned: list[str]) -> None:
    """Columns that are there are taken over, others are read from the shards that have not changed, too."""
    paths = write_shards(tmp_path, [labelled(["1", "2"]), labelled(["3"], prefix="t")])
    index = save(build.build(paths), tmp_path / "t.wdsindex")
    with_cls = build.refresh(str(tmp_path / "new.wdsindex"), paths, previous=index, lift=["cls"])
    scanned.clear()
    assert (with_cls.reused, with_cls.index.table.column("cls").to_pylist()) == (2, [1, 2, 3])
    joined = with_column_added(with_cls.index, "score", [0.5, None, 2.5])
    again = build.refresh(str(tmp_path / "new.wdsindex"), paths, previous=joined, lift=["txt", "score", "cls"])
    assert (again.reused, again.index.lifted(), scanned) == (2, ["txt", "score", "cls"], [])
    assert again.index.table.column("score").to_pylist() == [0.5, None, 2.5]
    assert again.index.table.column("txt").to_pylist() == ["text"] * 3
    assert build.refresh(str(tmp_path / "new.wdsindex"), paths, previous=again.index, lift=["cls"]).index.lifted() == [
        "cls"
    ]
    touch(paths[0])
    last = build.refresh(str(tmp_path / "new.wdsindex"), paths, previous=joined, lift=["cls", "score"])
    assert last.index.table.column("score").to_pylist() == [None, None, 2.5]
    assert last.index.table.column("cls").to_pylist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["key", "fields", "_hash", "_row", "", "json:"])
def test_columns_that_cannot_be(shards: list[str], name: str) -> None:
    with pytest.raises(errors.IndexFileError, match="column"):
        build.build(shards, lift=[name])
    with pytest.raises(errors.IndexFileError, match="column"):
        build.refresh(shards[0] + ".new", shards, lift=[name])
    with pytest.raises(errors.IndexFileError, match="column"):
        shardindex.index_shard(shards[0], lift=[name])


# ---------------------------------------------------------------------------------------------------- shards elsewhere


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_shards_behind_http_and_pipes(shards: list[str], server: str, tmp_path: Path) -> None:
    remote = [f"{server}/{os.path.basename(path)}" for path in shards[:2]]
    index = save(build.build([*remote, f"pipe:cat {shards[2]}"]), tmp_path / "t.wdsindex")
    assert rows_of(index) == rows_of(build.build(shards[:3]))
    assert index.shards.url == [*remote, f"pipe:cat {shards[2]}"]
    assert [mtime > 0 for mtime in index.shards.mtime] == [True, True, False]
    assert comparison.check(index, run_pipes=True) == []
    built = build.refresh(str(tmp_path / "new.wdsindex"), index.shards.url, previous=index)
    assert built.reused == 0
    with pytest.raises(errors.ShardError, match="plain local shards only"):
        build.build(remote, lift=["cls"])
    with pytest.raises(errors.StoreError, match="ignores Range"):
        Dataset(index)[0]
    with pytest.raises(errors.UrlError, match="random access needs a local file"):
        Dataset(index)[-1]  # the pipe
    with pytest.raises(errors.NotFoundError, match="404"):
        build.build([f"{server}/no.tar"])
    with pytest.raises(errors.PipeError, match="no such thing"):
        build.build(["pipe:echo no such thing >&2; exit 3"])


def test_compressed_shards_are_indexed_but_not_opened(shards: list[str], tmp_path: Path) -> None:
    path = tmp_path / "z.tar.gz"
    with open(shards[0], "rb") as plain, gzip.open(path, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    index = build.build([str(path)])
    assert rows_of(index) == rows_of(build.build(shards[:1]))
    assert comparison.check(index) == []
    with pytest.raises(errors.UrlError, match=r"z\.tar\.gz: random access needs a plain tar"):
        Dataset(index)[0]


def test_samples_through_an_index_after_refresh(shards: list[str], tmp_path: Path) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    write_shards(tmp_path, [labelled(["9"])], first=1)
    index = build.build(shards, previous=index)
    assert fields_of(Dataset(index), "s0") == {"txt": b"text", "cls": b"9"}
