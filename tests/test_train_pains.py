"""The demonstration of three pains: its numbers against naive ones, its data, and a small run of all."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import make_tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import wdstools
from bench.train import classsorted, pains, shuffling, splitting, worst
from bench.train.classsorted import Sorted
from tests.servers import need


def unclosed(function: Any) -> Any:
    """webdataset leaves the files of shards open, until they are collected."""
    mark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
    return mark(pytest.mark.usefixtures("collected")(function))


@pytest.fixture
def collected() -> Iterator[None]:
    yield
    gc.collect()


def picture(red: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 16), (red, 100, 255 - red)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of four pictures."""
    folder = tmp_path_factory.mktemp("tree")
    for i, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir()
        for j in range(4):
            (folder / name / f"p.{j}.JPEG").write_bytes(picture(80 * i + j))
    return folder


@pytest.fixture(scope="module")
def data(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Sorted:
    return classsorted.of_tree(tree, tmp_path_factory.mktemp("data"), copies=10, spoil=5)


@given(st.lists(st.integers(0, 5), max_size=60))
def test_entropy_is_that_of_the_formula(labels: list[int]) -> None:
    shares = np.unique(labels, return_counts=True)[1] / max(len(labels), 1)
    assert shuffling.entropy(labels) == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-12)


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [5, 2, 1], [7], [2, 2, 2]])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_ideal_is_the_mean_over_all_batches(counts: list[int], batch: int) -> None:
    shares = [count / sum(counts) for count in counts]
    naive = sum(
        math.prod(shares[label] for label in drawn) * shuffling.entropy(drawn)
        for drawn in itertools.product(range(len(counts)), repeat=batch)
    )
    assert shuffling.ideal(counts, batch) == pytest.approx(naive, abs=1e-12)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=300), st.integers(1, 600))
def test_ideal_lies_between_its_bounds(counts: list[int], batch: int) -> None:
    shares = np.array(counts) / sum(counts)
    whole = float(-(shares * np.log2(shares)).sum())
    assert 0 <= shuffling.ideal(counts, batch) <= min(whole, math.log2(batch)) + 1e-9


def test_shards_of_a_tree_are_sorted_and_the_spoiled_named(tree: Path, data: Sorted) -> None:
    dataset = data.open()
    samples = [(sample["__key__"], int(sample["cls"]), sample["jpg"]) for sample in dataset]
    assert len(samples) == 120
    folders = [key.split("/")[0] for key, _, _ in samples]
    assert folders == sorted(folders)
    names = ["ant", "bee", "cat"]
    wrong = [key for key, label, _ in samples if names[label] != key.split("/")[0]]
    assert sorted(wrong) == sorted(data.spoiled)
    assert len(wrong) == 5
    original = (tree / "bee" / "p.2.JPEG").read_bytes()
    assert dataset["bee/p_2-007"]["jpg"] == original
    assert data.labels().tolist() == [label for _, label, _ in samples]


def test_a_tree_without_classes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(picture(1))
    with pytest.raises(ValueError, match=r"not two folders of pictures"):
        classsorted.of_tree(tmp_path, tmp_path / "out")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.png").write_bytes(picture(1, "PNG"))
    with pytest.raises(ValueError, match="several kinds: jpg, png"):
        classsorted.of_tree(tmp_path, tmp_path / "out")


def test_given_shards_get_an_index_with_their_labels(tmp_path: Path) -> None:
    shard = tmp_path / "s-000000.tar"
    shard.write_bytes(make_tar([("a.jpg", b"1"), ("a.kind", b"4"), ("b.jpg", b"2"), ("b.kind", b"7")]))
    found = classsorted.given([str(shard)], tmp_path, label="kind")
    assert found.labels().tolist() == [4, 7]
    assert wdstools.open(found.index)["b"]["jpg"] == b"2"
    shard.write_bytes(make_tar([("a.jpg", b"1"), ("a.kind", b"four")]))
    with pytest.raises(ValueError, match="no class number"):
        classsorted.given([str(shard)], tmp_path, label="kind").labels()


@unclosed
def test_epochs_have_every_sample_once_and_a_buffer_mixes_less(data: Sorted) -> None:
    task = {"batch": 8, "seed": 1, "shards": data.shards, "index": data.index, "image": "jpg", "label": "cls"}
    told = {
        way: shuffling.epoch({**task, "way": way, "size": size})
        for way, size in (("plan", 1), ("stream", 12), ("webdataset", 0))
    }
    for one in told.values():
        assert one["samples"] == one["keys"] == 120
        assert len(one["entropy"]) == len(one["memory"]) == 15
    means = {way: np.mean(one["entropy"]) for way, one in told.items()}
    assert means["plan"] > means["webdataset"]
    assert means["plan"] == pytest.approx(shuffling.ideal([40, 40, 40], 8), abs=0.25)


@unclosed
def test_a_contestant_that_loses_samples_is_an_error(data: Sorted) -> None:
    contestant = shuffling.Contestant("webdataset", 0)
    task = {"way": "webdataset", "size": 0, "batch": 8, "seed": 0, "image": "jpg", "label": "cls"}
    shards = [*data.shards[1:], data.shards[-1]]
    told = shuffling.epoch({**task, "shards": shards, "index": data.index})
    with pytest.raises(RuntimeError, match=r"webdataset, no shuffle: 120 samples, 112 keys: the set has 120"):
        shuffling.checked(contestant, told, 120)


@unclosed
def test_splits_write_nothing_and_make_up_the_set(data: Sorted, tmp_path: Path) -> None:
    told = splitting.measure(data, tmp_path, 1, lambda text: None)
    assert len(told) == 3
    for one in told:
        assert one["written"] == 0
        assert one["webdataset_written"] > data.nbytes / 2
        assert sum(one["samples"].values()) == 120
        assert {part: sum(counts.values()) for part, counts in one["counts"].items()} == one["samples"]
    by_class = data.labels().tolist().count(1)
    assert abs(told[2]["counts"]["val"].get(1, 0) - by_class / 10) <= 1
    assert not any(tmp_path.iterdir())


def test_parts_that_overlap_are_an_error(data: Sorted) -> None:
    whole = data.open()
    with pytest.raises(RuntimeError, match="are not the set"):
        splitting._check({"train": whole, "val": whole[:3]}, data)
    with pytest.raises(RuntimeError, match="are not the set"):
        splitting._check({"train": whole[:50], "val": whole[51:]}, data)


def test_what_is_written_is_counted(tmp_path: Path) -> None:
    before = splitting.bytes_written()
    (tmp_path / "file").write_bytes(bytes(12345))
    assert splitting.bytes_written() - before == 12345


def test_the_worst_come_first(data: Sorted, tmp_path: Path) -> None:
    keys = list(data.open().keys())
    losses = np.linspace(0, 1, len(keys))
    losses[[3, 70]] = 9, 8
    table = pa.table({"key": keys, "label": [0] * len(keys), "prediction": [1] * len(keys), "loss": losses})
    pq.write_table(table, tmp_path / "losses.parquet")
    found = worst.find(data, tmp_path / "losses.parquet")
    assert [row["key"] for row in found["worst"][:3]] == [keys[3], keys[70], keys[-1]]
    assert len(found["pictures"]) == worst.SHOWN
    pq.write_table(table.drop_columns("loss"), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no column loss"):
        worst.find(data, tmp_path / "none.parquet")
    pq.write_table(table.set_column(0, "key", [[f"x{key}" for key in keys]]), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="no key in it"):
        worst.find(data, tmp_path / "other.parquet")


@unclosed
def test_a_run_finds_the_wrong_labels(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for program in ("chromium", "chromedriver"):
        need(program, shutil.which(program), "apt-get install chromium chromium-driver")
    some = (shuffling.Contestant("plan", 1), shuffling.Contestant("webdataset", 1000))
    monkeypatch.setattr(shuffling, "CONTESTANTS", some)
    out = tmp_path / "out"
    pains.main([str(tree), "--copies", "30", "--spoil", "4", "--batch", "16", "--rounds", "1", "--out", str(out)])
    told = json.loads((out / "pains.json").read_text())
    assert told["worst"]["spoiled_found"] == 4
    assert {row["key"] for row in told["worst"]["worst"][:4]} == set(told["data"]["spoiled"])
    assert [one["label"] for one in told["shuffle"]] == [one.label for one in some]
    assert Image.open(out / "gallery.png").size == (1280, 900)
    page = (out / "pains.html").read_text()
    parser = Sources()
    parser.feed(page)
    assert parser.found
    assert all(source.startswith("data:image/") for source in parser.found)
    for name in ("entropy", "memory", "split"):
        assert (out / f"{name}.svg").read_text().startswith("<svg xmlns=")
    printed = capsys.readouterr().out
    assert "| wdstools plan, block=1 (global) |" in printed
    assert "4 labels had been made wrong on purpose: 4 of them" in printed


class Sources(HTMLParser):
    """What a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in ("src", "href", "data", "action")]


def test_a_parquet_of_something_else_is_wrong_usage(
    data: Sorted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"key": ["x"], "label": [1], "prediction": [1], "loss": [1.0]}), tmp_path / "other.parquet")
    folder = str(Path(data.shards[0]).parent)
    for name, reason in (("other.parquet", "no key in it is one of"), ("none.parquet", "none.parquet")):
        with pytest.raises(SystemExit) as stopped:
            pains.main([folder, "--samples", str(tmp_path / name), "--out", str(tmp_path)])
        assert stopped.value.code == 2
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["nowhere"], "nowhere: no folder"), (["--rounds", "-1"], "at least 1"), (["--batch", "0"], "at least 1")],
)
def test_wrong_usage(options: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        pains.main([*options, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err
