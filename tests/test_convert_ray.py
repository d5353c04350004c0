"""wds-shard on Ray: the same bytes as without; lost workers, and errors that are no loss."""

from __future__ import annotations

import os
import signal
import threading
import time
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

        ray.init(address=address, log_to_driver=False)  # one connection: each would take seconds
        yield {"engine": "ray", "address": address}
        ray.shutdown()


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


def test_what_has_no_plan(ray: Ray, tmp_path: Path) -> None:
    image_tree(tmp_path / "in")
    with pytest.raises(SourceError, match="leave --resize to --engine local"):
        go(tmp_path / "in", tmp_path / "out", resize=16, **ray)
    assert not shards(tmp_path / "out")


def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    class_tree(tmp_path / "in")
    code, _, err = run(tmp_path / "in", tmp_path / "out", "--engine", "ray", "--address", "127.0.0.1:1")
    assert code == 1
    assert "ray at 127.0.0.1:1: cannot be reached or started" in err
