"""GET /-/stream: virtual shards in plan order, read by curl, webdataset and wdstools.stream."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

import wdstools
from tests import serveddata
from tests.conftest import wait_until
from tests.serveddata import N, sample
from tests.serving import Live, get, serving
from wdstools.plan import Plan
from wdstools.writer import ShardWriter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = serveddata.make(tmp_path_factory.mktemp("samples"))
    with ShardWriter(str(folder / "one-%06d.tar")) as writer:
        writer.write({"__key__": "only", "cls": b"1"})
    return folder


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root) as server:
        yield server


def url(live: Live, **query: object) -> str:
    return f"{live.url}/-/stream?{urllib.parse.urlencode({'set': 'train'} | query)}"


def keys(live: Live, **query: object) -> list[str]:
    """The keys that come, in order, each once for a sample."""
    reply = live.ask(url(live, **query).removeprefix(live.url))
    assert reply.status == 200, reply
    assert reply.body.endswith(bytes(1024))
    found: list[str] = []
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        for name in tar.getnames():
            if not found or found[-1] != name.partition(".")[0]:
                found.append(name.partition(".")[0])
    return found


def names(rows: list[int]) -> list[str]:
    return [f"k{row:04d}" for row in rows]


def test_the_order_is_that_of_the_plan(live: Live) -> None:
    for query in ({"seed": 7}, {"seed": 7, "epoch": 3}, {"seed": 0, "block": 16}):
        plan = Plan(N, seed=query["seed"], epoch=query.get("epoch", 0), block=query.get("block", 1))
        assert keys(live, **query) == names(plan.rows(0, N).tolist())
    assert keys(live, shuffle=0) == names(list(range(N)))
    assert keys(live, seed=1, epochs=2) == keys(live, seed=1) + keys(live, seed=1, epoch=1)


@pytest.mark.parametrize(("world", "block"), [(1, 1), (2, 1), (3, 16), (7, 50), (8, 1000)])
def test_the_ranks_of_an_epoch_have_every_sample_once(live: Live, world: int, block: int) -> None:
    found = [key for rank in range(world) for key in keys(live, seed=5, world=world, rank=rank, block=block)]
    assert sorted(found) == names(list(range(N)))


def test_splits(live: Live) -> None:
    dataset = wdstools.open(live.url + "/train").split()
    val = list(dataset["val"].keys())
    assert sorted(keys(live, split="val", seed=3)) == sorted(val)
    assert sorted(keys(live, split="train") + keys(live, split="val")) == names(list(range(N)))
    spec = "a:0.5,seed:0.3,by:.2"
    parts = [keys(live, split=f"{spec}@{name}", split_seed=4) for name in ("a", "seed", "by")]
    assert sorted(key for part in parts for key in part) == names(list(range(N)))
    assert all(30 < len(part) < 190 for part in parts)
    assert keys(live, split="val", where="cls < 3", shuffle=0) == [key for key in val if int(key[1:]) % 10 < 3]


@pytest.mark.parametrize(
    "query",
    [
        {"split": "test"},
        {"split": "a:0.5@a"},
        {"split": "a:0.5,a:0.5@a"},
        {"split": "a:2@a"},
        {"split": "a:0,b:1@b"},
        {"split": "@"},
        {"split": "a:.@a"},
        {"rank": 2, "world": 2},
        {"rank": -1},
        {"world": 0},
        {"block": 0},
        {"seed": 1 << 64},
        {"seed": "x"},
        {"epoch": 1 << 63},
        {"where": "nothing = 1"},
        {"where": "false", "epochs": 0},
    ],
)
def test_what_is_refused(live: Live, query: dict[str, object]) -> None:
    reply = live.ask(url(live, **query).removeprefix(live.url))
    assert reply.status == 400
    assert set(json.loads(reply.body)) == {"error"}


def test_webdataset_through_curl(live: Live) -> None:
    """What a user writes, with no code of ours."""
    pipe = f"pipe:curl -sSf '{url(live, seed=2, split='train')}'"
    found = list(webdataset.WebDataset(pipe, shardshuffle=False).decode().to_tuple("__key__", "cls", "json"))
    wanted = sorted(wdstools.open(live.url + "/train").split()["train"].keys())
    assert sorted(key for key, _, _ in found) == wanted
    for key, cls, about in found:
        number = int(key[1:])
        assert (cls, about["width"]) == (number % 10, 40 + number)


def test_our_own_stream(live: Live) -> None:
    found = list(wdstools.stream(f"pipe:curl -sSf '{url(live, seed=2, fields='cls,jpg')}'"))
    assert sorted(one["__key__"] for one in found) == names(list(range(N)))
    for one in found:
        assert serveddata.payloads(one) == {
            k: v for k, v in sample(int(one["__key__"][1:])).items() if k in ("cls", "jpg")
        }


def test_without_end(live: Live) -> None:
    """Epoch after epoch; where one ends with the sample that begins the next, both are there."""
    pipe = f"pipe:curl -sSf '{url(live, seed=2, epochs=0, set='one')}' || true"
    each = iter(webdataset.WebDataset(pipe, shardshuffle=False))
    found = [next(each) for _ in range(5000)]
    assert [one["__key__"] for one in found[:3]] == ["only", "only@2", "only@3"]
    assert {one["cls"] for one in found} == {b"1"}
    each.close()  # type: ignore[attr-defined]


def test_a_reader_that_pauses(live: Live) -> None:
    """Nothing is made ready for who does not read, and what comes later is whole."""
    before = live.resident()
    with live.connect() as sock:
        sock.sendall(get("/-/stream?set=train&epochs=0&seed=1"))
        data = sock.recv(1000)
        time.sleep(1)
        assert live.resident() < before + 100_000_000
        while len(data) < 50_000_000:
            data += sock.recv(1 << 20)
    body = unchunked(data)
    found = []
    with tarfile.open(fileobj=io.BytesIO(body[: len(body) // 512 * 512] + bytes(1024))) as tar:
        for member in tar:
            if member.name.endswith(".cls") and "@" not in member.name:
                found.append(member.name.partition(".")[0])
            if len(found) == 3 * N:
                break
    for epoch in range(3):
        assert found[epoch * N : (epoch + 1) * N] == names(Plan(N, seed=1, epoch=epoch).rows(0, N).tolist())


def unchunked(data: bytes) -> bytes:
    body = data.partition(b"\r\n\r\n")[2]
    found = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        found.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(found)


def test_http_1_0_and_head(live: Live) -> None:
    whole = live.raw(get("/-/stream?set=train&shuffle=0", version="1.0"))
    head, _, body = whole.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == live.ask("/-/stream?set=train&shuffle=0").body
    assert live.ask("/-/stream?set=train", "HEAD").body == b""


def test_a_shard_that_is_replaced(root: Path, tmp_path: Path) -> None:
    """A stream never has a sample that the index does not: it ends short."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("train-000000.tar", "train-000001.tar"):
        shutil.copy2(root / name, mine / name)
    with serving(tmp_path, mine) as live:
        first = live.ask("/-/stream?shuffle=0")
        assert first.status == 200
        (mine / "x.tmp").write_bytes(first.body[1024:-1024] + bytes(2048))
        data = (mine / "train-000001.tar").read_bytes()
        (mine / "x.tmp").write_bytes(data[2048:] + data[:2048])
        (mine / "x.tmp").rename(mine / "train-000001.tar")
        time.sleep(0.05)
        run = subprocess.run(["curl", "-sSf", f"{live.url}/-/stream?shuffle=0"], capture_output=True)
        assert run.returncode != 0
        assert "closed short" in live.log


def test_many_streams_and_their_ends(live: Live) -> None:
    """Whoever leaves takes nothing along."""
    socks = [live.connect() for _ in range(30)]
    for sock in socks:
        sock.sendall(get("/-/stream?set=train&epochs=0"))
        assert sock.recv(100)
    began = time.monotonic()
    assert len(keys(live, seed=1)) == N
    assert time.monotonic() - began < 5
    for sock in socks:
        sock.close()

    def gone() -> bool:
        return b"wds_serve_connections 1\n" in live.ask("/-/metrics").body

    assert wait_until(gone, 10), live.ask("/-/metrics").body
