"""Views beside lists: where, select, split, sample, sort_by and join in any order, on an index of many samples."""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wdstools
from wdstools import Dataset, ShardWriter
from wdstools.errors import KeyMissingError, NotFoundError, QueryError
from wdstools.plan import split_of
from wdstools.samples import hash_key

N = 90
CLS = [i * 7 % 10 for i in range(N)]
LOSS = {f"k{i:03d}": (i * 31 % 17) / 4 for i in range(0, N, 2)}  # every second sample has one


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("views")
    with ShardWriter(str(folder / "v-%03d.tar"), maxcount=13, lift=["cls"]) as sink:
        for i in range(N):
            sink.write({"__key__": f"k{i:03d}", "txt": f"text {i}", "cls": CLS[i]})
    return wdstools.open(folder)


def numbers(dataset: Dataset) -> list[int]:
    """Which samples a view has, as it lists them, as Arrow lists them, and as it reads them."""
    keys = list(dataset.keys())
    assert dataset.to_arrow().column("key").to_pylist() == keys
    assert [s["txt"].decode() for s in dataset.fetch(range(len(dataset)))] == [f"text {int(k[1:])}" for k in keys]
    return [int(key[1:]) for key in keys]


def losses() -> dict[str, list[Any]]:
    return {"key": list(LOSS), "loss": list(LOSS.values())}


# what a view does, and what a list of the samples' numbers does

Op = tuple[str, Any]


def apply(view: Dataset, op: Op) -> Dataset:
    name, value = op
    if name == "slice":
        return view[value]
    if name == "select":
        return view.select([i % len(view) for i in value] if len(view) else [])
    if name == "sort":
        return view.sort_by(*value)
    if name == "where":
        return view.where(f"cls % {value} = 0")
    if name == "loss":
        return view.where(f"loss < {value}")
    if name == "sample":
        return view.sample(min(value, len(view)), seed=value)
    return view.split(a=value, b=1 - value, seed=5)["ba"[value > 0.5]]


def apply_naively(rows: list[int], op: Op) -> list[int]:
    name, value = op
    loss = {int(key[1:]): number for key, number in LOSS.items()}
    if name == "slice":
        return rows[value]
    if name == "select":
        return [rows[i % len(rows)] for i in value] if rows else []
    if name == "sort":
        column, descending = value
        values: dict[int, Any] = {"cls": dict(enumerate(CLS)), "key": {i: i for i in range(N)}, "loss": loss}[column]
        known = sorted((row for row in rows if row in values), key=values.__getitem__, reverse=descending)
        return known + [row for row in rows if row not in values]
    if name == "where":
        return [row for row in rows if CLS[row] % value == 0]
    if name == "loss":
        return [row for row in rows if row in loss and loss[row] < value]
    if name == "sample":
        return []  # not foretold
    here = split_of(np.array([hash_key(f"k{i:03d}") for i in range(N)], np.uint64), {"a": value, "b": 1 - value}, 5)
    return [row for row in rows if here[row] == (0 if value > 0.5 else 1)]


ops = st.one_of(
    st.tuples(st.just("slice"), st.slices(N)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 1000), max_size=60)),
    st.tuples(st.just("sort"), st.tuples(st.sampled_from(["cls", "key", "loss"]), st.booleans())),
    st.tuples(st.just("where"), st.integers(1, 4)),
    st.tuples(st.just("loss"), st.sampled_from([0.5, 2, 100])),
    st.tuples(st.just("sample"), st.integers(0, N)),
    st.tuples(st.just("split"), st.sampled_from([0.3, 0.75])),
)


@given(st.lists(ops, max_size=5))
@settings(max_examples=60)
def test_views_compose(whole: Dataset, todo: list[Op]) -> None:
    view, rows = whole.join(losses()), list(range(N))
    for op in todo:
        view, before = apply(view, op), rows
        if op[0] == "sample":
            rows = [int(key[1:]) for key in view.keys()]  # noqa: SIM118
            assert not Counter(rows) - Counter(before)
            assert len(rows) == min(op[1], len(before))
        else:
            rows = apply_naively(rows, op)
    assert numbers(view) == rows
    assert view.index is whole.index
    for row in range(0, N, 17):
        key = f"k{row:03d}"
        assert (key in view) == (row in rows)
        if row in rows:
            assert view[key]["txt"] == b"text %d" % row
    assert numbers(pickle.loads(pickle.dumps(view))) == rows
    assert len(whole) == N


# each of them


def test_columns_and_to_arrow(whole: Dataset) -> None:
    assert whole.columns()[:6] == ["key", "shard", "start", "end", "fields", "cls"]
    assert {"row", "nbytes", "url", "file"} < set(whole.columns())
    table = whole.select([5, 80, 5]).to_arrow()
    assert table.column_names == whole.columns()
    assert table.column("row").to_pylist() == [5, 80, 5]
    assert table.column("fields").to_pylist() == [
        [{**f._asdict()} for f in whole.index.fields(row)] for row in (5, 80, 5)
    ]
    assert table.column("file").to_pylist() == ["v-000.tar", "v-006.tar", "v-000.tar"]
    assert whole[3:7].to_arrow().column("key").to_pylist() == ["k003", "k004", "k005", "k006"]
    assert len(whole[5:5].to_arrow()) == len(whole[::-1].where("false").to_arrow()) == 0


def test_select(whole: Dataset) -> None:
    assert numbers(whole.select(np.array([3, -1, 3]))) == [3, 89, 3]
    assert numbers(whole.select(range(10, 0, -4))) == [10, 6, 2]
    assert numbers(whole.select(i * i for i in range(4))) == [0, 1, 4, 9]
    assert numbers(whole[:4].select(np.array([True, False, False, True]))) == [0, 3]
    assert numbers(whole.select([])) == []
    assert numbers(whole.select(np.array([7], np.uint64))) == [7]
    for wrong in ([90], [-91], np.array([True]), [2**62]):
        with pytest.raises(IndexError):
            whole.select(wrong)
    for kind in ([1.0], ["k001"], np.array([[1]])):
        with pytest.raises(TypeError):
            whole.select(kind)  # type: ignore[arg-type]


def test_sample(whole: Dataset) -> None:
    five = numbers(whole.sample(5, seed=3))
    assert five == numbers(whole.sample(5, seed=3)), "the same again"
    assert numbers(whole.sample(40, seed=3))[:5] == five
    assert five != numbers(whole.sample(5, seed=4))
    assert sorted(numbers(whole.sample(N))) == list(range(N)) != numbers(whole.sample(N))
    assert numbers(whole[:1].sample(1)) == [0]
    assert numbers(whole[:0].sample(0)) == []
    for n in (-1, 91):
        with pytest.raises(ValueError, match=f"cannot draw {n} of 90"):
            whole.sample(n)


def test_sort_by(whole: Dataset) -> None:
    assert numbers(whole.sort_by("cls")) == sorted(range(N), key=CLS.__getitem__)
    assert numbers(whole.sort_by("key", descending=True)) == list(range(N))[::-1]
    assert numbers(whole[::-1].sort_by("url")) == sorted(range(N - 1, -1, -1), key=lambda i: i // 13)
    with pytest.raises(QueryError, match=r"no column 'width'\ncolumns: key, .*cls"):
        whole.sort_by("width")
    with pytest.raises(QueryError, match=r"'fields' is list.* which has no order"):
        whole.sort_by("fields")


def test_where_names_the_columns(whole: Dataset) -> None:
    with pytest.raises(QueryError, match=r"columns: key, .*cls.*loss"):
        whole.join(losses()).where("width > 3")
    with pytest.raises(QueryError):
        whole.where("cls = 3; SELECT 1")


def test_wrong_keys(whole: Dataset) -> None:
    for view in (whole, whole[::2], whole.sample(50)):
        with pytest.raises(KeyMissingError, match="no sample has the key 'k0O2'; near: k0"):
            view["k0O2"]
        with pytest.raises(KeyMissingError):
            view.fetch([0, "k0O2"])
    with pytest.raises(KeyMissingError, match="'k003'"):
        whole[4:]["k003"]


def test_batches_as_torch_asks_for_them(whole: Dataset) -> None:
    assert whole.__getitems__([3, 1, 3]) == [whole[3], whole[1], whole[3]]
    assert whole[10:].__getitems__(np.array([-1, 0])) == [whole[89], whole[10]]


# splits


def test_splits(whole: Dataset) -> None:
    parts = whole.split(train=0.8, val=0.1, test=0.1, seed=2)
    assert list(parts) == ["train", "val", "test"]
    assert sorted(row for part in parts.values() for row in numbers(part)) == list(range(N))
    assert all(numbers(part) == sorted(numbers(part)) for part in parts.values())
    assert list(whole.split()) == ["train", "val"]
    assert numbers(whole.split(seed=1)["val"]) != numbers(whole.split(seed=2)["val"])
    for row in numbers(whole[20:60].split(train=0.8, val=0.1, test=0.1, seed=2)["val"]):
        assert row in numbers(parts["val"]), "a sample stays in its split, whichever others there are"
    with pytest.raises(ValueError, match="add up to"):
        whole.split(train=0.5, val=0.1)
    with pytest.raises(QueryError, match="no column 'width'"):
        whole.split(a=0.5, b=0.5, by="width")
    with pytest.raises(QueryError, match="strata"):
        whole.split(a=0.5, b=0.5, by="fields")


@pytest.mark.parametrize("by", ["cls", "file", "loss"])
def test_stratified_splits(whole: Dataset, by: str) -> None:
    joined = whole.join(losses())
    fractions = {"a": 0.5, "b": 0.3, "c": 0.2}
    for view in (joined, joined.sample(70), joined[:0]):
        parts = view.split(seed=1, by=by, **fractions)
        assert sorted(row for part in parts.values() for row in numbers(part)) == sorted(numbers(view))
        each = Counter(view.to_arrow().column(by).to_pylist())
        for name, part in parts.items():
            here = Counter(part.to_arrow().column(by).to_pylist())
            for value, count in each.items():
                assert abs(here[value] - count * fractions[name]) <= 1, (value, name)
    assert numbers(joined.split(seed=1, by=by)["val"]) != numbers(joined.split(seed=2, by=by)["val"])


def test_strata_of_one_sample_are_divided_too(tmp_path: Path) -> None:
    """As by the hash alone; and a split of 1% is one of 1%."""
    with ShardWriter(str(tmp_path / "v-%03d.tar")) as sink:
        for i in range(4000):
            sink.write({"__key__": f"{i}", "cls": 0})
    parts = wdstools.open(tmp_path).split(train=0.9, val=0.1, by="key")
    assert abs(len(parts["val"]) - 400) < 100
    assert abs(len(wdstools.open(tmp_path).split()["val"]) - 400) < 100


def test_samples_with_one_key_stay_together(tmp_path: Path) -> None:
    for shard in range(3):
        with ShardWriter(str(tmp_path / f"{shard}-%03d.tar")) as sink:
            for i in range(40):
                sink.write({"__key__": f"{i}", "cls": 0})
    whole = wdstools.open([f"{tmp_path}/{shard}-000.tar" for shard in range(3)])
    with_one = whole.join({"key": [str(i) for i in range(40)], "one": [1] * 40})
    for parts in (whole.split(a=0.5, b=0.5), with_one.split(a=0.5, b=0.5, by="one")):
        a, b = (set(part.keys()) for part in parts.values())
        assert not a & b
        assert len(a | b) == 40


# joins


class Frame:
    """What speaks Arrow's protocol, as data frames do."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(schema)


def tables(folder: Path) -> list[Any]:
    table = pa.table(losses())
    pa.csv.write_csv(table, folder / "t.csv")
    pa.parquet.write_table(table, folder / "t.parquet")
    return [losses(), table, Frame(table), folder / "t.csv", str(folder / "t.parquet")]


def test_what_may_be_joined(whole: Dataset, tmp_path: Path) -> None:
    want = [LOSS.get(f"k{i:03d}") for i in range(N)]
    for table in tables(tmp_path):
        joined = whole.join(table)
        assert joined.columns() == [*whole.columns(), "loss"]
        assert joined.to_arrow().column("loss").to_pylist() == want, table
        assert numbers(joined.where("loss >= 4")) == [i for i, v in enumerate(want) if v is not None and v >= 4]
    assert "loss" not in whole.columns(), "the view itself is as it was"
    twice = joined.join({"key": ["k001"], "why": ["blurred"]})[::-1]
    assert numbers(twice.where("why = 'blurred' or loss > 3.9")) == numbers(twice.where("loss > 3.9 or key = 'k001'"))


def test_joins_on_other_columns(whole: Dataset) -> None:
    joined = whole.join({"file": ["v-002.tar", "other.tar"], "good": [True, False]}, on="file")
    assert numbers(joined.where("good")) == list(range(26, 39))
    joined = whole.join({"cls": [3, 4], "name": ["cat", "dog"]}, on="cls")
    assert numbers(joined.where("name = 'dog'")) == [i for i in range(N) if CLS[i] == 4]


def test_keys_that_look_like_numbers(tmp_path: Path) -> None:
    """A CSV's column of keys is text, whatever it looks like; numbers of a table are no keys."""
    with ShardWriter(str(tmp_path / "v-%03d.tar")) as sink:
        for key in ("0012", "12", "NA"):
            sink.write({"__key__": key, "cls": 0})
    (tmp_path / "t.csv").write_text("loss,key\n0.5,0012\n1.5,12\n2.5,NA\n")
    whole = wdstools.open(tmp_path)
    assert whole.join(tmp_path / "t.csv").to_arrow().column("loss").to_pylist() == [0.5, 1.5, 2.5]
    with pytest.raises(QueryError, match="'key' is int64 in the table and string in the index"):
        whole.join({"key": [12], "loss": [0.5]})


def test_joins_that_are_refused(whole: Dataset, tmp_path: Path) -> None:
    def refused(table: Any, why: str, **options: Any) -> None:
        with pytest.raises(QueryError, match=why):
            whole.join(table, **options)

    refused({"key": ["k001", "k002", "k001"], "loss": [1, 2, 3]}, "1 values of 'key' more than once: 'k001'")
    refused({"key": ["k001"], "cls": [1]}, "there already: cls")
    refused({"key": ["k001"], "row": [1]}, "there already: row")
    refused({"name": ["k001"]}, r"no column 'key'\ncolumns: name")
    refused({"name": ["k001"]}, "no column 'name' to join on", on="name")
    refused({"key": ["a", "b"], "x": [1]}, "cannot be read as a table")
    refused(5, "a int is no table")
    refused("losses.txt", r"is no \.csv or \.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    refused(tmp_path / "bad.parquet", r"bad\.parquet: cannot be read")
    with pytest.raises(NotFoundError, match=r"none\.csv"):
        whole.join(tmp_path / "none.csv")
    assert whole.join({"key": [], "loss": []}).to_arrow().column("loss").null_count == N


def test_an_order_of_losses(whole: Dataset) -> None:
    """What it is for: the hardest samples of a class, in order, as a view."""
    draw = random.Random(4)
    order = draw.sample(range(N), N)
    ranked = whole.join({"key": [f"k{i:03d}" for i in range(N)], "rank": [order.index(i) for i in range(N)]})
    assert numbers(ranked.sort_by("rank")) == order
    assert (
        numbers(ranked.where("cls = 3").sort_by("rank", descending=True)[:2])
        == [i for i in order if CLS[i] == 3][:-3:-1]
    )
    assert os.path.exists(whole.index.path or "")
