"""wds-shard straight into a bucket, against writing locally and `aws s3 cp`; --engine ray against the local engine.

The bucket: any S3 that AWS_ENDPOINT_URL and the credentials in the environment lead to, BENCH_BUCKET for its name; the
program of the AWS command line in BENCH_AWS. On loopback the server takes its share of the processors: it is the same
for both sides. Ray: a running cluster at BENCH_RAY.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.compare import compare

FILES = int(os.environ.get("BENCH_FILES", "4000"))
COMMAND = [sys.executable, "-c", "from wdstools.cli.shard import main; main()"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = data.tree(tmp_path_factory.mktemp("tree"), FILES, data.LARGE)
    data.warm([str(path) for path in folder.glob("*/*")])
    return folder


def shard(*args: str | Path) -> None:
    subprocess.run([*COMMAND, *map(str, args), "--workers", "2", "--maxcount", "1000"], check=True)


@pytest.mark.skipif("BENCH_BUCKET" not in os.environ, reason="BENCH_BUCKET: a bucket of an S3 server")
def bench_bucket(benchmark: Any, files: Path) -> None:
    aws = os.environ.get("BENCH_AWS", "aws")
    url, out = f"s3://{os.environ['BENCH_BUCKET']}/bench-{uuid.uuid4().hex}", files.parent / "out"

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)
        subprocess.run([aws, "s3", "rm", "--recursive", "--quiet", url], check=True)

    def ours() -> None:
        shard(files, f"{url}/t-%06d.tar")

    def copied() -> None:
        shard(files, f"{out}/t-%06d.tar")
        subprocess.run([aws, "s3", "cp", "--recursive", "--quiet", str(out), url], check=True)

    compare(
        benchmark,
        "wds-shard into S3 on loopback, 110 kB files",
        FILES,
        "samples/s",
        ours,
        {"locally, then aws s3 cp": copied},
        {"locally, then aws s3 cp": 1.5},
        before=empty,
    )
    empty()


@pytest.mark.skipif("BENCH_RAY" not in os.environ, reason="BENCH_RAY: the address of a cluster on this machine")
def bench_ray(benchmark: Any, files: Path) -> None:
    out = files.parent / "out"

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def ray() -> None:
        shard(files, f"{out}/t-%06d.tar", "--engine", "ray", "--address", os.environ["BENCH_RAY"])

    def local() -> None:
        shard(files, f"{out}/t-%06d.tar")

    compare(
        benchmark,
        "wds-shard --engine ray on one node, connecting included",
        FILES,
        "samples/s",
        ray,
        {"--engine local": local},
        {"--engine local": 0.85},
        before=empty,
    )
