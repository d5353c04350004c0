"""wds-shard on Ray: the same bytes as without; lost workers, and errors that are no loss."""

from __future__ import annotations

import os
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import raycluster
from convert_helpers import assert_same, class_tree, go, image_tree, put, run, shards

from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import SourceError

Ray = dict[str, Any]


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    """The options that lead to one small cluster for all of these tests."""
    with raycluster.cluster() as address:
        import ray

        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
        try:
            ray.init(address=address, log_to_driver=False)  # one connection: each would take seconds
            yield {"engine": "ray", "address": address}
            ray.shutdown()
        finally:
            signal.signal(signal.SIGTERM, handler)


def test_the_same_bytes(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in", 3, 20, 3000)
    (tmp_path / "in/n00/nowhere.jpg").symlink_to("gone")
    options = {"maxcount": 7, "splits": (("train", 0.7), ("val", 0.3)), "by": "cls", "on_error": "skip"}
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    wanted = go("in", "wanted", **options)
    found = go("in", "out", **ray, **options)
    assert_same(tmp_path / "out", tmp_path / "wanted")
    assert (found.samples, found.shards, found.skipped) == (wanted.samples, wanted.shards, wanted.skipped)
    assert go("in", "out", **options).complete


def test_shards_and_manifests(ray: Ray, tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    go(tmp_path / "in", tmp_path / "a", maxcount=4)
    put(tmp_path / "in", {"m.csv": "path,caption\nn00/img_000.JPEG,one\nn01/img_002.JPEG,two\n"})
    for source, more in ((tmp_path / "a/in.wdsindex", {"drop": frozenset({"cls"})}), (tmp_path / "in/m.csv", {})):
        go(source, tmp_path / f"ray-{source.stem}", maxcount=1, shuffle=True, **ray, **more)
        go(source, tmp_path / f"local-{source.stem}", maxcount=1, shuffle=True, **more)
        assert_same(tmp_path / f"ray-{source.stem}", tmp_path / f"local-{source.stem}")


def test_a_bad_file_is_told_and_the_rest_goes_on_later(ray: Ray, tmp_path: Path) -> None:
    class_tree(tmp_path / "in", 2, 20)
    path = tmp_path / "in/n01/img_003.JPEG"
    data = path.read_bytes()

    def change(plan: object) -> None:
        path.write_bytes(data + b"more")

    with pytest.raises(SourceError, match=f"{path}: changed while it was packed: {len(data)} bytes when listed"):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), Options(maxcount=2, **ray), planned=change)
    put(tmp_path / "in", {"n01/img_003.JPEG": data})
    go(tmp_path / "in", tmp_path / "out", maxcount=2, **ray)
    go(tmp_path / "in", tmp_path / "wanted", maxcount=2)
    assert_same(tmp_path / "out", tmp_path / "wanted")


def test_killed_workers(ray: Ray, tmp_path: Path) -> None:
    put(tmp_path / "in", {f"{i:04d}.bin": os.urandom(500_000) for i in range(900)})
    go(tmp_path / "in", tmp_path / "wanted", maxcount=10)
    killed, over = [], threading.Event()

    def kill() -> None:
        while not over.wait(0.005) and len(killed) < 5:
            for pid in raycluster.workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                time.sleep(0.2)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        go(tmp_path / "in", tmp_path / "out", maxcount=10, **ray)
    finally:
        over.set()
        thread.join()
    assert killed
    assert_same(tmp_path / "out", tmp_path / "wanted")


SUBSETS: list[dict[str, Any]] = [
    {"where": "cls = 1"},
    {"sort_by": "key", "descending": True},
    {"sample": 7, "seed": 3, "splits": (("a", 0.5), ("b", 0.5))},
    {"join": ("w.csv",), "where": "loss > 2", "sort_by": "loss", "lift": ("loss",)},
    {"where": "cls = 1", "drop": frozenset({"cls"})},
]


def test_subsets(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_tree(tmp_path / "in")
    put(
        tmp_path,
        {"w.csv": "key,loss\n" + "".join(f"n{c:02d}/img_{i:03d},{c * i}\n" for c in range(3) for i in range(5))},
    )
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    go("in", "all", maxcount=4)
    for number, options in enumerate(SUBSETS):
        go("all/in.wdsindex", f"ray-{number}", maxcount=2, **ray, **options)
        go("all/in.wdsindex", f"local-{number}", maxcount=2, **options)
        assert_same(tmp_path / f"ray-{number}", tmp_path / f"local-{number}")


def archives(root: Path) -> list[str]:
    class_tree(root / "in")
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        for path in sorted((root / "in").rglob("*.JPEG")):
            archive.write(path, str(path.relative_to(root / "in")))
    with tarfile.open(root / "n.tar", "w") as outer:
        for folder in sorted((root / "in").iterdir()):
            with tarfile.open(root / f"{folder.name}.tar", "w") as inner:
                inner.add(folder, ".")
            outer.add(root / f"{folder.name}.tar", f"{folder.name}.tar")
    return ["z.zip", "n.tar"]


def test_archives(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in archives(tmp_path):
        out = source.replace(".", "-")
        go(source, f"ray-{out}", maxcount=2, **ray)
        go(source, f"local-{out}", maxcount=2)
        assert_same(tmp_path / f"ray-{out}", tmp_path / f"local-{out}")

        def change(plan: object, source: str = source) -> None:
            path = tmp_path / source
            put(tmp_path, {"new": path.read_bytes()[:-1] + b"x"}, age=30)
            (tmp_path / "new").rename(path)

        with pytest.raises(SourceError, match=f"{source}: changed while it was packed"):
            convert(source, f"changed-{out}", Options(maxcount=2, **ray), planned=change)
        assert not shards(tmp_path / f"changed-{out}")


def test_what_has_no_plan(ray: Ray, tmp_path: Path) -> None:
    image_tree(tmp_path / "in")
    for option, value in (("resize", 16), ("map", "json:dumps")):
        with pytest.raises(SourceError, match=f"leave --{option} to --engine local"):
            go(tmp_path / "in", tmp_path / "out", **{option: value}, **ray)
    assert not (tmp_path / "out").exists()


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    code, _, err = run(tmp_path / "in", tmp_path / "out", "--engine", "ray", "--address", "127.0.0.1:1")
    assert code == 1
    assert "ray at 127.0.0.1:1: cannot be reached or started" in err
