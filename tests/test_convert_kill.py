"""kill -9 at random moments, a full disk, two jobs at once: the same command ends as if nothing had been.

WDS_KILLS=100 makes it as many moments, WDS_SEED=n makes them others.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import raycluster
from convert_helpers import COMMAND, assert_same, go, hidden, put, run, shards

KILLS = int(os.environ.get("WDS_KILLS", "0"))
SEED = int(os.environ.get("WDS_SEED", "0"))
OPTIONS = ["--maxcount", "40"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 MB: a second of work."""
    rng = random.Random(7)
    root = tmp_path_factory.mktemp("kill")
    put(root / "in", {f"n{i % 3}/{i:05d}.bin": rng.randbytes(rng.randrange(200_000)) for i in range(1500)})
    go(root / "in", root / "wanted", maxcount=40)
    return root


def start(*args: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def timed(*args: str | Path) -> float:
    began = time.monotonic()
    process = start(*args)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return time.monotonic() - began


def test_killed_at_random_moments(source: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    out = tmp_path / "out"
    command = (source / "in", out, *OPTIONS)
    lasts = timed(*command)
    assert_same(out, source / "wanted")
    midway = 0
    for _ in range(KILLS or 6):
        shutil.rmtree(out)
        for _again in range(rng.choice([1, 1, 2, 3])):  # also those that go on
            process = start(*command)
            time.sleep(rng.uniform(0.15, lasts))
            process.kill()
            process.communicate()
            midway += process.returncode == -signal.SIGKILL and out.is_dir() and bool(hidden(out))
        timed(*command)
        assert_same(out, source / "wanted")
    assert midway > 1
    sys.stderr.write(f"{KILLS or 6} rounds, {midway} kills in the midst of a job\n")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with raycluster.cluster() as address:
        yield address


def test_killed_on_ray(source: Path, tmp_path: Path, address: str) -> None:
    """A worker or the driver, at any moment of the job."""
    rng = random.Random(SEED)
    out = tmp_path / "out"
    command = (source / "in", out, *OPTIONS, "--engine", "ray", "--address", address)
    lasts = timed(*command)
    assert_same(out, source / "wanted")
    drivers = workers = 0
    for _ in range(KILLS or 2):
        shutil.rmtree(out)
        process = start(*command)
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0.3, lasts))
            process.kill()
            drivers += 1
        else:
            until = time.monotonic() + rng.uniform(0.3, lasts)
            while time.monotonic() < until or (process.poll() is None and not raycluster.workers()):
                time.sleep(0.01)
            for pid in raycluster.workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                workers += 1
        process.communicate(timeout=120)
        timed(*command)
        assert_same(out, source / "wanted")
    sys.stderr.write(f"{drivers} drivers and {workers} workers killed\n")


def limited(nbytes: int) -> Any:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit


def test_a_file_that_may_not_be_so_large(source: Path, tmp_path: Path) -> None:
    """As a disk that fills up in the midst of a shard."""
    out = tmp_path / "out"
    code, _, err = run(source / "in", out, *OPTIONS, preexec_fn=limited(3_500_000))
    assert code == 1
    assert "may not be so large" in err
    assert "run the same command again to go on" in err
    assert [name for name in hidden(out) if not name.endswith((".part", ".wdsjob"))] == []
    kept = len(shards(out))
    assert go(source / "in", out, maxcount=40).kept == kept
    assert_same(out, source / "wanted")


def test_two_jobs_on_one_destination(source: Path, tmp_path: Path) -> None:
    """Of many that start at once, one writes; the others are refused, or find that all is done."""
    out = tmp_path / "out"
    processes = [start(source / "in", out, *OPTIONS) for _ in range(4)]
    told = [process.communicate(timeout=60)[1].decode() for process in processes]
    codes = [process.returncode for process in processes]
    assert codes.count(0) >= 1
    for code, text in zip(codes, told, strict=True):
        assert code == 0 or "another wds-shard is at work on this destination" in text, text
    assert_same(out, source / "wanted")
