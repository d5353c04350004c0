"""Writing samples: ShardWriter against webdataset's; a tree of files: wds-shard against GNU tar and webdataset."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import webdataset

import wdstools
from bench import data
from bench.compare import compare
from bench.conftest import SMALL_COUNT

WRITTEN = SMALL_COUNT // 2
FILES = int(os.environ.get("BENCH_FILES", "10000"))


def bench_small(benchmark: Any, tmp_path: Path) -> None:
    samples = list(data.samples(WRITTEN, data.SMALL))
    sizes: dict[str, float] = {}

    out = tmp_path / "out"

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    def write(sink: Any, name: str) -> None:
        with sink:
            for sample in samples:
                sink.write(sample)
        sizes[name] = data.total_bytes(list(map(str, out.glob("*.tar")))) / WRITTEN

    def ours() -> None:
        write(wdstools.ShardWriter(f"{out}/a-%06d.tar"), "wdstools")

    def theirs() -> None:
        write(webdataset.ShardWriter(f"{out}/a-%06d.tar", verbose=0), "webdataset")

    compare(
        benchmark,
        "ShardWriter.write of 1 kB samples, index included",
        WRITTEN,
        "samples/s",
        ours,
        {"webdataset": theirs},
        {"webdataset": 25},
        before=empty,
    )
    benchmark.extra_info["bytes_per_sample"] = sizes
    assert sizes["wdstools"] <= 0.56 * sizes["webdataset"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = data.tree(tmp_path_factory.mktemp("tree"), FILES, data.LARGE)
    data.warm([str(path) for path in folder.glob("*/*")])
    return folder


def bench_tree(benchmark: Any, files: Path) -> None:
    out = files.parent / "out"

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    def ours() -> None:
        command = [sys.executable, "-c", "from wdstools.cli.shard import main; main()"]
        subprocess.run([*command, str(files), f"{out}/t-%06d.tar", "--workers", "2", "--maxcount", "2500"], check=True)

    def tar() -> None:
        subprocess.run(["tar", "cf", f"{out}/t.tar", "-C", str(files), "."], check=True)

    def webdataset_writer() -> None:
        with webdataset.ShardWriter(f"{out}/t-%06d.tar", maxcount=2500, verbose=0) as sink:
            for number, folder in enumerate(sorted(files.iterdir())):
                for path in sorted(folder.iterdir()):
                    sink.write({"__key__": f"{folder.name}/{path.stem}", "jpg": path.read_bytes(), "cls": number})

    def litdata() -> None:
        script = Path(__file__).with_name("litdata_optimize.py")
        command = [sys.executable, str(script), f"{out}/litdata", str(files), "2", "files"]
        subprocess.run(command, check=True, capture_output=True)

    peers = {"GNU tar": tar, "webdataset": webdataset_writer}
    if importlib.util.find_spec("litdata"):
        peers["litdata optimize, 2 workers"] = litdata
    compare(
        benchmark,
        f"wds-shard of a tree of {FILES:,} files of 110 kB, 2 workers, index included",
        FILES,
        "files/s",
        ours,
        peers,
        {"GNU tar": 1, "webdataset": 5, "litdata optimize, 2 workers": 5},
        before=empty,
    )
