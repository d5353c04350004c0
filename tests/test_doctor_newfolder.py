"""A folder that appears whole or not at all, whatever happens to the process that fills it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import make_tar

from wdstools.doctor.newfolder import new_folder, sweep
from wdstools.doctor.repair import repair

KILLED = """
import os, signal, sys
from wdstools.doctor.repair import repair
steps = []
def step(n):
    steps.append(n)
    if len(steps) == 3:  # the first of two shards is written
        os.kill(os.getpid(), signal.SIGKILL)
repair(sys.argv[2:], sys.argv[1], progress=step)
"""
HOLDS = """
import sys
from wdstools.doctor.newfolder import new_folder
with new_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_a_killed_repair_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    shards = [str(tmp_path / name) for name in ("a.tar", "b.tar")]
    for number, shard in enumerate(shards):
        Path(shard).write_bytes(make_tar([(f"{number}{i}.txt", b"x" * 1000) for i in range(5)]))
    out = tmp_path / "to" / "out"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(out), *shards], check=False)
        assert done.returncode == -signal.SIGKILL
        (left,) = names(out.parent)  # of this run only
        assert left.startswith(".out.")
        assert names(out.parent / left) == ["a.tar"]
    others = [".out.tmp", ".out.x.abcdefgh.tmp", ".outer.abcdefgh.tmp", "out.abcdefgh.tmp", ".out.ABCDEFGH.tmp"]
    for name in others:
        (out.parent / name).mkdir()
    (out.parent / ".out.file_abc.tmp").write_bytes(b"no folder")
    (out.parent / ".out.link_abc.tmp").symlink_to(tmp_path)
    assert repair(shards, str(out)).samples == 10
    assert names(out.parent) == sorted([*others, ".out.file_abc.tmp", ".out.link_abc.tmp", "out"])
    assert names(tmp_path) == ["a.tar", "b.tar", "to"]


def test_what_another_is_at_work_on_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        folder = other.stdout.readline().strip()
        sweep(str(tmp_path), "out")
        with pytest.raises(ValueError, match="mine"), new_folder(str(out)):
            raise ValueError("mine")
        assert names(tmp_path) == [os.path.basename(folder)]
        other.communicate("")
    assert (other.returncode, names(tmp_path)) == (0, ["out"])


def interrupted(out: str) -> None:
    with new_folder(out) as folder:
        (Path(folder) / "x").touch()
        raise KeyboardInterrupt


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(str(out))
    assert names(tmp_path) == []
    out.mkdir()  # empty: it may be replaced
    with new_folder(str(out)) as folder:
        (Path(folder) / "x").touch()
        assert names(out) == []
    assert names(out) == ["x"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert out.stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match="not empty"), new_folder(str(out)):
        pass
    assert names(out) == ["x"]
    assert names(tmp_path) == ["out", "plain"]
