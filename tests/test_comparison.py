"""An index beside its shards: whatever differs is found, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from indexing import (
    labelled,
    random_files,
    rows_of,
    save,
    touch,
    with_column,
    write_shards,
)

from wdstools import build, comparison, errors
from wdstools.index import Index
from wdstools.shardtable import Shards


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, [random_files(i, prefix=f"p{i}/") for i in range(4)])


def test_check_of_what_is_right(shards: list[str], tmp_path: Path) -> None:
    steps: list[int] = []
    index = save(build.build(shards), tmp_path / "t.wdsindex")
    assert comparison.check(index, progress=steps.append) == []
    assert sum(steps) == sum(index.shards.nbytes)
    touch(shards[0])
    assert comparison.check(index) == []  # it is read, and is what it was


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
    (problem,) = comparison.check(index)
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
    found = comparison.check(index, workers=2)
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
        (problem,) = comparison.check(Index(with_column(index, name, values), index.shards))
        assert isinstance(problem, errors.IndexFileError)
    (problem,) = comparison.check(Index(with_column(index, "end", ends[1:] + ends[:1]), index.shards))
    assert "lies outside of its shard" in str(problem) or "overlap" in str(problem)
    for name, less in (("nbytes", 512), ("nmembers", 1)):
        s = index.shards
        table = Shards(**vars(s) | {name: [getattr(s, name)[0] + less, *getattr(s, name)[1:]]})
        (problem,) = comparison.check(Index(index.table, table))
        assert f"{'bytes' if less > 1 else 'members'}, where the index has" in str(problem)


def test_commands_that_an_index_names_are_not_run(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [labelled(["1"])])
    index = save(build.build([f"pipe:touch {tmp_path}/ran; cat {path}"]), tmp_path / "t.wdsindex")
    assert rows_of(index) == rows_of(build.build([path]))
    os.unlink(tmp_path / "ran")
    (problem,) = comparison.check(index)
    assert isinstance(problem, errors.UrlError)
    assert not (tmp_path / "ran").exists()
    assert comparison.check(index, run_pipes=True) == []
    assert (tmp_path / "ran").exists()
