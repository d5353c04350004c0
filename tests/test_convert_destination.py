"""Names for shards, and what goes into which."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from convert_helpers import class_tree, go, put, samples, shards
from hypothesis import given
from hypothesis import strategies as st

import wdstools
from wdstools import urls
from wdstools.convert import destination
from wdstools.convert.destination import Target, pack, targets
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.options import Options
from wdstools.errors import DestinationError
from wdstools.writer import sample_nbytes

TWO = [("train", 0.9), ("val", 0.1)]


@pytest.mark.parametrize(
    ("dest", "name", "splits", "wanted"),
    [
        ("out/train-%06d.tar", "x", [], ["out/train-%06d.tar"]),
        ("out", "photos", [], ["out/photos-%06d.tar"]),
        ("out/", "photos", [], ["out/photos-%06d.tar"]),
        ("out", "", [], ["out/shards-%06d.tar"]),
        ("out", "50% off!", [], ["out/shards-%06d.tar"]),
        ("out", "x", TWO, ["out/train-%06d.tar", "out/val-%06d.tar"]),
        ("out/%06d.tar", "x", TWO, ["out/train-%06d.tar", "out/val-%06d.tar"]),
        ("out/a-%d.tar", "x", TWO, ["out/a-train-%d.tar", "out/a-val-%d.tar"]),
        ("out/a%d.tar", "x", TWO, ["out/a-train-%d.tar", "out/a-val-%d.tar"]),
        ("%s_of_a-%03d.tar", "x", TWO, ["train_of_a-%03d.tar", "val_of_a-%03d.tar"]),
        ("file:///out/a-%d.tar", "x", [], ["/out/a-%d.tar"]),
        ("50%/a-%d.tar", "x", [], ["50%%/a-%d.tar"]),
    ],
)
def test_targets(dest: str, name: str, splits: list[tuple[str, float]], wanted: list[str]) -> None:
    found = targets(dest, name, splits)
    assert [target.pattern for target in found] == wanted
    assert [target.split for target in found] == [name for name, _ in splits or [("", 1)]]


@pytest.mark.parametrize(
    ("dest", "splits", "message"),
    [
        ("http://host/a-%d.tar", [], "local folders and to buckets"),
        ("out/train.tar", [], r"is one shard; name many, as in out/train-%06d.tar"),
        ("out/train-000000.tar", [], r"as in out/train-%06d.tar"),
        ("out/a-%d-%d.tar", [], "needs one number"),
        ("out/a-%x.tar", [], "needs one number"),
        ("out/a-%s.tar", [], "needs one number"),
        ("50%", [], "needs one number"),
        ("out/a-%06d.tar.gz", [], "plain tars"),
        ("out/a-%06d", [], "plain tars"),
        ("out/a-%d-%s.tar", TWO, "put %s where the split goes"),
    ],
)
def test_names_that_will_not_do(dest: str, splits: list[tuple[str, float]], message: str) -> None:
    with pytest.raises(DestinationError, match=message):
        targets(dest, "x", splits)


@pytest.mark.parametrize("pattern", ["t-%06d.tar", "a-%03d-b.tar", "x1-%d-v2.tar", "%06d.tar", "a_%02d_of_10.tar"])
def test_the_index_is_where_readers_look(pattern: str) -> None:
    names = [urls.escape("d/" + pattern % i) for i in range(12)]
    assert Target("", "d/" + pattern).index_path == urls.index_name(names)


def test_folders_with_odd_names(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    for folder in ("100%", "%06d", "a{1,2}", "x y"):
        out = tmp_path / folder
        go(tmp_path / "in", out / "s-%d.tar", maxcount=4)
        assert len(samples(out)) == 15
        assert go(tmp_path / "in", out / "s-%d.tar", maxcount=4).complete
        assert len(wdstools.open(str(out))) == 15


def test_existing_files_of_any_width(tmp_path: Path) -> None:
    put(tmp_path, dict.fromkeys(["a-000001.tar", "a-2.tar", "a-x.tar", "b-1.tar", "a-1.tar.gz", ".a-1.tar.tmp"], b""))
    assert [n for n, _ in Target("", f"{tmp_path}/a-%06d.tar").existing()] == [1, 2]
    assert list(Target("", f"{tmp_path}/gone/a-%06d.tar").existing()) == []


def test_sweep_takes_only_what_is_ours(tmp_path: Path) -> None:
    ours = [
        ".a-000001.tar.tmp",
        "..a-000001.tar.part.tmp",
        "..a-000001.tar.part.17-0a1b2c3d.tmp",
        ".a.wdsindex.tmp",
        ".a.wdsindex.17-0a1b2c3d.tmp",
        ".classes.json.tmp",
        ".skipped.jsonl.tmp",
    ]
    others = ["a-000001.tar", ".b-000001.tar.tmp", ".a-x.tar.tmp", "a-000001.tar.tmp", ".hidden", "a.wdsindex"]
    put(tmp_path, dict.fromkeys([*ours, *others, ".a-000001.tar.part"], b""))
    target = Target("", f"{tmp_path}/a-%06d.tar")
    destination.sweep([target], parts=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, ".a-000001.tar.part"])
    destination.sweep([target], parts=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


NAMES = st.text(st.sampled_from("ab/é"), min_size=1, max_size=5).map(lambda s: s.strip("/") or "x")
LONG = st.one_of(NAMES, st.integers(90, 130).map(lambda n: "k" * n), st.integers(250, 300).map(lambda n: "é" * n))
ENTRIES = st.lists(
    st.builds(
        lambda key, sizes: Entry(key, None, tuple(x for i, n in enumerate(sizes) for x in (f"f{i}", "", n))),
        LONG,
        st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    ),
    max_size=40,
)


@given(ENTRIES, st.integers(1, 9), st.integers(1, 30_000), st.randoms())
def test_packing(entries: list[Entry], maxcount: int, maxsize: int, random: object) -> None:
    order = array("q", range(len(entries)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plans = pack(Entries(entries), order, Target("", "t-%d.tar"), Options(maxcount=maxcount, maxsize=maxsize))
    assert [p.path for p in plans] == [f"t-{i}.tar" for i in range(len(plans))]
    assert [i for p in plans for i in range(p.start, p.stop)] == list(range(len(order)))  # every sample, once
    sizes = [sample_nbytes(e.key, dict(zip(e.parts[::3], e.parts[2::3], strict=True))) for e in entries]
    for number, plan in enumerate(plans):
        held = [sizes[order[i]] for i in range(plan.start, plan.stop)]
        assert plan.nbytes == sum(held) + 1024
        assert len(held) <= maxcount
        assert plan.nbytes <= maxsize or len(held) == 1
        if number + 1 < len(plans):  # full: the next one had no room
            assert len(held) == maxcount or plan.nbytes + sizes[order[plan.stop]] > maxsize


@pytest.mark.parametrize("maxsize", [1, 5000, 20_000])
def test_the_size_is_that_of_the_file(tmp_path: Path, maxsize: int) -> None:
    files = {f"n/{'k' * (i * 8)}{i}.bin": bytes(i * 97) for i in range(30)}
    put(tmp_path / "in", files)
    go(tmp_path / "in", tmp_path / "out/s-%02d.tar", maxsize=maxsize)
    for path in shards(tmp_path / "out"):
        assert path.stat().st_size <= maxsize or len(samples(tmp_path / "out", path.name)) == 1
    assert len(samples(tmp_path / "out")) == 30
    if maxsize == 1:
        assert len(shards(tmp_path / "out")) == 30
