"""wds-serve against nginx, one process against one worker, asked by wrk: random ranges, whole shards, a crowd.

Needs `apt-get install nginx-light wrk` and `pip install "wdstools[serve]"`.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.compare import compare
from bench.data import LARGE
from tests.servers import nginx
from tests.serving import Live, one_byte, serving

SHARDS = 4
NBYTES = 100_000_000  # of a shard
SECONDS = 3  # of one run of wrk
IDLE, BUSY, MINUTE = 1000, 200, 60

RANGES = f"""
request = function()
  local start = math.random(0, {NBYTES - LARGE})
  return "GET /train-00000" .. math.random(0, {SHARDS - 1}) .. ".tar HTTP/1.1\\r\\nHost: localhost\\r\\n" ..
    "Range: bytes=" .. start .. "-" .. (start + {LARGE - 1}) .. "\\r\\n\\r\\n"
end
"""
WHOLE = f"""
request = function()
  return "GET /train-00000" .. math.random(0, {SHARDS - 1}) .. ".tar HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
end
"""


class Servers(NamedTuple):
    ours: Live
    nginx: str
    folder: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Both of them over the same files. nginx as the tests have it: sendfile, one process, tcp_nopush off."""
    folder = tmp_path_factory.mktemp("serve")
    with nginx(folder) as peer:
        block = os.urandom(1 << 20)
        for i in range(SHARDS):
            with open(peer.root / f"train-00000{i}.tar", "wb") as file:
                for _ in range(NBYTES // len(block)):
                    file.write(block)
                file.truncate(NBYTES)
        conf = folder / "conf"
        assert "tcp_nopush off; tcp_nodelay on" in conf.read_text()
        with serving(folder, peer.root) as live:
            yield Servers(live, peer.url, folder)


class Told(NamedTuple):
    rate: float  # requests/s
    median: float  # seconds
    late: float  # seconds, the 99th percentile
    errors: str


def wrk(url: str, script: Path, connections: int, seconds: int) -> Told:
    program = shutil.which("wrk")
    assert program is not None, "apt-get install wrk"
    command = [
        program,
        "-t1",
        f"-c{connections}",
        f"-d{seconds}",
        "--timeout",
        "30",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times = {name: latency(text, name) for name in ("50", "99")}
    rate = re.search(r"Requests/sec: +([0-9.]+)", text)
    assert rate is not None, text
    errors = " ".join(re.findall(r"(?:Socket errors|Non-2xx).*", text))
    return Told(float(rate[1]), times["50"], times["99"], errors)


def latency(text: str, percent: str) -> float:
    match = re.search(rf"{percent}% +([0-9.]+)(us|ms|s)\b", text)
    assert match is not None, text
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def script(folder: Path, text: str) -> Path:
    path = folder / f"{abs(hash(text))}.lua"
    path.write_text(text)
    return path


def asked(url: str, path: Path, connections: int, units: float) -> Callable[[], float]:
    """Ask for SECONDS, and tell the seconds that so many requests take."""

    def call() -> float:
        told = wrk(url, path, connections, SECONDS)
        assert not told.errors, told
        return units / told.rate

    return call


def bench_serve_ranges(benchmark: Any, servers: Servers) -> None:
    path = script(servers.folder, RANGES)
    ours, peer = (asked(url, path, 16, 10_000) for url in (servers.ours.url, servers.nginx))
    compare(
        benchmark, "random ranges of 110 kB, 16 connections", 10_000, "requests/s", ours, {"nginx": peer}, {"nginx": 1}
    )


def bench_serve_whole(benchmark: Any, servers: Servers) -> None:
    path = script(servers.folder, WHOLE)
    ours, peer = (asked(url, path, 4, 10) for url in (servers.ours.url, servers.nginx))
    megabytes = 10 * NBYTES / 1e6
    compare(benchmark, "whole shards of 100 MB, 4 connections", megabytes, "MB/s", ours, {"nginx": peer}, {"nginx": 1})


def bench_serve_crowd(benchmark: Any, servers: Servers) -> None:
    """A minute of many busy clients among more idle ones: no error, bounded memory, nobody waits for long."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    path = script(servers.folder, RANGES)
    idle = [servers.ours.connect() for _ in range(IDLE)]
    for sock in idle:
        one_byte(sock, "/train-000000.tar")
    told = benchmark.pedantic(lambda: wrk(servers.ours.url, path, BUSY, MINUTE), rounds=1)
    resident = servers.ours.resident()
    for sock in idle:  # still there
        one_byte(sock, "/train-000000.tar")
        sock.close()
    ratio = told.late / told.median
    benchmark.extra_info.update(
        work=f"{IDLE} idle and {BUSY} busy connections for a minute: {resident / 1e6:.0f} MB, "
        f"median {told.median * 1e3:.1f} ms, p99 {ratio:.1f} times that",
        unit="requests/s",
        rate=told.rate,
        spread=[told.rate, told.rate],
        peers={},
    )
    assert not told.errors
    assert resident < 150e6
    assert ratio < 10
