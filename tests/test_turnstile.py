"""The turnstile and the device under a file, through tests/turnstile_worker.c; and `fread` where readers are killed.

`python tests/test_turnstile.py SECONDS` kills for longer than the test does."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import wait_until
from freading import NATIVE, compile_c, environment, fread, start
from helpers import make_tar

import wdstools
from wdstools import _core

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("worker")
    return compile_c(
        here / "worker",
        f'-DWDS_SYS="{here}/sys"',
        HERE / "turnstile_worker.c",
        NATIVE / "turnstile.c",
        NATIVE / "lockfile.c",
    )


class Workers:
    """Processes that take turns, and the log of who was in."""

    def __init__(self, program: Path, folder: Path, slots: int = 1, patience: int = 30) -> None:
        self.program, self.slots, self.log, self.file = program, slots, folder / "log", folder / "file"
        self.file.write_bytes(b"x")
        self.log.touch()
        self.env = environment(WDS_LOCK_DIR=str(folder / "locks"), WDS_LOCK_PATIENCE=str(patience))
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, turns: int, hold_ms: float) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            args = [self.program, "turns", self.file, str(self.slots), str(turns), str(hold_ms)]
            p = subprocess.Popen(args, stdout=log, stderr=subprocess.PIPE, env=self.env)
        self.running.append(p)
        return p

    def events(self) -> list[tuple[str, int]]:
        return [(line[0], int(line[2:])) for line in self.log.read_text().splitlines()]

    def turns_of(self, p: subprocess.Popen[bytes]) -> int:
        return self.events().count(("+", p.pid))

    def finish(self) -> None:
        for p in self.running:
            _, err = p.communicate(timeout=60)
            assert (p.returncode, err) == (0, b"")

    def most_at_once(self) -> int:
        inside = most = 0
        for sign, _ in self.events():
            inside += 1 if sign == "+" else -1
            most = max(most, inside)
        return most


@pytest.mark.parametrize(("slots", "count"), [(1, 8), (3, 8), (8, 4), (1, 64)])
def test_never_more_than_the_slots(built: Path, tmp_path: Path, slots: int, count: int) -> None:
    workers = Workers(built, tmp_path, slots)
    for _ in range(count):
        workers.start(240 // count, 1)
    workers.finish()
    assert len(workers.events()) == 2 * count * (240 // count)
    assert workers.most_at_once() == min(slots, count)


def test_turns_go_round(built: Path, tmp_path: Path) -> None:
    workers = Workers(built, tmp_path)
    blocker = workers.start(1, 700)
    assert wait_until(lambda: workers.turns_of(blocker) == 1)
    for _ in range(6):
        workers.start(10, 5)
    workers.finish()
    order = [pid for sign, pid in workers.events()[2:] if sign == "+"]
    assert [Counter(order[i : i + 6]).most_common(1)[0][1] for i in range(0, 60, 6)] == [1] * 10


def test_the_dead_are_not_waited_for(built: Path, tmp_path: Path) -> None:
    workers = Workers(built, tmp_path)
    first, second, third = workers.start(1, 60_000), workers.start(5, 1), workers.start(5, 1)
    assert wait_until(lambda: workers.turns_of(first) + workers.turns_of(second) + workers.turns_of(third) >= 1)
    assert wait_until(lambda: workers.turns_of(first) == 1)
    fourth = workers.start(5, 1)
    time.sleep(0.1)
    second.kill()  # waiting or gone
    began = time.monotonic()
    first.kill()  # in its turn
    third.wait(10)
    fourth.wait(10)
    assert time.monotonic() - began < 2
    assert workers.turns_of(third) == workers.turns_of(fourth) == 5
    for p in workers.running:
        p.communicate()


@pytest.mark.parametrize("slots", [1, 2])
def test_who_stands_still_is_overtaken_and_may_come_back(built: Path, tmp_path: Path, slots: int) -> None:
    workers = Workers(built, tmp_path, slots, patience=1)
    stopped = [workers.start(2, 200) for _ in range(slots)]
    assert wait_until(lambda: all(workers.turns_of(p) for p in stopped))
    for p in stopped:
        p.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    others = [workers.start(5, 1) for _ in range(3)]
    errors = b"".join(p.communicate(timeout=20)[1] for p in others)
    assert 0.9 < time.monotonic() - began < 10
    assert errors.count(b"a reader has stood still in its turn for 1 seconds") == slots
    assert [workers.turns_of(p) for p in others] == [5, 5, 5]
    for p in stopped:
        p.send_signal(signal.SIGCONT)
        assert p.wait(20) == 0
        p.communicate()
    assert [workers.turns_of(p) for p in stopped] == [2] * slots


# -------------------------------------------------------------------------------------------------------------- devices


def fake_sys(built: Path) -> None:
    """sda with a partition, an SSD; LVM on the partition; md of one disk and of two; a dm of two partitions of one."""
    root = built.parent / "sys"
    if root.exists():
        return

    def block(name: str, number: str, *, rotational: int = 1, slaves: tuple[str, ...] = ()) -> None:
        here = root / "devices" / name
        (here / "slaves").mkdir(parents=True)
        (here / "dev").write_text(f"{number}\n")
        if "/" in name:
            (here / "partition").write_text("1\n")
        else:
            (here / "queue").mkdir()
            (here / "queue" / "rotational").write_text(f"{rotational}\n")
        for slave in slaves:
            (here / "slaves" / Path(slave).name).symlink_to(root / "devices" / slave)
        (root / "dev" / "block").mkdir(parents=True, exist_ok=True)
        (root / "dev" / "block" / number).symlink_to(here)

    block("sda", "8:0")
    block("sda/sda1", "8:1")
    block("sda/sda2", "8:2")
    block("sdb", "8:16")
    block("nvme0", "259:0", rotational=0)
    block("dm-0", "252:0", slaves=("sda/sda1",))
    block("dm-1", "252:1", slaves=("dm-0",))
    block("dm-2", "252:2", slaves=("sda/sda1", "sda/sda2"))
    block("md0", "9:0", slaves=("sda", "sdb"))
    block("md1", "9:1", slaves=("nvme0",))
    block("dm-3", "252:3", slaves=("dm-3",))  # lies on itself


DISK, FLAT = 2, 1


@pytest.mark.parametrize(
    ("number", "disk", "kind"),
    [
        ("8:0", "8:0", DISK), ("8:1", "8:0", DISK), ("8:16", "8:16", DISK), ("259:0", "259:0", FLAT),
        ("252:0", "8:0", DISK), ("252:1", "8:0", DISK), ("252:2", "8:0", DISK), ("9:0", "9:0", DISK),
        ("9:1", "259:0", FLAT), ("252:3", "252:3", DISK), ("77:7", "77:7", DISK),
    ],
)  # fmt: skip
def test_the_disk_under_a_device(built: Path, number: str, disk: str, kind: int) -> None:
    fake_sys(built)
    done = subprocess.run([built, "disk", *number.split(":")], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"0 {disk} {kind}\n"


@pytest.mark.parametrize(
    ("kind", "microseconds", "heads", "expected"),
    [
        ("disk", 5000, 1, "seeks"), ("disk", 5000, 4, "seeks"), ("disk", 10, 1, "flat"), ("disk", 10, 64, "flat"),
        ("mount", 5000, 1, "seeks"), ("mount", 5000, 3, "seeks"), ("mount", 20_000, 64, "flat"),
        ("mount", 10, 1, "flat"),
    ],
)  # fmt: skip
def test_a_probe_tells_what_seeks(built: Path, kind: str, microseconds: int, heads: int, expected: str) -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, 8 << 20)
        done = subprocess.run(
            [built, "probe", file.name, kind, str(microseconds), str(heads)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert done.stdout == f"{expected}\n"
        os.truncate(file.name, 1 << 20)
        done = subprocess.run(
            [built, "probe", file.name, kind, "5000", "1"], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout == "unsure\n"


# --------------------------------------------------------------------------------------------------------- all at once


def read_while_killing(folder: Path, seconds: float, readers: int = 8) -> tuple[int, int]:
    """Readers of `readers` files for some seconds; a random one is killed every tenth of a second. The bytes of all
    others must be right. Returns how many were whole, and how many were killed."""
    rng = random.Random(7)
    contents = [rng.randbytes((1 << 20) + i) * 4 for i in range(readers)]
    for i, data in enumerate(contents):
        (folder / f"{i}").write_bytes(data)
    # One that is killed while LeakSanitizer looks through its threads has something to say, where it has one.
    env = {"WDS_LOCK_DIR": str(folder / "locks"), "ASAN_OPTIONS": "detect_leaks=0"}
    over = time.monotonic() + seconds
    live: list[subprocess.Popen[bytes] | None] = [None] * readers
    whole, killed, wrong = [0] * readers, 0, []

    def keep_reading(i: int) -> None:
        while time.monotonic() < over:
            with start("--lock", "always", "--direct", "--chunk", "256K", folder / f"{i}", env=env) as p:
                live[i] = p
                out, err = p.communicate(timeout=60)
            if p.returncode == 0 and out == contents[i] and not err:
                whole[i] += 1
            elif p.returncode != -signal.SIGKILL or not contents[i].startswith(out) or err:
                wrong.append((i, p.returncode, len(out), err))

    threads = [threading.Thread(target=keep_reading, args=(i,)) for i in range(readers)]
    for thread in threads:
        thread.start()
    while time.monotonic() < over:
        time.sleep(0.1)
        victim = live[rng.randrange(readers)]
        if victim is not None and victim.poll() is None:
            victim.kill()
            killed += 1
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(whole) > 0, whole
    return sum(whole), killed


def test_readers_are_killed_and_the_others_go_on(tmp_path: Path) -> None:
    whole, killed = read_while_killing(tmp_path, 4)
    assert killed > 5
    assert whole > 20


def test_64_readers(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 << 20)
    (tmp_path / "a").write_bytes(data)
    args = ["-v", "--lock", "always", "--direct", "--chunk", "512K", tmp_path / "a"]
    running = [start(*args, env={"WDS_LOCK_DIR": str(tmp_path / "locks")}) for _ in range(64)]
    for p in running:
        out, err = p.communicate(timeout=60)
        assert (p.returncode, out) == (0, data)
        assert re.search(rb" in 6 turns", err)


def test_the_first_reader_alone_probes(tmp_path: Path) -> None:
    """Readers that start together on a disk that nobody knows find the same answer, and all bytes come."""
    data = random.Random(1).randbytes(8 << 20)
    (tmp_path / "a").write_bytes(data)
    running = [start("-v", tmp_path / "a", env={"WDS_LOCK_DIR": str(tmp_path / "locks")}) for _ in range(6)]
    for p in running:
        out, err = p.communicate(timeout=60)
        assert (p.returncode, out) == (0, data)
        assert b"warning" not in err
    assert fread(tmp_path / "a", env={"WDS_LOCK_DIR": str(tmp_path / "locks")}).stdout == data


# -------------------------------------------------------------------------------------------------------------- streams

STREAM = """
import hashlib, os, sys, time
import wdstools
seen = hashlib.sha256()
for path in sys.argv[2:]:
    for i, sample in enumerate(wdstools.stream(path)):
        if i == 3 and sys.argv[1] == "slowly":
            time.sleep(1)
        seen.update(sample["bin"])
print(seen.hexdigest())
"""


def make_cold(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def big_shard(path: Path) -> str:
    """A shard of 61 MiB; returns the hash of its payloads."""
    rng, seen, files = random.Random(3), hashlib.sha256(), []
    for i in range(61):
        data = rng.randbytes(1 << 20)
        seen.update(data)
        files.append((f"s{i:03}.bin", data))
    path.write_bytes(make_tar(files))
    make_cold(path)
    return seen.hexdigest()


def streaming(locks: Path, *args: str | Path, lock: str = "always") -> subprocess.Popen[str]:
    env = environment(WDS_LOCK=lock, WDS_LOCK_DIR=str(locks))
    return subprocess.Popen([sys.executable, "-c", STREAM, *args], env=env, stdout=subprocess.PIPE, text=True)


def tickets(locks: Path) -> int:
    (file,) = locks.iterdir()
    return int.from_bytes(file.read_bytes()[:8], "little")


def test_streams_take_turns(tmp_path: Path) -> None:
    path, locks = tmp_path / "a.tar", tmp_path / "locks"
    expected = big_shard(path)
    assert streaming(locks, "", path, lock="never").communicate(timeout=60) == (f"{expected}\n", None)
    assert not locks.exists()
    assert streaming(locks, "", path).communicate(timeout=60) == (f"{expected}\n", None)
    assert tickets(locks) == 0  # the page cache has it
    make_cold(path)
    running = [streaming(locks, how, path) for how in ("", "slowly", "slowly")]
    assert [p.communicate(timeout=60) for p in running] == [(f"{expected}\n", None)] * 3
    assert tickets(locks) >= 3
    make_cold(path)
    before = tickets(locks)
    assert streaming(locks, "", path, path).communicate(timeout=60)[1] is None
    assert 3 <= tickets(locks) - before <= 8  # 12 MiB, and then 32 at a time; less where the kernel reads far ahead


def test_a_range_is_brought_in_in_turn(tmp_path: Path) -> None:
    path, locks = tmp_path / "a.tar", tmp_path / "locks"
    big_shard(path)
    size = path.stat().st_size
    code = (
        "import os, sys\n"
        "from wdstools import _core\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        f"_core.bring_in(fd, {size // 3}, {size} + 999)\n"
        f"print(os.preadv(fd, [bytearray(4096)], {size // 2}, os.RWF_NOWAIT))\n"
    )

    def run(lock: str) -> str:
        env = environment(WDS_LOCK=lock, WDS_LOCK_DIR=str(locks))
        return subprocess.run(
            [sys.executable, "-c", code, path], env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    make_cold(path)
    assert run("never") == "4096\n"
    assert not locks.exists()
    make_cold(path)
    assert run("always") == "4096\n"
    assert tickets(locks) == 1
    assert run("always") == "4096\n"
    assert tickets(locks) == 1  # the page cache has it
    with path.open("rb") as file:
        with pytest.raises(ValueError, match="not a byte range"):
            _core.bring_in(file.fileno(), 2, 1)
        with pytest.raises(OverflowError):
            _core.bring_in(file.fileno(), -1, 1)
        assert _core.bring_in(file.fileno(), 5, 5) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.bring_in(999_999, 0, 10)


def test_a_stream_that_waits_for_its_turn_can_be_closed(built: Path, tmp_path: Path) -> None:
    big_shard(tmp_path / "a.tar")
    workers = Workers(built, tmp_path)
    holder = workers.start(1, 60_000)
    assert wait_until(lambda: workers.turns_of(holder) == 1)
    code = (
        "import sys, threading, time, wdstools; s = wdstools.stream(sys.argv[1])\n"
        "threading.Timer(0.5, lambda: (print('closing', flush=True), __import__('_thread').interrupt_main())).start()\n"
        "try: next(iter(s))\n"
        "except KeyboardInterrupt: s.close(); print('closed')\n"
    )
    env = workers.env | {"WDS_LOCK": "always", "WDS_LOCK_PATIENCE": "60"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.tar"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "closing\nclosed\n"
    assert time.monotonic() - began < 20
    holder.kill()
    holder.communicate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(f"whole, killed: {read_while_killing(Path(folder), float(sys.argv[1]))}\n")


@pytest.mark.parametrize(
    ("name", "value"), [("WDS_LOCK", "sometimes"), ("WDS_LOCK_SLOTS", "0"), ("WDS_LOCK_SLOTS", "two")]
)
def test_an_environment_without_a_meaning(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("a.cls", b"1")]))
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="WDS_LOCK is auto, always or never"):
        next(iter(wdstools.stream(tmp_path / "a.tar")))
    monkeypatch.setenv(name, "")
    assert next(iter(wdstools.stream(tmp_path / "a.tar")))["cls"] == b"1"
