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
    build_of,
    fields_of,
    labelled,
    model,
    naive_hash,
    random_files,
    rows_of,
    save,
    touch,
    with_column,
    with_column_added,
    write_shards,
)

from wdstools import build, errors
from wdstools.dataset import Dataset
from wdstools.index import Index
from wdstools.shardtable import Shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, [random_files(i, prefix=f"p{i}/") for i in range(4)])


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read, from now on."""
    seen: list[str] = []
    before = build.index_shard

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
    assert build.check(built.index) == []
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
        build.index_shard(shards[0], lift=[name])


def test_columns_given_twice_are_one(tmp_path: Path) -> None:
    index = build_of(tmp_path, [labelled(["1"])], lift=["cls", "txt", "cls"])
    assert index.lifted() == ["cls", "txt"]
    assert build.index_shard(index.shards.url[0], lift=["cls", "cls"]).lifted() == ["cls"]


# --------------------------------------------------------------------------------------------------------------- check


def test_check_of_what_is_right(shards: list[str], tmp_path: Path) -> None:
    steps: list[int] = []
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    assert build.check(index, progress=steps.append) == []
    assert sum(steps) == sum(index.shards.nbytes)
    touch(shards[0])
    assert build.check(index) == []  # it is read, and is what it was


def files() -> list[tuple[str, bytes]]:
    return [("a.txt", b"one"), ("a.cls", b"1"), ("readme", b""), ("b.txt", b"two"), ("b.cls", b"2")]


CHANGES: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "renamed": ([("c" + n[1:] if n[0] == "a" else n, d) for n, d in files()], "sample 0: key is 'c'"),
    "renamed field": ([(n.replace("a.cls", "a.inx"), d) for n, d in files()], "sample 0: fields is .*inx"),
    "other size": ([(n, d * 2) for n, d in files()], "sample 0: fields is .*'nbytes': 6"),
    "other order": ([files()[i] for i in (3, 4, 2, 0, 1)], "sample 0: key is 'b'"),
    "one split": ([("a.txt", b""), ("x.cls", b""), *files()[2:]], "3 samples, where the index has 2"),
    "one fewer": (files()[:4] + [("b", b"")], "sample 1: end is"),
    "member gone": (files()[:2] + files()[3:], "4 members, where the index has 5|bytes, where"),
    "member more": ([*files(), ("more", b"")], "members, where|bytes, where"),
    "other gap": ([files()[0], files()[2], files()[1], *files()[3:]], "sample 0: end is"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_finds(tmp_path: Path, what: str) -> None:
    others = write_shards(tmp_path, [labelled(["1"], prefix="o")], first=1)
    (path,) = write_shards(tmp_path, [files()])
    index = save(build.build([others[0], path]), tmp_path / "t.wdsindex")
    write_shards(tmp_path, [CHANGES[what][0]])
    (problem,) = build.check(index)
    assert isinstance(problem, errors.StaleIndexError)
    assert f"{tmp_path}/t.wdsindex: {path}: " in str(problem)
    with pytest.raises(errors.StaleIndexError, match=CHANGES[what][1]):
        raise problem


def test_check_finds_shards_that_are_cut_longer_or_gone(shards: list[str], tmp_path: Path) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    os.truncate(shards[0], 700)
    with open(shards[1], "ab") as file:
        file.write(b"\0" * 512)
    os.unlink(shards[3])
    found = build.check(index, workers=2)
    assert [type(error) for error in found] == [errors.TruncatedError, errors.StaleIndexError, errors.NotFoundError]
    assert "bytes, where the index has" in str(found[1])


def test_check_finds_numbers_that_are_wrong_in_the_index(shards: list[str]) -> None:
    index = build.build(shards)
    ends = index.table.column("end").to_pylist()
    starts = index.table.column("start").to_pylist()
    hashes = index.table.column("_hash").to_pylist()
    wrong = {
        "start": [starts[0], *(s + 512 if i == 0 else s for i, s in enumerate(starts[1:]))],
        "_hash": [hashes[0] - 1, *hashes[1:]],
    }
    for name, values in wrong.items():
        (problem,) = build.check(Index(with_column(index, name, values), index.shards))
        assert isinstance(problem, errors.IndexFileError)
    (problem,) = build.check(Index(with_column(index, "end", ends[1:] + ends[:1]), index.shards))
    assert "lies outside of its shard" in str(problem) or "overlap" in str(problem)
    for name, less in (("nbytes", 512), ("nmembers", 1)):
        s = index.shards
        table = Shards(**vars(s) | {name: [getattr(s, name)[0] + less, *getattr(s, name)[1:]]})
        (problem,) = build.check(Index(index.table, table))
        assert f"{'bytes' if less > 1 else 'members'}, where the index has" in str(problem)


def test_commands_that_an_index_names_are_not_run(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [labelled(["1"])])
    index = save(build.build([f"pipe:touch {tmp_path}/ran; cat {path}"]), tmp_path / "t.wdsindex")
    assert rows_of(index) == rows_of(build.build([path]))
    os.unlink(tmp_path / "ran")
    (problem,) = build.check(index)
    assert isinstance(problem, errors.UrlError)
    assert not (tmp_path / "ran").exists()
    assert build.check(index, run_pipes=True) == []
    assert (tmp_path / "ran").exists()


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
    assert build.check(index, run_pipes=True) == []
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
    assert build.check(index) == []
    with pytest.raises(errors.UrlError, match=r"z\.tar\.gz: random access needs a plain tar"):
        Dataset(index)[0]


def test_names_that_are_no_utf8_have_no_place(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(make_tar([("a\udcff.txt", b"")]))
    with pytest.raises(errors.ShardError, match="not UTF-8"):
        build.build([str(path)])


def test_fields_in_capitals_that_only_python_lowers(tmp_path: Path) -> None:
    index = build_of(tmp_path, [[("a.ÄÖ", b"x"), ("b.äö", b"y"), ("b.TXT", b"z")]])
    assert [[f.ext for f in index.fields(row)] for row in range(2)] == [["äö"], ["äö", "txt"]]


def test_exact_is_what_has_no_other_members_and_no_capitals(tmp_path: Path) -> None:
    sets = [["a.jpg", "a.cls"], ["a.JPG"], ["a.\u00c9"], ["a.jpg", "readme"], ["a.jpg", "__x__/y.txt"], ["A/B.jpg"], []]
    paths = []
    for number, names in enumerate(sets):
        paths.append(str(tmp_path / f"{number}.tar"))
        Path(paths[-1]).write_bytes(make_tar([(name, b"1") for name in names]))
    index = build.build(paths)
    assert index.shards.exact == [1, 0, 0, 0, 0, 1, 1]
    index.save(tmp_path / "t.wdsindex")
    index = Index.load(tmp_path / "t.wdsindex")
    assert index.shards.exact == [1, 0, 0, 0, 0, 1, 1]
    touch(paths[0])
    assert build.build(paths, previous=index).shards.exact == index.shards.exact
    assert build.check(index) == []
    index.shards.exact = [1] * len(sets)
    assert [error.args[0].split(".tar")[0][-1] for error in build.check(index)] == ["1", "2", "3", "4"]


def test_opening_a_shard_that_is_another_size(shards: list[str], tmp_path: Path, no_leaks: None) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    fd, path = build.open_shard(index, 1)
    os.close(fd)
    assert path == shards[1]
    os.truncate(shards[1], 512)
    with pytest.raises(errors.StaleIndexError, match=r"t\.wdsindex: does not describe .*-000001\.tar any more: 512"):
        build.open_shard(index, 1)
    os.unlink(shards[1])
    with pytest.raises(errors.NotFoundError):
        build.open_shard(index, 1)


def test_numbers_of_shards(shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build.build(shards)
    monkeypatch.chdir(tmp_path)
    assert build.shard_numbers(index, ["t-000002.tar", shards[0]]) == [2, 0]
    with pytest.raises(errors.NotFoundError, match=r"does not have other\.tar"):
        build.shard_numbers(index, ["other.tar"])


def test_samples_through_an_index_after_refresh(shards: list[str], tmp_path: Path) -> None:
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    write_shards(tmp_path, [labelled(["9"])], first=1)
    index = build.build(shards, previous=index)
    assert fields_of(Dataset(index), "s0") == {"txt": b"text", "cls": b"9"}
