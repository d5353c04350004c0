"""The plan of shards in the journal: what another run says of the shard that differs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert_helpers import assert_same, class_tree, go, put, shards
from hypothesis import given, settings
from hypothesis import strategies as st

from wdstools.convert import saved
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.convert.plan import make_plan
from wdstools.errors import DestinationError

JOURNAL = ".in.wdsjob"


class Stop(Exception):
    pass


def begin(tmp_path: Path, kept: int = 99, **options: Any) -> Path:
    """A job on tmp_path/in that was broken off with all of its shards, or the first `kept` of them, and no index."""
    out = tmp_path / "out"

    def stop(samples: int, nbytes: int) -> None:
        if out.is_dir() and len(shards(out)) >= min(kept, 4):
            raise Stop

    with pytest.raises(Stop):
        convert(str(tmp_path / "in"), str(out), Options(**{"maxcount": 5, "workers": 1, **options}), progress=stop)
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    put(tmp_path / "in", {f"{i:03d}.bin": bytes(i + 1) for i in range(0, 40, 2)})
    return tmp_path


def refused(tmp_path: Path, **options: Any) -> str:
    with pytest.raises(DestinationError, match="is there, and this is another: ") as caught:
        go(tmp_path / "in", tmp_path / "out", **{"maxcount": 5, **options})
    return str(caught.value)


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: put(d, {"013.bin": b"new"}), "in-000001.tar is the first shard that differs.*: sample '013' was added"),
    (lambda d: (d / "024.bin").unlink(), "in-000002.tar is the first shard that differs.*: sample '024' was removed"),
    (lambda d: put(d, {"032.bin": bytes(999)}), "in-000003.tar .*: sample '032' was changed: 1024 .*, 1536 now"),
    (lambda d: put(d, {"032.txt": b"too"}), "in-000003.tar .*: sample '032' was changed"),
    (lambda d: put(d, {"099.bin": b"last"}), "in-000004.tar is one more shard, from sample '099' on"),
    (lambda d: (d / "000.bin").rename(d / "001.bin"), "in-000000.tar .*: where sample '000' was, '001' is"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_an_unfinished_job(tree: Path, change: Callable[[Path], object], told: str) -> None:
    begin(tree)
    change(tree / "in")
    assert re.search(told, refused(tree))


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_a_finished_job(tree: Path, change: Callable[[Path], object], told: str) -> None:
    go(tree / "in", tree / "out", maxcount=5)
    change(tree / "in")
    text = refused(tree)
    assert told.rpartition(": ")[2] in text or "sample '032' was changed" in text or "'099' was added" in text
    assert "a finished job is there" in text


def test_an_option(tree: Path) -> None:
    begin(tree)
    text = refused(tree, maxcount=6)
    assert "--maxcount was 5 and is 6" in text
    assert "first shard" not in text


def test_shards_that_are_not_finished(tree: Path) -> None:
    out = begin(tree)
    for path in out.glob(".*.part"):
        path.unlink()
    put(tree / "in", {"001.bin": b"new"})
    (tree / "in/000.bin").unlink()
    assert "in-000000.tar is the first shard that differs: 5 samples of" in refused(tree)
    assert "it began with sample '000' and begins with '001'" in refused(tree)


def test_it_goes_on_and_the_plan_is_small(tree: Path) -> None:
    out = begin(tree, 1)
    journal = json.loads((out / JOURNAL).read_text())
    (plan,) = journal["plan"]
    assert plan["pattern"] == "in-%06d.tar"
    assert [row[0] for row in plan["shards"]] == [5] * 4
    assert [row[3] for row in plan["shards"]] == ["000", "010", "020", "030"]
    go(tree / "in", out, maxcount=5)
    assert [row[1] for row in plan["shards"]] == [path.stat().st_size for path in shards(out)]
    go(tree / "in", tree / "wanted", maxcount=5)
    assert_same(out, tree / "wanted")


def test_a_journal_without_a_plan(tree: Path) -> None:
    out = begin(tree, 1)
    journal = json.loads((out / JOURNAL).read_text())
    del journal["plan"]
    (out / JOURNAL).write_text(json.dumps(journal))
    copy = shutil.copytree(out, tree / "copy")
    go(tree / "in", out, maxcount=5)
    shutil.rmtree(out)
    shutil.copytree(copy, out)
    put(tree / "in", {"001.bin": b"new"})
    assert "the source had 20 samples of 400 bytes and has 21 of 403" in refused(tree)


def test_a_plan_that_this_version_would_not_make(tree: Path) -> None:
    out = begin(tree, 2)
    journal = json.loads((out / JOURNAL).read_text())
    journal["plan"][0]["shards"][1][2] = "0" * 16
    (out / JOURNAL).write_text(json.dumps(journal))
    with pytest.raises(
        DestinationError, match=r"packs its shards otherwise: in-000001.tar is the first .* not what they"
    ):
        go(tree / "in", out, maxcount=5)
    go(tree / "in", out, maxcount=5, overwrite=True)
    go(tree / "in", tree / "wanted", maxcount=5)
    assert_same(out, tree / "wanted")


@pytest.mark.parametrize("plan", [[], {}, "x", 7, [1], [{}], [{"pattern": 1, "shards": 2}], [{"shards": []}]])
def test_a_plan_that_is_none(tree: Path, plan: Any) -> None:
    out = begin(tree, 2)
    journal = json.loads((out / JOURNAL).read_text())
    (out / JOURNAL).write_text(json.dumps({**journal, "plan": plan}))
    go(tree / "in", out, maxcount=5)
    go(tree / "in", tree / "wanted", maxcount=5)
    assert_same(out, tree / "wanted")


def test_splits_and_subsets(tmp_path: Path) -> None:
    class_tree(tmp_path / "in", 2, 20)
    options = Options(maxcount=5, splits=(("a", 0.5), ("b", 0.5)))
    go(tmp_path / "in", tmp_path / "all", maxcount=9)
    for source, given_options in (("in", options), ("all/in.wdsindex", Options(maxcount=5, where="cls = 1"))):
        plan = make_plan(str(tmp_path / source), str(tmp_path / "out"), given_options).saved
        assert plan is not None
        stored = json.loads(json.dumps(plan.to_json()))
        assert plan.against(stored) == ""
        for item in stored:
            for row in item["shards"]:
                kept, row[2] = row[2], "other"
                assert "is the first shard that differs" in plan.against(stored)
                row[2] = kept
        stored[-1]["shards"].pop()
        assert "is one more shard" in plan.against(stored)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), max_size=8, unique_by=lambda item: item[0]), st.data())
def test_the_difference_is_true(items: list[tuple[int, int]], data: st.DataObject) -> None:
    old = [(str(key), nbytes) for key, nbytes in sorted(items)]
    new = data.draw(st.lists(st.sampled_from(old), unique=True) if old else st.just([]))
    told = saved._difference(iter(old), iter(new), 100)
    assert (told == "") == (old == new)
    if " was removed" in told:
        assert told.split("'")[1] in {key for key, _ in old} - {key for key, _ in new}
