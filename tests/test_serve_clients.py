"""Plain clients that others wrote: list, whole, range, missing; what they read is what lies on the disk."""

from __future__ import annotations

import http.client
import random
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import webdataset as wds

from tests.servers import need
from tests.serving import Live, get, serving, statuses
from wdstools.reader import stream
from wdstools.writer import ShardWriter

COUNT = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "shards"
    folder.mkdir()
    draw = random.Random(4)
    with ShardWriter(str(folder / "train-%06d.tar"), maxcount=20) as writer:
        for i in range(COUNT):
            writer.write({"__key__": f"{i:04d}", "bin": draw.randbytes(draw.randrange(5000)), "cls": str(i % 10)})
    return folder


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root) as server:
        yield server


def run(*args: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*map(str, args)], capture_output=True, timeout=60, check=False)


def test_curl(live: Live, root: Path, tmp_path: Path) -> None:
    curl = need("curl", shutil.which("curl"), "apt-get install curl")
    data = (root / "train-000001.tar").read_bytes()
    url = f"{live.url}/train-000001.tar"
    assert run(curl, "-sSfL", url).stdout == data
    assert run(curl, "-sSf", "-r", "1000-1999", url).stdout == data[1000:2000]
    assert run(curl, "-sSf", f"{live.url}/none.tar").returncode == 22
    assert b"train-000002.tar" in run(curl, "-sSf", f"{live.url}/").stdout
    (tmp_path / "part").write_bytes(data[:5000])
    assert run(curl, "-sSf", "-C", "-", "-o", tmp_path / "part", url).returncode == 0
    assert (tmp_path / "part").read_bytes() == data
    (tmp_path / "body").write_bytes(b"x" * 2_000_000)
    post = run(
        curl,
        "-sS",
        "-m",
        "5",
        "-H",
        "Expect: 100-continue",
        "--data-binary",
        f"@{tmp_path}/body",
        "-w",
        "%{http_code}",
        url,
    )
    assert post.stdout.endswith(b"405"), post


def test_wget_goes_on_where_it_stopped(live: Live, root: Path, tmp_path: Path) -> None:
    wget = need("wget", shutil.which("wget"), "apt-get install wget")
    data = (root / "train-000001.tar").read_bytes()
    (tmp_path / "train-000001.tar").write_bytes(data[:3000])
    done = run(wget, "-c", "-P", tmp_path, f"{live.url}/train-000001.tar")
    assert done.returncode == 0, done.stderr
    assert b"206 Partial Content" in done.stderr
    assert (tmp_path / "train-000001.tar").read_bytes() == data
    assert run(wget, "-c", "-P", tmp_path, f"{live.url}/train-000001.tar").returncode == 0
    assert (tmp_path / "train-000001.tar").read_bytes() == data
    done = run(wget, "-q", "-r", "-np", "-nH", "-A", "*.tar", "-P", tmp_path / "all", f"{live.url}/")
    assert done.returncode == 0, done.stderr
    for path in root.glob("*.tar"):
        assert (tmp_path / "all" / path.name).read_bytes() == path.read_bytes()


def test_fsspec_http(live: Live, root: Path) -> None:
    files = fsspec.filesystem("http", skip_instance_cache=True)
    data = (root / "train-000000.tar").read_bytes()
    url = f"{live.url}/train-000000.tar"
    names = [name.rpartition("/")[2] for name in files.ls(f"{live.url}/", detail=False)]
    assert sorted(names) == sorted(path.name for path in root.iterdir())
    assert files.cat_file(url) == data
    assert files.cat_file(url, start=100, end=200) == data[100:200]
    assert files.info(url)["size"] == len(data)
    assert not files.exists(f"{live.url}/none.tar")
    with pytest.raises(FileNotFoundError):
        files.cat_file(f"{live.url}/none.tar")
    with files.open(url, block_size=4096) as file:
        file.seek(7000)
        assert file.read(3000) == data[7000:10000]


def expected(root: Path) -> list[tuple[str, bytes]]:
    return [(s["__key__"], bytes(s["bin"])) for s in stream(f"{root}/train-{{000000..000002}}.tar")]


def test_webdataset(live: Live, root: Path) -> None:
    (source,) = live.told["sources"]
    (pattern,), (pipe,) = source["patterns"], source["pipes"]
    for urls in (pattern, pipe):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # webdataset's own
            found = [(s["__key__"], s["bin"]) for s in wds.WebDataset(urls, shardshuffle=False)]
        assert found == expected(root)


def test_our_own_reader(live: Live, root: Path) -> None:
    (source,) = live.told["sources"]
    for urls in (source["patterns"][0], source["pipes"][0]):
        assert [(s["__key__"], bytes(s["bin"])) for s in stream(urls)] == expected(root)


def test_an_interim_answer_is_given_once(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(get("/train-000000.tar", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello" + get("/none", "Connection: close"))
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 405
    told = live.raw(get("/none", "Expect: 100-continue", "Content-Length: 5", method="POST") + b"hello")
    assert statuses(told) == [405]
