"""Fixtures of the comparisons, and where peers come from that do not go into the same environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import data

SMALL_COUNT = int(os.environ.get("BENCH_SMALL", "100000"))
LARGE_COUNT = int(os.environ.get("BENCH_LARGE", "6000"))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of 1 kB samples, written by webdataset."""
    paths = data.webdataset_shards(tmp_path_factory.mktemp("small"), SMALL_COUNT, data.SMALL, SMALL_COUNT // 4)
    data.warm(paths)
    return paths


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards of 110 kB samples, written by webdataset."""
    paths = data.webdataset_shards(tmp_path_factory.mktemp("large"), LARGE_COUNT, data.LARGE, LARGE_COUNT // 4)
    data.warm(paths)
    return paths


@pytest.fixture(scope="session")
def wids(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The wids of webdataset 0.2.111, from a folder of its own, beside the webdataset 1.0.2 of this environment."""
    folder = Path(os.environ.get("BENCH_WIDS") or tmp_path_factory.mktemp("wids"))
    if not (folder / "wids").exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            "webdataset==0.2.111",
        ]
        subprocess.run(command, check=True)
    sys.path.append(str(folder))
    import wids

    return wids
