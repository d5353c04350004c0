"""The lock on a local destination."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from wdstools.convert.filelock import FileLock
from wdstools.errors import DestinationError

HOLDS = """
import sys
from wdstools.convert.filelock import FileLock
lock = FileLock(sys.argv[1])
lock.write(b"mine")
print("held", flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DestinationError, match="lock: another wds-shard is at work on this destination"):
            FileLock(path)
        other.kill()
    assert other.returncode == -signal.SIGKILL
    lock = FileLock(path)
    assert Path(path).read_bytes() == b"mine"
    lock.write(b"ours, longer")
    lock.write(b"ours")
    lock.close()
    assert Path(path).read_bytes() == b"ours"


def test_the_file_goes_if_it_is_empty_or_done_with(tmp_path: Path) -> None:
    for write, remove in ((False, False), (True, True)):
        lock = FileLock(str(tmp_path / "lock"))
        if write:
            lock.write(b"x")
        lock.close(remove=remove)
        assert os.listdir(tmp_path) == []


def test_of_many_that_come_and_go_one_has_it(tmp_path: Path) -> None:
    """Each removes the file, so those that wait may lock one that is gone."""
    path, held, most = str(tmp_path / "lock"), [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                lock = FileLock(path)
            except DestinationError:
                continue
            held[0] += 1
            most[0] = max(most[0], held[0])
            held[0] -= 1
            lock.close(remove=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert os.listdir(tmp_path) == []
