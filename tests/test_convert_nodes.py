"""wds-shard on a cluster of which a node is lost in the midst of a job: the same bytes."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import raycluster
from convert_helpers import COMMAND, assert_same, go, put, shards


def test_a_node_is_lost(tmp_path: Path) -> None:
    """The larger one, which has most of the tasks; its processes are killed, nothing is told."""
    put(tmp_path / "in", {f"{i:04d}.bin": os.urandom(500_000) for i in range(900)})
    go(tmp_path / "in", tmp_path / "wanted", maxcount=10)
    with raycluster.two_nodes() as (address, lose):
        command = [*COMMAND, str(tmp_path / "in"), str(tmp_path / "out"), "--maxcount", "10"]
        process = subprocess.Popen(
            [*command, "--engine", "ray", "--address", address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and not ((tmp_path / "out").is_dir() and len(shards(tmp_path / "out")) > 2):
            time.sleep(0.01)
        assert len(raycluster.workers()) > 1
        lose()
        left = len(shards(tmp_path / "wanted")) - len(shards(tmp_path / "out"))
        assert left > 0
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    assert_same(tmp_path / "out", tmp_path / "wanted")
