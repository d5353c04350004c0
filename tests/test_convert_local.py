"""convert(): what comes out is what went in, whoever does the work; and what goes wrong on the way."""

from __future__ import annotations

import errno
import gc
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from convert_helpers import class_tree, everything, go, hidden, image_tree, keys, members, put, samples, shards
from helpers import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import wdstools
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.convert.plan import Plan
from wdstools.errors import DestinationError, SourceError, StoreError
from wdstools.index import Index


def test_what_comes_out_is_what_went_in(tmp_path: Path) -> None:
    wanted = class_tree(tmp_path / "in", classes=5, each=20)
    summary = go(tmp_path / "in", tmp_path / "out/t-%06d.tar", maxcount=30)
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "classes.json",
        *(f"t-00000{i}.tar" for i in range(4)),
        "t.wdsindex",
    ]
    assert samples(out) == wanted
    assert (summary.shards, summary.samples, summary.kept, summary.complete) == (4, 100, 0, False)
    assert summary.nbytes == sum(p.stat().st_size for p in shards(out))
    assert summary.names == [str(p) for p in shards(out)]
    assert summary.indexes == [str(out / "t.wdsindex")]
    assert json.loads((out / "classes.json").read_text()) == {f"n0{i}": i for i in range(5)}
    data = wdstools.open(str(out))
    by_webdataset = [s for path in shards(out) for s in reference(path.read_bytes())]
    for read in (by_webdataset, list(data), list(wdstools.stream(map(str, shards(out))))):
        assert {s["__key__"]: {k: v for k, v in s.items() if k[0] != "_"} for s in read} == wanted
    assert data.index.table.column("cls").to_pylist() == [int(s["cls"]) for s in data]


def test_headers_are_plain(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    go(tmp_path / "in", tmp_path / "out")
    data = shards(tmp_path / "out")[0].read_bytes()
    assert {m.type for m in wdstools.tar.walk(str(shards(tmp_path / "out")[0]))} == {"file"}
    assert data[257:265] == b"ustar\x0000"
    assert len(data) == sum(512 + -(-len(d) // 512) * 512 for _, d in members(shards(tmp_path / "out")[0])) + 1024


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": False},
        {"shuffle": True, "seed": 9, "maxsize": 9000},
        {"splits": (("a", 0.6), ("b", 0.4)), "by": "cls"},
        {"keys": "number"},
        {"resize": 20},
        {"resize": 20, "splits": (("a", 0.6), ("b", 0.4)), "shuffle": True},
    ],
    ids=repr,
)
def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path, options: dict[str, Any]) -> None:
    image_tree(tmp_path / "in", classes=3, each=9)
    found = []
    for workers in (1, 2, 5):
        go(tmp_path / "in", tmp_path / f"out{workers}/t-%d.tar", **{"maxcount": 4, "workers": workers, **options})
        found.append(everything(tmp_path / f"out{workers}"))
    assert found[0] == found[1] == found[2]
    assert any(name.endswith(".wdsindex") for name in found[0])
    # nor on where the source lies, or when its files were made
    image_tree(tmp_path / "elsewhere/in", classes=3, each=9)
    go(tmp_path / "elsewhere/in", tmp_path / "again/t-%d.tar", **{"maxcount": 4, **options})
    assert everything(tmp_path / "again") == found[0]


def test_the_order(tmp_path: Path) -> None:
    wanted = class_tree(tmp_path / "in", classes=4, each=10)
    for name, options in {
        "sorted": {"shuffle": False},
        "default": {},
        "seed": {"seed": 1},
        "flat": {"layout": "flat"},
    }.items():
        go(tmp_path / "in", tmp_path / name, maxcount=7, **options)
    assert keys(tmp_path / "sorted") == keys(tmp_path / "flat") == sorted(wanted)
    assert sorted(keys(tmp_path / "default")) == sorted(wanted)
    assert keys(tmp_path / "default") not in (sorted(wanted), keys(tmp_path / "seed"))


def test_splits(tmp_path: Path) -> None:
    wanted = class_tree(tmp_path / "in", classes=4, each=20)
    go(tmp_path / "in", tmp_path / "out", splits=(("train", 0.8), ("val", 0.2)), by="cls", maxcount=10)
    train, val = (samples(tmp_path / "out", name) for name in ("train", "val"))
    assert train | val == wanted
    assert not train.keys() & val.keys()
    assert [sum(s["cls"] == b"%d" % c for s in val.values()) for c in range(4)] == [4] * 4
    for name, count in (("train", 64), ("val", 16)):
        assert len(Index.load(tmp_path / f"out/{name}.wdsindex")) == count


FILES = st.dictionaries(
    st.tuples(
        st.sampled_from(["a", "b", "日 本"]),
        st.sampled_from(["x", "y-1", "z" * 120]),
        st.sampled_from(["jpg", "TXT", "a.npy"]),
    ),
    st.binary(max_size=2000),
    min_size=1,
)


@settings(max_examples=40)
@given(
    files=FILES,
    maxcount=st.integers(1, 5),
    maxsize=st.integers(1, 9000),
    seed=st.integers(0, 2),
    workers=st.integers(1, 3),
)
def test_any_tree(
    tmp_path_factory: pytest.TempPathFactory, files: Any, maxcount: int, maxsize: int, seed: int, workers: int
) -> None:
    root = tmp_path_factory.mktemp("any")
    put(root / "in", {f"{c}/{s}.{e}": data for (c, s, e), data in files.items()})
    go(root / "in", root / "out", maxcount=maxcount, maxsize=maxsize, seed=seed, workers=workers)
    classes = sorted({c for c, _, _ in files})
    wanted: dict[str, dict[str, bytes]] = {}
    for (c, s, e), data in files.items():
        wanted.setdefault(f"{c}/{s}", {"cls": b"%d" % classes.index(c)})[e.lower()] = data
    assert samples(root / "out") == wanted
    assert hidden(root / "out") == []
    for path in shards(root / "out"):
        count = len(samples(root / "out", path.name))
        assert count <= maxcount
        assert count == 1 or path.stat().st_size <= maxsize


def sabotage(source: Path, dest: Path, harm: Any, **options: Any) -> Any:
    """Convert, with harm done to the source between the listing and the copying."""

    def planned(plan: Plan) -> None:
        harm()

    return convert(str(source), str(dest), Options(**options), planned=planned)


HARMS = {
    "vanished": (lambda p: p.unlink(), "no such file or directory"),
    "shorter": (lambda p: p.write_bytes(b"x"), "changed while it was packed"),
    "longer": (lambda p: p.write_bytes(bytes(9999)), "changed while it was packed"),
    "a fifo": (lambda p: (p.unlink(), os.mkfifo(p)), "not a regular file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "not a regular file"),
}


@pytest.mark.parametrize("resize", [None, 16])
@pytest.mark.parametrize("harm", HARMS)
def test_files_that_change_under_way(tmp_path: Path, harm: str, resize: int | None) -> None:
    image_tree(tmp_path / "in", each=6)
    act, reason = HARMS[harm]
    path = tmp_path / "in/n1/3.jpg"
    with pytest.raises(SourceError, match=f"n1/3.jpg: {reason}"):
        sabotage(tmp_path / "in", tmp_path / "stop", lambda: act(path), resize=resize, maxcount=2)
    for shard in shards(tmp_path / "stop"):
        assert "n1/3" not in [name.partition(".")[0] for name, _ in members(shard)]
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    image_tree(tmp_path / "in", each=6)
    summary = sabotage(
        tmp_path / "in", tmp_path / "out", lambda: act(path), resize=resize, maxcount=2, on_error="skip", workers=2
    )
    assert summary.reasons() == {reason: 1}
    assert sorted(samples(tmp_path / "out")) == [f"n{c}/{i}" for c in (0, 1) for i in range(6) if (c, i) != (1, 3)]
    line = json.loads((tmp_path / "out/skipped.jsonl").read_text())
    assert (line["key"], line["file"], line["reason"]) == ("n1/3", str(path), reason)
    assert hidden(tmp_path / "out") == []


def test_a_complete_set_still_says_what_it_lacks(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    path = tmp_path / "in/n00/img_001.JPEG"
    data = path.read_bytes()
    first = sabotage(tmp_path / "in", tmp_path / "out", path.unlink, on_error="skip")
    put(tmp_path / "in", {"n00/img_001.JPEG": data})
    again = go(tmp_path / "in", tmp_path / "out", on_error="skip")
    assert again.complete
    assert again.skipped == first.skipped
    assert (again.samples, again.shards, again.nbytes) == (first.samples, first.shards, first.nbytes)


def test_every_sample_left_out(tmp_path: Path) -> None:
    image_tree(tmp_path / "in", classes=1, each=2)

    def harm() -> None:
        for path in (tmp_path / "in/n0").iterdir():
            path.unlink()

    with pytest.raises(SourceError, match="every sample was left out"):
        sabotage(tmp_path / "in", tmp_path / "out", harm, on_error="skip")
    assert shards(tmp_path / "out") == []
    image_tree(tmp_path / "in", classes=1, each=2)
    assert go(tmp_path / "in", tmp_path / "out", on_error="skip").samples == 2


def test_nothing_is_written_for_a_source_that_will_not_do(tmp_path: Path) -> None:
    put(tmp_path / "in", {"n/a.jpg": b"", "n/IMG_1.2.jpg": b""})
    with pytest.raises(SourceError, match="the key has a dot"):
        go(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_do_not_go_into_their_source(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    (tmp_path / "link").symlink_to("in")
    for dest in (tmp_path / "in", tmp_path / "in/sub/x-%d.tar", tmp_path / "link/y"):
        with pytest.raises(DestinationError, match="lies inside of the source"):
            go(tmp_path / "in", dest)
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["n00", "n01", "n02"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "cls"}, "--by .* give --split too"),
        ({"by": "who", "splits": (("a", 1.0),)}, "--by who"),
        ({"drop": frozenset({"x"})}, "no sample has a field 'x'"),
        ({"inline": ("x",)}, "are for manifests"),
        ({"resize_fields": frozenset({"x"})}, "give --resize too"),
        ({"lift": ("key",)}, "--column key: every index has a column of that name"),
        ({"lift": ("_hash",)}, "--column _hash"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: Any, message: str) -> None:
    class_tree(tmp_path / "in")
    with pytest.raises(SourceError, match=message):
        go(tmp_path / "in", tmp_path / "out", **options)


def test_class_names_that_are_no_utf8(tmp_path: Path) -> None:
    put(tmp_path / "in", {"caf\udce9/a.jpg": b"1", "ü/b.jpg": b"2"})
    go(tmp_path / "in", tmp_path / "out", keys="number")
    text = (tmp_path / "out/classes.json").read_bytes().decode()  # valid UTF-8 all the same
    assert json.loads(text) == {"caf\udce9": 0, "ü": 1}
    assert go(tmp_path / "in", tmp_path / "out", keys="number").complete


def test_lifted_columns(tmp_path: Path) -> None:
    put(tmp_path / "in", {f"{i}.json": json.dumps({"w": i, "deep": {"x": f"v{i}"}}) for i in range(9)})
    go(tmp_path / "in", tmp_path / "out", lift=("json:w", "json:deep.x"), maxcount=4)
    table = Index.load(tmp_path / "out/in.wdsindex").table
    assert table.column("json:w").to_pylist() == list(range(9))
    assert table.column("json:deep.x").to_pylist() == [f"v{i}" for i in range(9)]


def held() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def test_workers_stop_when_one_fails(tmp_path: Path) -> None:
    before = held()
    class_tree(tmp_path / "in", classes=2, each=200, nbytes=10)
    with pytest.raises(SourceError, match=r"n00/img_000.JPEG: no such file"):
        sabotage(
            tmp_path / "in",
            tmp_path / "out",
            (tmp_path / "in/n00/img_000.JPEG").unlink,
            shuffle=False,
            maxcount=2,
            workers=2,
        )
    assert len(shards(tmp_path / "out")) < 20  # of 200
    assert all(a <= b for a, b in zip(held(), before, strict=True))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    class_tree(tmp_path / "in")
    calls = iter(range(99))
    fsync = os.fsync

    def full(fd: int) -> None:
        if next(calls) > 1:
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StoreError, match=r"out: (the disk is full|the quota|a file may not).*run the same command again"
    ):
        go(tmp_path / "in", tmp_path / "out", maxcount=2, workers=1)
    monkeypatch.undo()
    assert [n for n in hidden(tmp_path / "out") if n.endswith(".tmp")] == []
    assert go(tmp_path / "in", tmp_path / "out", maxcount=2, workers=1).kept > 0


def test_progress_counts_everything_once(tmp_path: Path) -> None:
    image_tree(tmp_path / "in", each=20)
    told: list[tuple[int, int]] = []
    plans: list[Plan] = []
    for number, options in enumerate([{}, {"resize": 16}, {"splits": (("a", 0.5), ("b", 0.5))}]):
        told.clear()
        plans.clear()
        out = tmp_path / f"out{number}"
        given = Options(maxcount=3, **options)  # type: ignore[arg-type]
        summary = convert(
            str(tmp_path / "in"), str(out), given, progress=lambda *t: told.append(t), planned=plans.append
        )
        assert sum(samples for samples, _ in told) == summary.samples == plans[0].total == 40
        assert abs(sum(nbytes for _, nbytes in told) - summary.nbytes) <= 1024 * summary.shards


def test_empty_files_and_one_sample(tmp_path: Path) -> None:
    put(tmp_path / "in", {"a.jpg": b""})
    assert go(tmp_path / "in", tmp_path / "out").nbytes == 512 + 1024
    assert samples(tmp_path / "out") == {"a": {"jpg": b""}}
    assert len(wdstools.open(str(tmp_path / "out"))) == 1


def test_a_shard_that_is_written_anew_is_gone_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # else its new part could stand beside the old shard, and pass for it
    class_tree(tmp_path / "in")
    lost = tmp_path / "in/n02/img_004.JPEG"
    data = lost.read_bytes()
    with pytest.raises(SourceError, match="no such file"):
        sabotage(tmp_path / "in", tmp_path / "out", lost.unlink, shuffle=False, maxcount=5, workers=1)
    put(tmp_path / "in", {"n02/img_004.JPEG": data})
    first, *_ = shards(tmp_path / "out")
    (tmp_path / "out" / f".{first.name}.part").write_bytes(b"garbage")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="the disk is full"):
        go(tmp_path / "in", tmp_path / "out", shuffle=False, maxcount=5, workers=1)
    assert not first.exists()
    monkeypatch.undo()
    assert go(tmp_path / "in", tmp_path / "out", shuffle=False, maxcount=5, workers=1).kept == 1
    assert len(samples(tmp_path / "out")) == 15
