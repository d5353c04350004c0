"""wds-shard straight into a bucket, against writing locally and `aws s3 cp`; --engine ray against the local engine.

The bucket: any S3 that AWS_ENDPOINT_URL and the credentials in the environment lead to, BENCH_BUCKET for its name; the
program of the AWS command line in BENCH_AWS, once with its defaults and once for each number of requests at once in
AWS_AT_ONCE. A round is some hundreds of megabytes, and is removed before the next. On loopback the server takes its
share of the processors, which no client can do anything about: its seconds are told, where BENCH_SERVER names its
processes by number. Ray: a running cluster at BENCH_RAY.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import data
from bench.compare import compare

FILES = int(os.environ.get("BENCH_FILES", "4000"))
AWS_AT_ONCE = [int(number) for number in os.environ.get("AWS_AT_ONCE", "4").split()]
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
    aws, bucket = os.environ.get("BENCH_AWS", "aws"), os.environ["BENCH_BUCKET"]
    prefix, out = f"bench-{uuid.uuid4().hex}", files.parent / "out"
    url = f"s3://{bucket}/{prefix}"
    spent: dict[str, list[float]] = {}

    def empty() -> None:
        shutil.rmtree(out, ignore_errors=True)
        remove_all(bucket, prefix)
        time.sleep(1.0)  # the server gives the memory back

    def counted(name: str, call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            before = server_seconds()
            call()
            spent.setdefault(name, []).append(server_seconds() - before)

        return run

    def ours() -> None:
        shard(files, f"{url}/t-%06d.tar")

    def copied(at_once: int) -> None:
        shard(files, f"{out}/t-%06d.tar")
        config = files.parent / "aws"
        config.write_text(f"[default]\ns3 =\n  max_concurrent_requests = {at_once}\n" if at_once else "")
        env = {**os.environ, "AWS_CONFIG_FILE": str(config)}
        subprocess.run([aws, "s3", "cp", "--recursive", "--quiet", str(out), url], check=True, env=env)

    peers = {"locally, then aws s3 cp": counted("aws", lambda: copied(0))}
    for at_once in AWS_AT_ONCE:
        name = f"locally, then aws s3 cp, {at_once} at once"
        peers[name] = counted(f"aws {at_once}", lambda at_once=at_once: copied(at_once))  # type: ignore[misc]
    compare(
        benchmark,
        "wds-shard into S3 on loopback, 110 kB files",
        FILES,
        "samples/s",
        counted("ours", ours),
        peers,
        dict.fromkeys(peers, 1.5),
        before=empty,
    )
    benchmark.extra_info["server_seconds"] = {name: statistics.median(found) for name, found in spent.items()}
    empty()


def remove_all(bucket: str, prefix: str) -> None:
    """Remove what lies under a prefix; in-process, as starting the AWS command line takes longer than this."""
    import obstore
    from obstore.store import S3Store

    store = S3Store(bucket, client_options={"allow_http": True}, endpoint=os.environ["AWS_ENDPOINT_URL"])
    for batch in obstore.list(store, prefix):
        for item in batch:
            obstore.delete(store, item["path"])


def server_seconds() -> float:
    """Processor time of the server so far."""
    ticks = 0
    for pid in os.environ.get("BENCH_SERVER", "").split():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif("BENCH_RAY" not in os.environ, reason="BENCH_RAY: the address of a cluster on this machine")
def bench_ray_connected(benchmark: Any, files: Path) -> None:
    """In this process, which the first round, that is not counted, connects; workers are there already."""
    import ray

    from wdstools.convert.local import convert
    from wdstools.convert.options import Options

    out = files.parent / "out"
    address = os.environ["BENCH_RAY"]
    ray.init(address, log_to_driver=False)

    def write(engine: str) -> None:
        options = Options(maxcount=1000, workers=2, engine=engine, address=address if engine == "ray" else None)
        assert convert(str(files), f"{out}/t-%06d.tar", options).samples == FILES

    compare(
        benchmark,
        f"wds-shard --engine ray on one node, {FILES:,} files of 110 kB, connected",
        FILES,
        "samples/s",
        lambda: write("ray"),
        {"--engine local": lambda: write("local")},
        {"--engine local": 0.85},
        before=lambda: shutil.rmtree(out, ignore_errors=True),
    )
    ray.shutdown()


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
        f"the same as a command, {FILES:,} files, connecting included",
        FILES,
        "samples/s",
        ray,
        {"--engine local": local},
        {"--engine local": 0.85},
        before=empty,
    )
