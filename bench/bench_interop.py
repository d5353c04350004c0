"""Exporting to DALI, two workers, against DALI's own wds2idx, which lists the shards with GNU tar, twice.

wds2idx is a script of the DALI wheel, one file that needs nothing: BENCH_WDS2IDX is the folder that it lies in, else it
is fetched from the wheel, without installing it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.compare import compare
from bench.conftest import LARGE_COUNT, SMALL_COUNT
from wdstools import build
from wdstools.index import Index
from wdstools.interop import dali
from wdstools.interop.foreign import Options
from wdstools.writer import ShardWriter


@pytest.fixture(scope="session")
def wds2idx(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = Path(os.environ.get("BENCH_WDS2IDX") or tmp_path_factory.mktemp("wds2idx"))
    if not (folder / "wds2idx.py").exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), "nvidia-dali-cuda120"]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith("/wds2idx.py") or name == "wds2idx.py")
            (folder / "wds2idx.py").write_bytes(wheel.read(name))
    sys.path.append(str(folder))
    return importlib.import_module("wds2idx")


def ours(index: Index, folder: Path) -> None:
    assert len(dali.export(index, Options(str(folder), overwrite=True, workers=2)).paths) == len(index.shards)


def theirs(wds2idx: Any, shards: list[str], folder: Path) -> None:
    for shard in shards:
        with wds2idx.IndexCreator(shard, str(folder / (Path(shard).stem + ".idx")), verbose=False) as creator:
            creator.create_index()


def run(benchmark: Any, what: str, shards: list[str], members: int, wds2idx: Any, tmp_path: Path) -> None:
    index = build.build(shards)
    index.validate()
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
    compare(
        benchmark,
        f"wds-index export --to dali, {what}",
        members,
        "members/s",
        lambda: ours(index, folders[0]),
        {"wds2idx": lambda: theirs(wds2idx, shards, folders[1])},
        {"wds2idx": 30},
    )
    for path in sorted(folders[0].iterdir()):
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def plain(folder: Path, count: int, nbytes: int) -> list[str]:
    """Shards as we write them, without PAX headers."""
    with ShardWriter(f"{folder}/ours-%06d.tar", maxcount=count // 4) as sink:
        for sample in data.samples(count, nbytes):
            sink.write(sample)
    paths = sorted(str(path) for path in folder.glob("ours-*.tar"))
    data.warm(paths)
    return paths


def bench_small(benchmark: Any, small: list[str], wds2idx: Any, tmp_path: Path) -> None:
    run(benchmark, "1 kB, by webdataset", small, 2 * SMALL_COUNT, wds2idx, tmp_path)


def bench_small_plain(benchmark: Any, wds2idx: Any, tmp_path: Path) -> None:
    run(benchmark, "1 kB, by wdstools", plain(tmp_path, SMALL_COUNT, data.SMALL), 2 * SMALL_COUNT, wds2idx, tmp_path)


def bench_large(benchmark: Any, large: list[str], wds2idx: Any, tmp_path: Path) -> None:
    run(benchmark, "110 kB, by webdataset", large, 2 * LARGE_COUNT, wds2idx, tmp_path)
