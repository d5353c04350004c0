"""A shard into a pipe: wds-cat against curl from a local nginx, and against cat from the page cache.

Whole processes are timed, from their start to the end of the reader behind them, as a `pipe:` URL runs them. Needs
`apt-get install nginx-light curl`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.compare import compare
from tests.servers import nginx

NBYTES = int(os.environ.get("BENCH_CAT", "1500000000"))
WDS_CAT = [sys.executable, "-c", "from wdstools.cli.cat import main; main()"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A shard of NBYTES: its URL and its path."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    with nginx(folder) as server:
        path = server.root / "a.tar"
        with open(path, "wb") as file:
            block = random.Random(0).randbytes(10_000_000)
            for _ in range(NBYTES // len(block)):
                file.write(block)
        yield f"{server.url}/a.tar", path
        path.unlink()


def into_a_pipe(*command: str) -> Callable[[], None]:
    def call() -> None:
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        reader = subprocess.run(["wc", "-c"], stdin=writer.stdout, stdout=subprocess.PIPE, text=True, check=True)
        assert writer.stdout is not None
        writer.stdout.close()
        assert writer.wait() == 0
        assert int(reader.stdout) == NBYTES // 10_000_000 * 10_000_000

    return call


def bench_http(benchmark: Any, served: tuple[str, Path]) -> None:
    url = served[0]
    curl = into_a_pipe("curl", "-sSf", url)
    compare(
        benchmark,
        "http shard into a pipe",
        NBYTES / 1e6,
        "MB/s",
        into_a_pipe(*WDS_CAT, url),
        {"curl": curl},
        {"curl": 0.9},
    )


def bench_file(benchmark: Any, served: tuple[str, Path]) -> None:
    path = str(served[1])
    cat = into_a_pipe("cat", path)
    compare(
        benchmark, "file into a pipe", NBYTES / 1e6, "MB/s", into_a_pipe(*WDS_CAT, path), {"cat": cat}, {"cat": 0.95}
    )
