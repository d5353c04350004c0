"""The program `fread`: bytes, options, errors."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_until
from freading import NATIVE, compile_c, environment, fread, program, start
from hypothesis import given, settings
from hypothesis import strategies as st

MiB = 1 << 20
DATA = random.Random(4).randbytes(4 * MiB + 777)
MODES = [["--lock", "never"], ["--lock", "always"], ["--lock", "auto"], ["--direct"], ["--no-cache"]]
MODES += [["--direct", "--lock", "always", "--ahead", "0"], ["--no-cache", "--lock", "always", "--ahead", "3"]]


@pytest.fixture(autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns that nobody else takes."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))


def save(path: Path, data: bytes = DATA) -> Path:
    path.write_bytes(data)
    return path


def turns(done: subprocess.CompletedProcess[bytes]) -> int:
    (found,) = re.findall(rb" in (\d+) turns", done.stderr)
    return int(found)


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_files_one_after_the_other(tmp_path: Path, mode: list[str]) -> None:
    sizes = [0, 1, 4095, 4096, 4097, 65536, MiB - 1, MiB, MiB + 1, len(DATA), 3]
    files = [save(tmp_path / str(i), DATA[:n]) for i, n in enumerate(sizes)]
    done = fread("--chunk", "256K", *mode, *files)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(DATA[:n] for n in sizes)


@settings(max_examples=60)
@given(
    size=st.integers(0, 70_000), cuts=st.tuples(st.integers(0, 70_000), st.integers(0, 70_000)),
    chunk=st.sampled_from(["1", "4096", "12K", "1M"]), mode=st.sampled_from(MODES), open_end=st.booleans(),
)  # fmt: skip
def test_ranges(size: int, cuts: tuple[int, int], chunk: str, mode: list[str], open_end: bool) -> None:
    first, last = sorted(min(cut, size) for cut in cuts)
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(DATA[:size])
        file.flush()
        done = fread("--chunk", chunk, *mode, "--range", f"{first}-{'' if open_end else last}", file.name)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == DATA[first : size if open_end else last]


@pytest.mark.parametrize("given_range", ["5-4097", "4096-", "0-0", "100000-200000"])
def test_ranges_of_a_pipe(tmp_path: Path, given_range: str) -> None:
    first, _, last = given_range.partition("-")
    done = fread("--range", given_range, "-", input=DATA)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == DATA[int(first) : int(last) if last else None]


def test_pipes_and_stdin_and_files_together(tmp_path: Path) -> None:
    path = save(tmp_path / "a", DATA[:5000])
    assert fread(path, "-", path, input=b"between").stdout == DATA[:5000] + b"between" + DATA[:5000]
    assert fread("--lock", "always", path, "-", path, input=b"between").stdout == DATA[:5000] + b"between" + DATA[:5000]
    os.mkfifo(tmp_path / "fifo")
    with start(tmp_path / "fifo") as p:
        (tmp_path / "fifo").write_bytes(DATA[:50_000])
        assert p.communicate(timeout=60) == (DATA[:50_000], b"")
    with open(path, "rb") as file:  # from where it stands, as cat
        os.lseek(file.fileno(), 1000, os.SEEK_SET)
        assert fread("--lock", "always", "-", stdin=file).stdout == DATA[1000:5000]


def test_braces_where_there_is_no_such_file(tmp_path: Path) -> None:
    for i in range(8, 12):
        save(tmp_path / f"a-{i:02}-{i % 2}", b"%d " % i)
    assert fread(f"{tmp_path}/a-{{08..08}}-{{0..0}}").stdout == b"8 "
    for i in range(8, 12):
        save(tmp_path / f"b-{i:02}", b"%d " % i)
        save(tmp_path / f"c{i}", b"%d " % i)
    assert fread(f"{tmp_path}/b-{{08..11}}").stdout == b"8 9 10 11 "
    assert fread(f"{tmp_path}/b-{{11..08}}").stdout == b"11 10 9 8 "
    assert fread(f"{tmp_path}/c{{8..11}}").stdout == b"8 9 10 11 "
    done = fread(f"{tmp_path}/b-{{08..13}}")
    assert (done.returncode, done.stdout) == (1, b"8 9 10 11 ")
    assert done.stderr.endswith(b"/b-12: No such file or directory\n")
    save(tmp_path / "b-{08..11}", b"itself")
    assert fread(f"{tmp_path}/b-{{08..11}}").stdout == b"itself"
    assert fread(f"{tmp_path}/x{{8..}}").stderr.endswith(b"/x{8..}: No such file or directory\n")


# ------------------------------------------------------------------------------------------------------------ options


def test_options_stand_in_the_environment_too(tmp_path: Path) -> None:
    path = save(tmp_path / "a")
    assert b" in 0 turns" in fread("-v", "--lock", "never", path).stderr
    env = {"FREAD_VERBOSE": "1", "FREAD_LOCK": "always", "FREAD_CHUNK": "64K", "FREAD_NO_CACHE": "1"}
    env |= {
        "FREAD_AHEAD": "2",
        "FREAD_SLOTS": "2",
        "FREAD_PIPE_SIZE": "64K",
        "FREAD_RANGE": "0-1M",
        "FREAD_DIRECT": "1",
    }
    done = fread(path, env=env)
    assert done.stdout == DATA[:MiB]
    assert re.fullmatch(rb"fread: 1048576 bytes in .* waited .* in 16 turns, read .* wrote .*\n", done.stderr)
    assert b" in 0 turns" in fread("--lock", "never", path, env=env).stderr
    assert b" in 0 turns" in fread(path, env=env | {"WDS_LOCK": "always", "FREAD_LOCK": "never"}).stderr
    assert (
        b" in 16 turns"
        in fread(path, env={k: v for k, v in env.items() if k != "FREAD_LOCK"} | {"WDS_LOCK": "always"}).stderr
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("8K", 8192),
        ("8KiB", 8192),
        ("8kB", 8192),
        ("1M", MiB),
        ("1MB", 1003520),
        ("1MiB", MiB),
    ],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    path = save(tmp_path / "a")
    assert turns(fread("-v", "--lock", "always", "--direct", "--chunk", text, path)) == -(-len(DATA) // size)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "no FILE given"), (["--chunk"], "--chunk: needs a value"), (["--bogus", "f"], "--bogus: no such option"),
        (["-x", "f"], "no such option"), (["--chunk", "0", "f"], "a size from 1"), (["--chunk", "1X", "f"], "a size"),
        (["--chunk", "-1", "f"], "a size"), (["--chunk", "99999999999999999999", "f"], "a size"),
        (["--chunk", "9999999T", "f"], "a size"), (["--ahead", "-1", "f"], "a number from 0 to 1024"),
        (["--slots", "0", "f"], "a number from 1 to 1024"), (["--lock", "often", "f"], "auto, always or never"),
        (["--range", "5", "f"], "A-B or A-"), (["--range", "5-4", "f"], "A-B or A-"),
        (["--range", "-5", "f"], "A-B or A-"),
        (["--range", "0-5", "f", "g"], "one FILE"), (["--range", "4-3-2", "f"], "A-B or A-"),
    ],
)  # fmt: skip
def test_wrong_usage(args: list[str], reason: str) -> None:
    done = fread(*args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert reason in done.stderr.decode()
    assert done.stderr.startswith(b"fread: ")
    assert done.stderr.count(b"\n") == 1


def test_wrong_environment(tmp_path: Path) -> None:
    done = fread(save(tmp_path / "a"), env={"FREAD_CHUNK": "big"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"FREAD_CHUNK=big must be a size" in done.stderr
    assert fread(tmp_path / "a", env={"FREAD_CHUNK": ""}).returncode == 0


def test_help_and_version() -> None:
    done = fread("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    page = (NATIVE.parent / "docs" / "fread.md").read_text()
    assert textwrap.indent(done.stdout.decode(), "    ").rstrip() in page
    assert fread("--version").stdout.startswith(b"fread (wdstools) ")


# ------------------------------------------------------------------------------------------------------------- errors


def test_what_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a", b"before")
    for bad, reason in (
        (tmp_path / "none", b"No such file"),
        (tmp_path, b"is a directory"),
        (path / "x", b"Not a dir"),
    ):
        done = fread(path, bad, path)
        assert (done.returncode, done.stdout) == (1, b"before"), bad
        assert done.stderr.startswith(b"fread: %s: " % bytes(bad))
        assert reason in done.stderr
    with open(path, "ab") as both:
        p = subprocess.run([program(), path], stdout=both, stderr=subprocess.PIPE, check=False, timeout=60)
        assert p.returncode == 1
        assert b"is the output too" in p.stderr
    for given_range in ("7-", "0-7", "9-10"):
        done = fread("--range", given_range, path)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"has 6 bytes" in done.stderr


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_a_closed_consumer_is_silent(tmp_path: Path, mode: list[str]) -> None:
    path = save(tmp_path / "a")
    for restore in (True, False):  # with SIGPIPE as it is, and ignored as Python leaves it
        with start("--chunk", "256K", *mode, path, restore_signals=restore) as p:
            assert p.stdout
            assert p.stdout.read(10) == DATA[:10]
            p.stdout.close()
            assert p.stderr
            assert p.stderr.read() == b""
            assert p.wait(60) == -signal.SIGPIPE


@pytest.mark.parametrize("lock", ["never", "always"])
def test_a_full_disk_behind_stdout(tmp_path: Path, lock: str) -> None:
    path = save(tmp_path / "a")
    with open("/dev/full", "wb") as full:
        p = subprocess.run(
            [program(), "--lock", lock, path], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
        )
    assert p.returncode == 1
    assert p.stderr == b"fread: standard output: write error: No space left on device\n"


SHIM = """
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
/* Reads that touch byte BAD fail: those past the page cache as a whole, others from there on. */
static ssize_t shim(int fd, void *to, size_t n, off_t at) {
  static ssize_t (*next)(int, void *, size_t, off_t);
  if (!next) next = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
  const char *bad = getenv("BAD");
  off_t b = bad ? atoll(bad) : -1;
  if (b >= at && b < at + (off_t)n) {
    if (b / 4096 == at / 4096 || fcntl(fd, F_GETFL) & O_DIRECT) {
      errno = EIO;
      return -1;
    }
    n = (size_t)(b / 4096 * 4096 - at);
  }
  return next(fd, to, n, at);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) { return shim(fd, to, n, at); }
ssize_t pread64(int fd, void *to, size_t n, off_t at) { return shim(fd, to, n, at); }
int posix_fallocate(int fd, off_t at, off_t n) { return getenv("FULL") ? ENOSPC : ftruncate(fd, at + n); }
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library to preload: EIO at byte $BAD, and where $FULL is set a disk without room for a lock file."""
    here = tmp_path_factory.mktemp("shim")
    (here / "shim.c").write_text(SHIM)
    return compile_c(here / "shim.so", "-shared", "-fPIC", here / "shim.c", "-ldl")


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_what_comes_before_a_read_error_is_written(tmp_path: Path, shim: Path, mode: list[str]) -> None:
    path = save(tmp_path / "a")
    for bad in (0, 4096, 3 * MiB + 5000, len(DATA) - 1):
        env = {"LD_PRELOAD": str(shim), "ASAN_OPTIONS": "verify_asan_link_order=0", "BAD": str(bad)}
        done = fread("--chunk", "1M", *mode, path, path, env=env)
        at = bad // 4096 * 4096
        assert done.returncode == 1
        assert done.stdout == DATA[:at]
        assert done.stderr == f"fread: {path}: read error at byte {at}: Input/output error\n".encode()


# ---------------------------------------------------------------------------------- files that change, and consumers


def blocked(p: subprocess.Popen[bytes]) -> bool:
    """Whether a process waits: for its consumer, here."""
    tasks = [
        Path(f"/proc/{p.pid}/task/{task}/stat").read_text().split(")")[1].split()[0]
        for task in os.listdir(f"/proc/{p.pid}/task")
    ]
    return set(tasks) == {"S"}


def wait_blocked(p: subprocess.Popen[bytes]) -> None:
    assert wait_until(lambda: blocked(p) and (time.sleep(0.05), blocked(p))[1])


@pytest.mark.parametrize("mode", [["--lock", "never"], ["--lock", "always"], ["--direct"]], ids=" ".join)
def test_a_file_that_shrinks_or_grows(tmp_path: Path, mode: list[str]) -> None:
    small = ["--chunk", "64K", "--pipe-size", "64K", *mode]
    path = save(tmp_path / "shrinks")
    with start(*small, path) as p:
        wait_blocked(p)
        os.truncate(path, 3 * MiB)
        out, err = p.communicate(timeout=60)
    assert p.returncode == 1
    assert out == DATA[: 3 * MiB]
    assert b"shrinks: ends at byte 3145728, but had %d bytes when it was opened" % len(DATA) in err
    path = save(tmp_path / "grows")
    with start(*small, path) as whole, start(*small, "--range", f"0-{len(DATA)}", path) as exact:
        wait_blocked(whole)
        wait_blocked(exact)
        with open(path, "ab") as file:
            file.write(DATA)
        assert whole.communicate(timeout=60) == (DATA + DATA, b"")
        assert exact.communicate(timeout=60) == (DATA, b"")


def test_a_consumer_that_sleeps_does_not_hold_the_turn(tmp_path: Path) -> None:
    path = save(tmp_path / "a", DATA * 4)
    with start("--lock", "always", "--chunk", "256K", path) as sleeper:
        wait_blocked(sleeper)
        began = time.monotonic()
        done = fread("--lock", "always", "--no-cache", "--chunk", "256K", path)
        assert time.monotonic() - began < 5  # half of the time after which somebody who stands still is overtaken
        assert (done.returncode, done.stdout) == (0, DATA * 4)
        assert sleeper.communicate(timeout=60) == (DATA * 4, b"")


@pytest.mark.parametrize(("chunk", "ahead"), [(MiB, 1), (MiB, 3), (4 * MiB, 0), (8 * MiB, 1)])
def test_memory(tmp_path: Path, chunk: int, ahead: int) -> None:
    path = save(tmp_path / "a", DATA * 6)
    with start("--lock", "always", "--chunk", chunk, "--ahead", ahead, path) as p:
        wait_blocked(p)
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{p.pid}/status").read_text())
        p.communicate(timeout=60)
    assert chunk * (ahead + 1) < int(peak) * 1024 <= chunk * (ahead + 1) + 2 * MiB


# ---------------------------------------------------------------------------------------------------------- lock files


def no_directory(path: Path) -> None:
    path.write_bytes(b"")


def a_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def of_somebody_else(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("plant", [no_directory, a_link, open_to_all, of_somebody_else])
def test_a_hostile_directory_is_not_used(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    path, dir = save(tmp_path / "a"), tmp_path / "locks"
    if plant is of_somebody_else and os.geteuid():
        dir = Path("/")  # of root
    else:
        plant(dir)
    done = fread("-v", "--lock", "always", "--direct", path, env={"WDS_LOCK_DIR": str(dir)})
    assert (done.returncode, done.stdout, turns(done)) == (0, DATA, 0)
    assert b"warning: %s: not used for locks" % bytes(dir) in done.stderr
    assert b"reading without the turnstile" in done.stderr
    assert not list(tmp_path.rglob("turnstile*"))


@pytest.mark.parametrize("plant", ["link", "mode", "directory", "fifo"])
def test_a_hostile_lock_file_is_not_used(tmp_path: Path, plant: str) -> None:
    path, dir = save(tmp_path / "a"), tmp_path / "locks"
    env = {"WDS_LOCK_DIR": str(dir)}
    assert turns(fread("-v", "--lock", "always", "--direct", path, env=env)) == 1
    (file,) = dir.iterdir()
    assert (dir.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    victim = save(tmp_path / "victim", b"precious")
    if plant != "mode":
        file.unlink()
    if plant == "link":
        file.symlink_to(victim)
    elif plant == "mode":
        file.chmod(0o666)
    elif plant == "directory":
        file.mkdir()
    else:
        os.mkfifo(file)
    done = fread("-v", "--lock", "always", "--direct", path, env=env)
    assert (done.returncode, done.stdout, turns(done)) == (0, DATA, 0)
    assert b"warning: " in done.stderr
    assert victim.read_bytes() == b"precious"


def test_rubbish_in_a_lock_file(tmp_path: Path) -> None:
    path, dir = save(tmp_path / "a"), tmp_path / "locks"
    env = {"WDS_LOCK_DIR": str(dir)}
    assert turns(fread("-v", "--lock", "always", "--direct", path, env=env)) == 1
    (file,) = dir.iterdir()
    for rubbish in (b"\xff" * 4096, b"0" * 4096, os.urandom(4096), b"", b"x" * 9000):
        file.write_bytes(rubbish)
        done = fread("-v", "--lock", "always", "--direct", "--chunk", "1M", path, env=env)
        assert (done.returncode, done.stdout, turns(done)) == (0, DATA, 5)


def test_no_room_for_locks(tmp_path: Path, shim: Path) -> None:
    path = save(tmp_path / "a")
    preload = {"LD_PRELOAD": str(shim), "ASAN_OPTIONS": "verify_asan_link_order=0"}
    for env in (
        {"WDS_LOCK_DIR": "/proc/none/of/it"},
        preload | {"FULL": "1"},
        preload | {"FULL": "1", "WDS_LOCK_DIR": str(tmp_path / "l")},
    ):
        done = fread("-v", "--lock", "always", "--direct", path, env=env)
        assert (done.returncode, done.stdout, turns(done)) == (0, DATA, 0)
        assert b"no lock file can be made" in done.stderr
        assert b"warning: reading without the turnstile" in done.stderr


def test_the_lock_file_may_vanish_between_two_turns(tmp_path: Path) -> None:
    path, dir = save(tmp_path / "a", DATA * 2), tmp_path / "locks"
    env = {"WDS_LOCK_DIR": str(dir)}
    with start("-v", "--lock", "always", "--direct", "--chunk", "256K", path, env=env) as p:
        wait_blocked(p)
        (file,) = dir.iterdir()
        file.unlink()
        out, _ = p.communicate(timeout=60)
        assert (p.returncode, out) == (0, DATA * 2)
    assert file.exists()


def test_memory_takes_no_turns(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(DATA)
        file.flush()
        done = fread("-v", file.name, env={"WDS_LOCK_DIR": str(tmp_path / "locks")})
        assert (done.stdout, turns(done)) == (DATA, 0)
    assert not (tmp_path / "locks").exists()


def test_what_the_page_cache_has_takes_no_turns(tmp_path: Path) -> None:
    path = save(tmp_path / "a")
    path.read_bytes()
    assert turns(fread("-v", "--lock", "always", "--chunk", "1M", path)) == 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert 1 <= turns(fread("-v", "--lock", "always", "--chunk", "1M", path)) <= 5  # the kernel reads ahead
    assert turns(fread("-v", "--lock", "always", "--chunk", "1M", path)) == 0
    assert turns(fread("-v", "--lock", "always", "--chunk", "1M", "--no-cache", path)) == 0
    assert 1 <= turns(fread("-v", "--lock", "always", "--chunk", "1M", path)) <= 5


def test_the_one_line_of_the_source_builds_it(tmp_path: Path) -> None:
    text = (NATIVE / "fread.c").read_text()
    (line,) = re.findall(r"^ \*   (cc -.*)$", text, re.M)
    subprocess.run(line.replace("-o fread ", f"-o {tmp_path}/fread "), shell=True, cwd=NATIVE, check=True, timeout=60)
    subprocess.run(["make", "-s", "-C", NATIVE, f"BUILD={tmp_path}/made"], check=True, timeout=60, env=environment())
    for built in (tmp_path / "fread", tmp_path / "made" / "fread"):
        assert b"usage: fread" in subprocess.run([built, "--help"], capture_output=True, check=True).stdout
