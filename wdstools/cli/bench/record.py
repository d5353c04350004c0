"""The record of a run: what would have to be the same for the same numbers."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("wdstools", "webdataset", "torch", "numpy", "pyarrow", "obstore", "fsspec")
PROGRAMS = {"fread": ["--version"], "mbuffer": ["--version"], "curl": ["--version"], "dd": ["--version"]}


def record(paths: tuple[str, ...]) -> dict[str, Any]:
    """Arguments, versions, git commit of the current folder, device of the first local shard, kernel, CPU, date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("GOPEN_", "FREAD_"))},
        "python": platform.python_version(),
        "packages": _packages(),
        "programs": {name: said for name, flags in PROGRAMS.items() if (said := _first_line([name, *flags]))},
        "git": _first_line(["git", "describe", "--always", "--dirty", "--abbrev=40"]),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": next((device(path) for path in paths if os.path.exists(path)), None),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _first_line(command: list[str]) -> str | None:
    """What a command says first; None: it is not installed, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _cpu() -> str | None:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def device(path: str) -> dict[str, Any]:
    """Where a file lies: file system and, where a block device is below it, what the kernel says of that."""
    number = os.stat(path).st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    found: dict[str, Any] = {"number": name, "file_system": _file_system(name)}
    folder = Path(f"/sys/dev/block/{name}")
    if folder.exists():
        folder = folder.resolve()
        if (folder / "partition").exists():
            folder = folder.parent
        found["name"] = folder.name
        for key, where in (
            ("model", "device/model"), ("rotational", "queue/rotational"), ("scheduler", "queue/scheduler"),
            ("read_ahead_kb", "queue/read_ahead_kb"), ("max_sectors_kb", "queue/max_sectors_kb"),
            ("below", "slaves"),
        ):  # fmt: skip
            place = folder / where
            if place.is_dir():
                found[key] = sorted(os.listdir(place))
            elif place.exists():
                found[key] = place.read_text().strip()
    return found


def _file_system(number: str) -> str | None:
    for line in _lines("/proc/self/mountinfo"):
        words = line.split()
        if len(words) > 6 and words[2] == number:
            after = words[words.index("-") + 1 :]
            return f"{after[0]} on {words[4]} ({after[1]})"
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []  # a system without it
