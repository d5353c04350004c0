"""Sets behind a bucket: the sample routes over what wds-serve itself reads through a store."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest

import wdstools
from tests import serveddata
from tests.serveddata import N, sample
from tests.servers import Servers, ask
from tests.serving import Live, serving


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("remote")
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        moto = servers.get("s3")
        for path in sorted(serveddata.make(folder).glob("train*")):
            ask("PUT", f"{moto.url}/bucket/set/{path.name}", path.read_bytes())
        options = ["--storage-options", json.dumps(moto.options), "--cache", f"{folder}/cache:100MB"]
        with serving(folder, "s3://bucket/set", *options) as server:
            yield server
    finally:
        servers.close()


def members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def expected(number: int) -> list[tuple[str, bytes]]:
    found = sample(number)
    return [(f"{found['__key__']}.{field}", data) for field, data in sorted(found.items()) if field != "__key__"]


def told(live: Live, target: str) -> Any:
    reply = live.ask(target)
    assert reply.status == 200, reply
    return json.loads(reply.body)


def test_samples_and_fields(live: Live) -> None:
    assert told(live, "/-/sets")["sets"][0]["samples"] == N
    assert told(live, "/-/samples?where=cls%3D3&limit=5")["total"] == N // 10
    for number in (0, 81, N - 1):
        assert live.ask(f"/-/samples/{number}/jpg").body == sample(number)["jpg"]
    assert live.ask("/-/samples/k0009/bin", Range="bytes=300-310").body == sample(9)["bin"][300:311]
    assert live.ask("/-/thumbnails/5").status == 200


def test_batches(live: Live) -> None:
    numbers = [299, 3, 4, 160, 0, "k0100"]
    body = json.dumps({"samples": numbers}).encode()
    reply = live.ask("/-/batch", "POST", body, Content_Type="application/json")
    assert reply.status == 200
    assert members(reply.body) == [m for n in (299, 3, 4, 160, 0, 100) for m in expected(n)]
    body = json.dumps({"samples": numbers, "fields": ["cls"]}).encode()
    reply = live.ask("/-/batch", "POST", body, Content_Type="application/json")
    assert [data for _, data in members(reply.body)] == [sample(n)["cls"] for n in (299, 3, 4, 160, 0, 100)]


def test_streams(live: Live) -> None:
    found: list[tuple[str, bytes]] = []
    for rank in range(3):
        found += members(live.ask(f"/-/stream?seed=2&world=3&rank={rank}").body)
    whole = [m for n in range(N) for m in expected(n)]
    assert found != whole
    assert sorted(found) == sorted(whole)


def test_open(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train")
    got = dataset.fetch([5, 299, 7])
    assert [{k: v for k, v in s.items() if k not in ("__url__",)} for s in got] == [sample(n) for n in (5, 299, 7)]
