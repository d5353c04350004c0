"""--map and --resize cut by the number of samples of the source: any shard may be written alone, and again."""

from __future__ import annotations

import contextlib
import gc
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import webdataset
from convert_helpers import assert_same, everything, go, image_tree, keys, put, run, samples, shards
from hypothesis import given, settings
from hypothesis import strategies as st

import wdstools
from wdstools.convert import counted, transform
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.convert.plan import make_plan
from wdstools.convert.planned import entries_of
from wdstools.errors import DestinationError, SourceError
from wdstools.index import Index

MODULE = """
def some(sample):
    "As many as the sample says, under its own and other keys; a cls for every second."
    count = int(sample["txt"])
    if count == 9:
        raise ValueError("nine")
    return [{"txt": b"%d" % i} | ({"cls": i} if i % 2 == 0 else {}) for i in range(count)] or None
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "here", {"recipes_by_count.py": MODULE})
    monkeypatch.chdir(tmp_path / "here")


def tree(root: Path, counts: list[int]) -> Path:
    return put(root, {f"{i:03d}.txt": str(n) for i, n in enumerate(counts)})


def test_shards_are_what_their_samples_become(tmp_path: Path) -> None:
    counts = [1, 1, 0, 2, 0, 0, 0, 0, 9, 3, 1, 1, 1]
    tree(tmp_path / "in", counts)
    summary = go(tmp_path / "in", tmp_path / "out", map="recipes_by_count:some", maxcount=4, on_error="skip", workers=1)
    held = [len(samples(tmp_path / "out", path.name)) for path in shards(tmp_path / "out")]
    assert held == [4, 0, 5, 1]
    assert (summary.shards, summary.samples) == (4, 10)
    assert [(item.key, item.reason) for item in summary.skipped] == [("008", "the map failed")]


def test_an_empty_shard_is_a_good_one(tmp_path: Path) -> None:
    tree(tmp_path / "in", [1, 0, 0, 1])
    go(tmp_path / "in", tmp_path / "out", map="recipes_by_count:some", maxcount=1, workers=1, verify=True)
    assert [path.stat().st_size for path in shards(tmp_path / "out")][1:3] == [1024, 1024]
    index = Index.load(tmp_path / "out/in.wdsindex")
    assert (len(index), len(index.shards), index.lifted()) == (2, 4, ["cls"])
    urls = f"{tmp_path}/out/in-{{000000..000003}}.tar"
    assert [sample["__key__"] for sample in wdstools.open(urls)] == ["000", "003"]
    assert [sample["__key__"] for sample in wdstools.stream(urls)] == ["000", "003"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        theirs = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
        gc.collect()
    assert theirs == ["000", "003"]
    assert run(tmp_path / "out", tmp_path / "again")[0] == 0


def test_all_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path / "in", [0, 9, 0])
    with pytest.raises(SourceError, match="every sample was left out"):
        go(tmp_path / "in", tmp_path / "out", map="recipes_by_count:some", maxcount=2, on_error="skip", workers=1)
    assert shards(tmp_path / "out") == []


@settings(max_examples=8)
@given(counts=st.lists(st.integers(0, 3) | st.just(9), min_size=1, max_size=30), maxcount=st.integers(1, 9))
def test_one_by_one_in_this_thread(tmp_path_factory: pytest.TempPathFactory, counts: list[int], maxcount: int) -> None:
    """Each shard written alone, last one first, is what the pools make; and what a naive model says."""
    if not any(0 < n < 9 for n in counts):
        counts.append(1)
    root = tmp_path_factory.mktemp("counted")
    (root / "out").mkdir()
    tree(root / "in", counts)
    options = Options(map="recipes_by_count:some", maxcount=maxcount, on_error="skip", workers=1, resize=9)
    convert(str(root / "in"), str(root / "wanted"), options)
    plan = make_plan(str(root / "in"), str(root / "out"), options)
    assert plan.shards is not None
    for shard in reversed(plan.shards[0]):
        with contextlib.ExitStack() as stack:
            groups = transform.here(stack, options)(transform.read(plan.listing, entries_of(plan, 0, shard)))
            counted.write_shard(plan.listing, groups, shard, plan.lift, options, lambda: None, lambda n, nbytes: None)
    for path in shards(root / "out"):
        assert path.read_bytes() == (root / "wanted" / path.name).read_bytes()
    wanted = [list[str]() for _ in range(-(-len(counts) // maxcount))]
    for i, n in enumerate(counts):
        wanted[i // maxcount] += [f"{i:03d}_{k}" if n > 1 else f"{i:03d}" for k in range(n % 9)]
    assert [keys(root / "wanted", path.name) for path in shards(root / "wanted")] == wanted


def test_any_shard_is_kept(tmp_path: Path) -> None:
    image_tree(tmp_path / "in", each=9)
    options: dict[str, Any] = {"resize": 16, "maxcount": 3, "splits": (("a", 0.5), ("b", 0.5)), "workers": 1}
    go(tmp_path / "in", tmp_path / "wanted", **options)

    done: list[int] = []

    def tell(samples: int, nbytes: int) -> None:
        done.append(samples)
        if sum(done) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), Options(**options), progress=tell)
    first, *others = shards(tmp_path / "out")
    assert len(others) > 2
    first.unlink()
    seen: list[int] = []
    summary = convert(
        str(tmp_path / "in"), str(tmp_path / "out"), Options(**options), progress=lambda n, nbytes: seen.append(n)
    )
    assert (summary.kept, sum(seen)) == (len(others), 18)
    assert_same(tmp_path / "out", tmp_path / "wanted")


def test_what_is_another_job(tmp_path: Path) -> None:
    tree(tmp_path / "in", [1] * 9)
    base: dict[str, Any] = {"map": "recipes_by_count:some", "workers": 1}
    go(tmp_path / "in", tmp_path / "out", maxcount=10_000, **base)
    for more, told in (
        ({}, r"--maxsize was not given and is 1000000000\."),  # the defaults: by size
        ({"maxcount": 10_000, "maxsize": 10**6}, r"--maxsize was not given and is 1000000\."),
        ({"maxcount": 5}, r"--maxcount was 10000 and is 5\."),
    ):
        with pytest.raises(DestinationError, match=f"a finished job is there, and this is another: {told}"):
            go(tmp_path / "in", tmp_path / "out", **more, **base)
    before = everything(tmp_path / "out")
    assert go(tmp_path / "in", tmp_path / "out", maxcount=10_000, **base).complete
    assert everything(tmp_path / "out") == before


def test_the_plan_is_shown(tmp_path: Path) -> None:
    image_tree(tmp_path / "in")
    code, out, _ = run(tmp_path / "in", tmp_path / "out", "--resize", "9", "--maxcount", "5", "--dry-run")
    assert code == 0
    assert "in-%06d.tar: 12 samples of the source, as 3 shards (all of it is " in out
    _, out, _ = run(tmp_path / "in", tmp_path / "out", "--resize", "9", "--maxcount", "5", "--dry-run", "--json")
    (row,) = json.loads(out)["targets"]
    assert (row["samples"], row["shards"], "nbytes" in row) == (12, 3, False)
