"""A folder of real files behind the cost of a disk: a read-only FUSE file system over bench/spindle_model.py.

`python -m bench.spindle FOLDER MOUNTPOINT [--raid 0 --spindles 4] [--rpm 7200] [--rate 200MB] [--order batch]`

Every file lies in one piece on the virtual platter, one file after another in the order of their names, spread over
--span bytes (150 GB: shards out of a set as large as ImageNet; 0: each file right behind the last one). The bytes come
from the folder, whose files should be in the page cache; the time is that of the model's clock. A read sleeps until the
moment at which the disk would have had it, so that a late wake-up does not add up. The kernel's page cache and
read-ahead work as on a disk; posix_fadvise(POSIX_FADV_DONTNEED) makes a file cold. Ends with SIGTERM, Ctrl-C or
`fusermount3 -u MOUNTPOINT`, and then says on stderr, as JSON, what the disk did.

Needs `apt-get install fuse3` and `pip install mfusepy`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, get_args

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # mfusepy would rather take libfuse 2
import mfusepy

from bench.spindle_model import Array, Disk, Order, Request, Spindle

THREADS = 128  # requests that the drive may see at once; the default of libfuse, 10, would hide the queue from it
SPAN = 150e9
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


class Drive:
    """An Array in real time: `submit` and then `wait`, from any thread."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self._lock = threading.Lock()
        self._owners: dict[Request, SimpleQueue[None]] = {}

    def submit(self, position: int, nbytes: int) -> list[tuple[Spindle, Request]]:
        with self._lock:
            now = time.monotonic()
            parts = self.array.split(now, position, nbytes)
            bell: SimpleQueue[None] = SimpleQueue()
            for spindle, request in parts:
                self._owners[request] = bell
                spindle.submit(request)
            return parts

    def wait(self, parts: list[tuple[Spindle, Request]]) -> None:
        """Return when all parts are done. Whoever's request is done lets the drive take up the next one."""
        bell = self._owners[parts[0][1]]
        while True:
            with self._lock:
                now = time.monotonic()
                for spindle, _ in parts:
                    for taken in spindle.advance(now):
                        self._owners[taken].put(None)
                undecided = [request for _, request in parts if request.done is None]
                ahead = [request.done for _, request in parts if request.done is not None and request.done > now]
                if not undecided and not ahead:
                    for _, request in parts:
                        del self._owners[request]
                    return
            if ahead:
                time.sleep(max(min(ahead) - time.monotonic(), 0))
            else:
                bell.get()


def layout(folder: Path, span: float) -> dict[str, int]:
    """Where each file begins on the device, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    total = sum(sizes.values())
    stretch = max(span / total, 1.0) if total else 1.0
    starts, position = {}, 0
    for name, size in sizes.items():
        starts[name] = int(position * stretch) // 4096 * 4096
        position += -(-size // 4096) * 4096
    return starts


class Files(mfusepy.Operations):  # type: ignore[misc]
    """The operations of the file system."""

    use_ns = True

    def __init__(self, folder: Path, array: Array, span: float) -> None:
        self.folder, self.drive = folder, Drive(array)
        self.starts = layout(folder, span)
        self.open_files: dict[int, int] = {}
        self.sizes: Counter[int] = Counter()

    def init_with_config(self, conn_info: Any, config_3: Any) -> None:
        conn_info.max_background = conn_info.congestion_threshold = THREADS

    def _backing(self, path: str) -> str:
        return f"{self.folder}{path}"

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._backing(path))
        times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        return times | {name: getattr(found, name) for name in names}

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        for name in (".", "..", *os.listdir(self._backing(path))):
            found = os.lstat(f"{self._backing(path)}/{name}")
            yield name, {"st_mode": found.st_mode, "st_ino": found.st_ino}, 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._backing(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_") and name != "f_fsid"}

    def open(self, path: str, flags: int) -> int:
        if path.removeprefix("/") not in self.starts:
            raise OSError(errno.ESTALE, "not there when the disk was mounted", path)
        file = os.open(self._backing(path), os.O_RDONLY)
        self.open_files[file] = self.starts[path.removeprefix("/")]
        return file

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.sizes[size] += 1
        parts = self.drive.submit(self.open_files[fh] + offset, size)
        data = os.pread(fh, size, offset)
        self.drive.wait(parts)
        return data

    def release(self, path: str, fh: int) -> int:
        del self.open_files[fh]
        os.close(fh)
        return 0

    def done(self) -> dict[str, Any]:
        """What the disk did."""
        spindles = self.drive.array.spindles
        return {
            "bytes": sum(spindle.bytes for spindle in spindles),
            "seeks": sum(spindle.seeks for spindle in spindles),
            "busy": [round(spindle.busy, 3) for spindle in spindles],
            "requests": {str(size): count for size, count in sorted(self.sizes.items())},
        }


@contextlib.contextmanager
def mounted(folder: Path, *options: str, read_ahead: int | None = None) -> Iterator[Path]:
    """The folder behind a disk, for as long as the context lasts; `options` are those of the command line.

    `read_ahead`: in bytes, as `blockdev --setra` sets it on a disk (needs root); None: the kernel's 128 KiB. On a
    RAID md sets two stripes.
    """
    with tempfile.TemporaryDirectory(prefix="spindle-") as name:
        mountpoint = Path(name) / "disk"
        mountpoint.mkdir()
        command = [sys.executable, "-m", "bench.spindle", str(folder), str(mountpoint), *options]
        server = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 30
            while not os.path.ismount(mountpoint):
                if server.poll() is not None or time.monotonic() > deadline:
                    server.kill()
                    raise RuntimeError(f"the spindle did not mount: {server.communicate()[1]}")
                time.sleep(0.01)
            if read_ahead is not None:
                device = os.stat(mountpoint).st_dev
                setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
                setting.write_text(str(read_ahead // 1024))
            yield mountpoint
        finally:
            _unmount(mountpoint, server)


def _unmount(mountpoint: Path, server: subprocess.Popen[str]) -> None:
    for options in (["-u"], ["-u", "-z"]):
        if os.path.ismount(mountpoint):
            subprocess.run(["fusermount3", *options, str(mountpoint)], stderr=subprocess.DEVNULL, check=False)
    try:
        said = server.communicate(timeout=10)[1]
    except subprocess.TimeoutExpired:
        server.kill()
        said = server.communicate()[1]
    if os.environ.get("SPINDLE_VERBOSE"):
        print(said, file=sys.stderr, end="")


def size(text: str) -> float:
    """Bytes: 200MB, 512kB, 1.5e9."""
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--raid", type=int, choices=(0, 5))
    parser.add_argument("--spindles", type=int, default=1)
    parser.add_argument("--chunk", type=size, default=512 << 10, help="bytes on one spindle before the next follows")
    parser.add_argument("--rpm", type=float, default=Disk.rpm)
    parser.add_argument("--rate", type=size, default=Disk.rate, help="bytes/s under the head of one spindle")
    parser.add_argument("--order", choices=get_args(Order), default=Disk.order, help="how the drive chooses")
    parser.add_argument("--span", type=size, default=SPAN, help="bytes of the platter that the files are spread over")
    arguments = parser.parse_args()
    disk = dataclasses.replace(Disk(), rate=arguments.rate, rpm=arguments.rpm, order=arguments.order)
    array = Array(disk, arguments.spindles, arguments.raid, int(arguments.chunk))
    sys.setswitchinterval(0.0005)  # a request that is done should not wait 5 ms for another thread
    try:  # a disk does not wait for a core
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("spindle: without root it competes with the readers for the CPU", file=sys.stderr)
    files = Files(arguments.folder.resolve(), array, arguments.span)
    forever = 86400.0
    mfusepy.FUSE(
        files, str(arguments.mountpoint), foreground=True, ro=True, fsname="spindle", kernel_cache=True, use_ino=True,
        attr_timeout=forever, entry_timeout=forever, max_threads=THREADS, max_idle_threads=THREADS,
    )  # fmt: skip
    print(json.dumps(files.done()), file=sys.stderr)


if __name__ == "__main__":
    main()
