"""The file of an index: batches of any layout, those that lie, writers that meet; each mapped and read."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexing import as_file, index_of, metadata_of, rows_of, save, with_column

from wdstools import errors, indexfile
from wdstools.index import Index


@pytest.fixture(params=[1 << 27, 0], ids=["mapped", "read"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(indexfile, "MAPPED", request.param)
    return int(request.param)


def laid_out(index: Index, path: Path, sizes: Sequence[int], declared: str | None = None) -> Path:
    """Write an index in batches of these sizes."""
    metadata = metadata_of(index, str(path.parent)) | ({} if declared is None else {"wds.batch_rows": declared})
    table = index.table.replace_schema_metadata(metadata)
    whole = (table.combine_chunks().to_batches() or [empty(table.schema)])[0]  # one dictionary for all batches
    with pa.ipc.new_file(str(path), table.schema) as writer:
        first = 0
        for size in sizes:
            writer.write_batch(whole.slice(first, size))
            first += size
    assert first == len(index)
    return path


def empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


LAYOUT = st.lists(st.integers(0, 4), max_size=7)


@settings(max_examples=80, deadline=None)
@given(
    sizes=LAYOUT,
    limit=st.sampled_from([0, 1 << 27]),
    per_shard=st.integers(1, 5),
    data=st.data(),
)
def test_any_layout_without_a_declaration(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int, per_shard: int, data: st.DataObject
) -> None:
    n = sum(sizes)
    keys = data.draw(st.lists(st.text("ab", min_size=1, max_size=2), min_size=n, max_size=n))
    index = index_of(keys, per_shard)
    path = laid_out(index, tmp_path_factory.mktemp("t") / "t.wdsindex", sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexfile, "MAPPED", limit)
        found = Index.load(path)
    for row in data.draw(st.permutations(range(n))):
        assert found.locate(row) == index.locate(row)
    for key in {*keys, "nobody"}:
        assert found.find(key) == [row for row, k in enumerate(keys) if k == key]
    found.validate()
    assert found.table.to_pydict() == index.table.to_pydict()


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 17),
    size=st.integers(1, 18),
    limit=st.sampled_from([0, 1 << 27]),
    keys=st.lists(st.text("ab", min_size=1, max_size=2), min_size=17, max_size=17),
    data=st.data(),
)
def test_layouts_that_are_written(
    tmp_path_factory: pytest.TempPathFactory, n: int, size: int, limit: int, keys: list[str], data: st.DataObject
) -> None:
    """Batches of any size, the last of one row or more, keys that come again in other batches."""
    index, path = index_of(keys[:n], 3), tmp_path_factory.mktemp("t") / "t.wdsindex"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wdstools.index.BATCH_ROWS", size)
        patch.setattr(indexfile, "MAPPED", limit)
        found = save(index, path)
    for row in data.draw(st.permutations(range(n))):
        assert found.key(row) == keys[row]
        assert found.locate(row) == index.locate(row)
    for key in {*keys, "nobody"}:
        assert found.find(key) == [row for row, k in enumerate(keys[:n]) if k == key]
    assert [batch.num_rows for batch in found.table.to_batches()] == [size] * (n // size) + [n % size] * bool(n % size)


@settings(max_examples=150, deadline=None)
@given(sizes=LAYOUT, declared=st.integers(0, 6), limit=st.sampled_from([0, 1 << 27]), data=st.data())
def test_declarations_that_lie(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], declared: int, limit: int, data: st.DataObject
) -> None:
    """Refused at once, at a row of a batch that is not as declared, or by whoever looks at the whole; never two answers
    from one index: a row that the table has elsewhere is not given once the table was."""
    n = sum(sizes)
    index = index_of([f"k{i}" for i in range(n)], 4)
    path = laid_out(index, tmp_path_factory.mktemp("t") / "t.wdsindex", sizes, str(declared))
    true = declared > 0 and sizes == [declared] * (n // declared) + [n % declared] * bool(n % declared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexfile, "MAPPED", limit)
        try:
            found = Index.load(path)
        except errors.IndexFileError:
            assert not true
            return
    wrong = 0
    for row in data.draw(st.permutations(range(n))):
        try:
            wrong += found.locate(row) != index.locate(row)
        except errors.IndexFileError:
            wrong += 1
    assert not (true and wrong)
    for method in (found.validate, found.view, found.duplicates, lambda: found.where("true"), lambda: found.table):
        if true:
            method()
        else:
            with pytest.raises(errors.IndexFileError, match="other numbers of rows"):
                method()


@pytest.mark.parametrize("declared", ["", "x", "-2", "0", "2.0", "+2", " 2", "9" * 10, "9" * 5000, "٢"])
def test_declarations_that_are_no_number(tmp_path: Path, declared: str) -> None:
    index = index_of(["a", "b"])
    with pytest.raises(errors.IndexFileError, match=r"batch_rows is not a number"):
        Index.load(laid_out(index, tmp_path / "t.wdsindex", [2], declared))


@pytest.mark.parametrize("counts", [[3, 3], [2, 3, 2], [5], [7], [0, 0], [1 << 70]])
@pytest.mark.parametrize("declared", [None, "2"])
def test_shards_with_other_numbers_of_samples(
    tmp_path: Path, mapped: int, counts: list[int], declared: str | None
) -> None:
    index = index_of(list("abcdef"), 3)
    n = len(counts)
    s = index.shards
    s.url, s.nbytes, s.mtime, s.nsamples, s.nmembers = [f"/{i}" for i in range(n)], [9999] * n, [0] * n, counts, counts
    path = laid_out(index, tmp_path / "t.wdsindex", [2, 2, 2], declared)
    if sum(counts) == 6:
        Index.load(path)
        return
    with pytest.raises(errors.IndexFileError, match=r"samples|rows"):
        Index.load(path)


def test_a_batch_in_another_shard_than_the_table_says(tmp_path: Path, mapped: int) -> None:
    index = index_of([f"k{i}" for i in range(12)], 3)
    index = Index(with_column(index, "shard", [0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3]), index.shards)
    found = Index.load(laid_out(index, tmp_path / "t.wdsindex", [3, 3, 3, 3], "3"))
    assert found.key(0) == "k0"
    for _ in range(2):
        with pytest.raises(errors.IndexFileError, match="in another shard"):
            found.locate(7)
    assert found.locate(10)[0] == "k10"


def broken(path: Path, number: int, at: int, what: bytes) -> Path:
    """Write over the metadata of a batch: messages begin with 0xffffffff, and the schema and a dictionary are first."""
    data = path.read_bytes()
    begins = [m.start() for m in re.finditer(rb"\xff\xff\xff\xff..\0\0", data, re.DOTALL) if m.start() % 8 == 0]
    start = begins[2 + number] + at
    path.write_bytes(data[:start] + what + data[start + len(what) :])
    return path


@pytest.mark.parametrize(
    ("at", "what"), [(8, b"\xff" * 16), (4, b"\0\0\0\0"), (0, b"\0" * 8), (4, b"\xff\xff\xff\x7f")]
)
def test_a_later_batch_that_is_none(tmp_path: Path, mapped: int, at: int, what: bytes) -> None:
    """It shows at the first row of it, and at everything that needs all of them."""
    index = index_of([f"k{i}" for i in range(12)])
    found = Index.load(broken(laid_out(index, tmp_path / "t.wdsindex", [3, 3, 3, 3], "3"), 1, at, what))
    for row in (0, 2, 6, 8, 11):
        assert found.locate(row) == index.locate(row)
    for method in (found.validate, found.view, found.duplicates, lambda: found.table, lambda: found.fields(0)):
        with pytest.raises(errors.IndexFileError):
            method()
    for row in (3, 4, 5):
        for look in (found.locate, found.key):
            with pytest.raises(errors.IndexFileError, match=rf"t\.wdsindex: row {row}: "):
                look(row)
    with pytest.raises(errors.IndexFileError):
        list(map(found.find, [f"k{i}" for i in range(12)]))


def test_a_later_batch_with_nulls(tmp_path: Path, mapped: int) -> None:
    index = index_of([f"k{i}" for i in range(6)])
    for name in ("key", "shard", "start", "end"):
        values = index.table.column(name).to_pylist()
        table = with_column(index, name, [*values[:4], None, values[5]])
        found = Index.load(laid_out(Index(table, index.shards), tmp_path / f"{name}.wdsindex", [2, 2, 2], "2"))
        assert found.locate(3)[0] == "k3"
        for row in (4, 5):
            with pytest.raises(errors.IndexFileError, match=f"column {name} has nulls"):
                found.locate(row)
        with pytest.raises(errors.IndexFileError, match=f"column {name} has nulls"):
            found.validate()


def test_a_compressed_file_is_read_all_the_same(tmp_path: Path, mapped: int) -> None:
    index = index_of([f"k{i}" * 20 for i in range(300)])
    table = index.table.replace_schema_metadata(metadata_of(index, "/"))
    with pa.ipc.new_file(str(tmp_path / "t"), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table, max_chunksize=100)
    assert rows_of(Index.load(tmp_path / "t")) == rows_of(index)


def test_nothing_stays_open(tmp_path: Path, mapped: int, no_leaks: None) -> None:
    path = laid_out(index_of(list("abcdef")), tmp_path / "t.wdsindex", [2, 2, 2], "2")
    for _ in range(3):
        index = Index.load(path)
        assert [index.key(row) for row in range(6)] == list("abcdef")
        assert index.find("e") == [4]
        index.validate()


def test_the_file_may_go(tmp_path: Path, mapped: int) -> None:
    path = laid_out(index_of(list("abcdef")), tmp_path / "t.wdsindex", [2, 2, 2], "2")
    index = Index.load(path)
    path.unlink()
    assert [index.key(row) for row in range(6)] == list("abcdef")
    assert index.find("e") == [4]


def test_batches_of_other_sizes_are_not_written(tmp_path: Path) -> None:
    index = index_of(list("abcdef"))
    (whole,) = index.table.to_batches()
    for sizes in ([2, 1, 3], [2, 3], [1, 2], [2, 0, 2], [0]):
        batches = [whole.slice(i, n) for i, n in enumerate(sizes)]
        with pytest.raises(ValueError, match="as many rows as the first"):
            indexfile.write(tmp_path / "t.wdsindex", index.table.schema, batches, index.shards, {})
    assert os.listdir(tmp_path) == []


def test_writers_that_meet(tmp_path: Path) -> None:
    """Every process and thread writes a file of its own: what is there is always one of them, whole."""
    indexes = [index_of([f"{who}{i}" for i in range(200)]) for who in "ab"]
    path = tmp_path / "t.wdsindex"
    indexes[0].save(path, sync=False)
    wrong: list[Any] = []

    def work(index: Index) -> None:
        try:
            for _ in range(60):
                index.save(path, sync=False)
        except BaseException as error:  # noqa: BLE001  no thread may end in silence
            wrong.append(error)

    threads = [threading.Thread(target=work, args=[index]) for index in indexes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = Index.load(path)
        found.validate()
        assert {found.key(row)[0] for row in range(200)} in ({"a"}, {"b"})
    for thread in threads:
        thread.join()
    assert wrong == []
    assert os.listdir(tmp_path) == ["t.wdsindex"]


def test_what_another_writer_left_does_no_harm(tmp_path: Path) -> None:
    for name in (".t.wdsindex.tmp", f".t.wdsindex.{os.getpid()}-00000000.tmp"):
        (tmp_path / name).write_bytes(b"half")
    index = save(index_of(list("ab")), tmp_path / "t.wdsindex")
    assert index.key(1) == "b"
    assert len(os.listdir(tmp_path)) == 3


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".wdsindex")
    assert save(index_of(list("ab")), path).key(1) == "b"
    assert as_file(index_of(list("ab")).table, tmp_path / "t").exists()
