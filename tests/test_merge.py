"""Merging indexes, in memory and on disk, against building all of it at once."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexing import build_of, labelled, model, random_files, rows_of, save, with_column_added, write_shards

from wdstools import build, errors
from wdstools import merge as room
from wdstools.dataset import Dataset
from wdstools.errors import SourceError
from wdstools.index import Index
from wdstools.merge import merge, merge_files


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, [random_files(i, prefix=f"p{i}/") for i in range(4)])


def test_merge_is_building_at_once(shards: list[str]) -> None:
    parts = [build.build(shards[2:3]), build.build(shards[:2]), build.build(shards[3:])]
    merged = merge(parts)
    order = [shards[2], *shards[:2], shards[3]]
    assert rows_of(merged) == rows_of(build.build(order)) == model([Path(path).read_bytes() for path in order])
    assert merged.shards == build.build(order).shards
    merged.validate()
    nested = merge([merge(parts[:2]), merge(parts[2:])])
    assert nested.table.equals(merged.table)


def test_merge_of_one_is_itself(shards: list[str]) -> None:
    index = build.build(shards)
    assert merge([index]) is index


def test_merge_twice_the_same(shards: list[str]) -> None:
    with pytest.raises(errors.IndexFileError, match=r"t-000001\.tar is there more than once"):
        merge([build.build(shards[:2]), build.build(shards[1:])])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["1", "2"], ["3"], [1, 2, 3]),
        (["1", "2"], ["0.5"], [1.0, 2.0, 0.5]),
        (["1", "2"], ["cat"], ["1", "2", "cat"]),
        (["cat", "2"], ["3"], ["cat", "2", "3"]),
        (["1", None], [None], [1, None, None]),
        ([None, None], ["cat"], [None, None, "cat"]),
        (["1.5", "2.5"], ["cat"], ["1.5", "2.5", "cat"]),
        (["007", "1"], ["2"], ["007", "1", "2"]),
    ],
)
def test_columns_of_shards_that_differ(tmp_path: Path, first: Any, second: Any, expected: Any) -> None:
    for lists in ([first, second], [second, first]):
        folder = tmp_path / str(lists is not None and lists[0] is first)
        folder.mkdir()
        shards = [labelled(labels, prefix=f"p{i}/") for i, labels in enumerate(lists)]
        found = build_of(folder, shards, lift=["cls"]).table.column("cls").to_pylist()
        assert found == (expected if lists[0] is first else [*expected[len(first) :], *expected[: len(first)]])
        assert {type(v) for v in found if v is not None} == {type(v) for v in expected if v is not None}


def test_merge_with_a_column_that_only_one_has(tmp_path: Path) -> None:
    a, b = write_shards(tmp_path, [labelled(["1"]), labelled(["2"], prefix="t")])
    merged = merge([build.build([a], lift=["cls"]), build.build([b], lift=["txt"])])
    assert merged.lifted() == ["cls", "txt"]
    assert merged.view().select(["cls", "txt"]).to_pylist() == [{"cls": 1, "txt": None}, {"cls": None, "txt": "text"}]


def test_merge_of_columns_that_no_type_holds(tmp_path: Path) -> None:
    a, b = write_shards(tmp_path, [labelled(["1"]), labelled(["2"], prefix="t")])
    parts = [with_column_added(build.build([a]), "box", [[1, 2]]), with_column_added(build.build([b]), "box", ["no"])]
    with pytest.raises(errors.IndexFileError, match=r"box has types that do not go together: .*list.*string"):
        merge(parts)


def test_merge_keeps_wide_keys(shards: list[str]) -> None:
    index = build.build(shards[:1])
    wide = Index(index.table.set_column(0, "key", index.table.column("key").cast(pa.large_utf8())), index.shards)
    merged = merge([wide, build.build(shards[1:])])
    assert rows_of(merged) == rows_of(build.build(shards))


# ------------------------------------------------------------------------------------------------------------- on disk


def files_of(indexes: list[Index], folder: Path) -> list[str]:
    return [str(save(index, folder / f"part{i}.wdsindex").path) for i, index in enumerate(indexes)]


def test_files_give_what_memory_gives(shards: list[str], tmp_path: Path) -> None:
    parts = [build.build([shard], lift=["cls"]) for shard in shards]
    before = set(os.listdir(tmp_path))
    paths = files_of(parts, tmp_path)
    merge_files(paths, str(tmp_path / "all.wdsindex"), lambda found: {"told": str(len(found))})
    found = Index.load(tmp_path / "all.wdsindex")
    found.validate()
    assert found.metadata == {"told": "4"}
    assert found.table.equals(merge(parts).table)
    assert rows_of(found) == model([Path(path).read_bytes() for path in shards])
    assert set(os.listdir(tmp_path)) - before == {"all.wdsindex", *map(os.path.basename, paths)}


@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    batch=st.integers(1, 12),
    spill=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_any_batches_and_spills(
    sizes: list[int], batch: int, spill: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However small the batches, and however soon hashes go to disk: the same rows, and every key is found."""
    folder = tmp_path_factory.mktemp("merge")
    rng = random.Random(seed)
    shards = []
    for size in sizes:
        keys = rng.sample(range(12), size)  # the same keys in many shards
        shards.append([(f"{key}.bin", bytes([key])) for key in keys])
    paths = write_shards(folder, shards)
    parts = [build.build([path]) for path in paths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "BATCH_ROWS", batch)
        patch.setattr(room, "SPILL_ROWS", spill)
        merge_files(files_of(parts, folder), str(folder / "all.wdsindex"))
    found = Index.load(folder / "all.wdsindex")
    found.validate()
    assert [b.num_rows for b in found.table.to_batches()][:-1] == [batch] * ((len(found) - 1) // batch)
    assert rows_of(found) == model([Path(path).read_bytes() for path in paths])
    dataset = Dataset(found)
    assert [dataset[row]["__key__"] for row in range(len(found))] == [found.key(row) for row in range(len(found))]
    for key in map(str, range(13)):
        assert found.find(key) == [row for row in range(len(found)) if found.key(row) == key]


@given(
    rows=st.lists(st.lists(st.integers(0, 30), max_size=6, unique=True), min_size=2, max_size=6),
    batch=st.integers(1, 12),
    spill=st.integers(1, 30),
)
def test_unique_keys(rows: list[list[int]], batch: int, spill: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A key of two shards is found whatever batches and spills are, and named with both; nothing else is refused."""
    folder = tmp_path_factory.mktemp("unique")
    paths = write_shards(folder, [[(f"{key}.bin", b"") for key in keys] for keys in rows])
    parts = files_of([build.build([path]) for path in paths], folder)
    every = [key for keys in rows for key in keys]
    twice = {key for key in every if every.count(key) > 1}
    out = folder / "all.wdsindex"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "BATCH_ROWS", batch)
        patch.setattr(room, "SPILL_ROWS", spill)
        if not twice:
            merge_files(parts, str(out), unique=True)
            assert len(Index.load(out)) == len(every)
            return
        with pytest.raises(SourceError, match="two samples with one key") as caught:
            merge_files(parts, str(out), unique=True)
    assert not out.exists()
    told = re.search(r"key: '(\d+)' is in (\S+) and in (\S+): give each a key of its own$", str(caught.value))
    assert told
    first, second = (rows[paths.index(path)] for path in told.groups()[1:])
    assert int(told[1]) in twice
    assert int(told[1]) in first
    assert int(told[1]) in second


def test_keys_with_one_hash_are_two(shards: list[str], tmp_path: Path) -> None:
    """What counts are keys: hashes that are made equal refuse nothing."""
    parts = []
    for path in shards:
        index = build.build([path])
        same = pa.array(np.full(len(index), 7, np.uint64))
        table = index.table.set_column(index.table.column_names.index("_hash"), "_hash", same)
        parts.append(Index(table, index.shards))
    merge_files(files_of(parts, tmp_path), str(tmp_path / "all.wdsindex"), trusted=True, unique=True)
    assert len(Index.load(tmp_path / "all.wdsindex")) == sum(map(len, parts))


def test_a_merge_that_fails_leaves_nothing(shards: list[str], tmp_path: Path) -> None:
    paths = files_of([build.build([shard]) for shard in shards], tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(errors.IndexFileError, match="more than once"):
        merge_files([*paths, paths[0]], str(tmp_path / "all.wdsindex"))
    with pytest.raises(errors.NotFoundError):
        merge_files([*paths, "nowhere.wdsindex"], str(tmp_path / "all.wdsindex"))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_part_that_is_not_sound_is_refused(shards: list[str], tmp_path: Path) -> None:
    index = build.build(shards[:1])
    ends = pa.array([end + 1 for end in index.table.column("end").to_pylist()], pa.uint64())
    index.table = index.table.set_column(index.table.column_names.index("end"), "end", ends)
    paths = files_of([index, build.build(shards[1:])], tmp_path)
    with pytest.raises(errors.IndexFileError, match="part0"):
        merge_files(paths, str(tmp_path / "all.wdsindex"))
