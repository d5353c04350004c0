"""POST /-/batch: one tar in the order asked, whole or not at all."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

import wdstools
from tests import serveddata
from tests.serveddata import N, sample
from tests.serving import Live, Reply, get, serving
from wdstools.writer import ShardWriter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = serveddata.make(tmp_path_factory.mktemp("samples"))
    with ShardWriter(str(folder / "large-%06d.tar"), maxcount=7) as writer:  # the kernel sends these
        for i in range(20):
            writer.write(large(i))
    return folder


def large(i: int) -> dict[str, Any]:
    return {"__key__": f"l{i:02d}", "a.bin": random.Random(i).randbytes(60_000 + 977 * i), "cls": str(i).encode()}


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root) as server:
        yield server


def batch(live: Live, samples: list[Any], **more: object) -> Reply:
    body = json.dumps({"set": "train", "samples": samples} | more).encode()
    return live.ask("/-/batch", "POST", body, Content_Type="application/json")


def members(data: bytes) -> list[tuple[str, bytes]]:
    """Of a whole tar: Python's own reader, which takes a cut one too, and GNU's, which does not."""
    subprocess.run(["tar", "-tf", "-"], input=data, check=True, capture_output=True)
    assert data.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def expected(number: int) -> list[tuple[str, bytes]]:
    found = sample(number)
    return [(f"{found['__key__']}.{name}", data) for name, data in sorted(serveddata.payloads(found).items())]


def test_the_order_asked(live: Live) -> None:
    asked = [250, "k0003", 3, 79, 80, 81, 0, 299, "k0299", 5]
    numbers = [250, 3, 3, 79, 80, 81, 0, 299, 299, 5]
    reply = batch(live, asked)
    assert reply.headers["content-type"] == "application/x-tar"
    assert reply.headers["x-wds-missing"] == "0"
    wanted = []
    for i, number in enumerate(numbers):
        again = number in numbers[:i]  # readers would take the two for one
        wanted += [(name.replace(".", "@2.", 1) if again else name, data) for name, data in expected(number)]
    assert members(reply.body) == wanted


def test_as_they_lie(live: Live, root: Path) -> None:
    """Members are the bytes of the shard, headers too."""
    reply = batch(live, list(range(80)))
    shard = (root / "train-000000.tar").read_bytes()
    assert reply.body == shard


def test_large_ones(live: Live) -> None:
    asked = [19, 0, 1, 2, 3, 7, 6, 13, 12, 0, 19]
    found = members(batch(live, asked, set="large").body)
    keys = [f"l{one:02d}" if one not in asked[:i] else f"l{one:02d}@2" for i, one in enumerate(asked)]
    wanted = [
        (f"{key}.{name}", data)
        for key, i in zip(keys, asked, strict=True)
        for name, data in serveddata.payloads(large(i)).items()
    ]
    assert found == wanted
    parts = members(batch(live, asked, set="large", fields=["cls"]).body)
    assert parts == [(f"{key}.cls", str(i).encode()) for key, i in zip(keys, asked, strict=True)]


def test_missing_ones(live: Live) -> None:
    asked = ["no", 5, N, -1, "k0006", 1 << 70, "\ud800"]
    reply = batch(live, asked)
    assert (reply.status, reply.headers["x-wds-missing"]) == (200, "5")
    found = members(reply.body)
    name, data = found[-1]
    assert (name, json.loads(data)) == ("__missing__.json", ["no", N, -1, 1 << 70, "\ud800"])
    assert found[:-1] == expected(5) + expected(6)
    assert members(batch(live, []).body) == []


def test_fields(live: Live) -> None:
    reply = batch(live, [9, 2, 9, 9], fields=["cls", "bin", "nothing"])
    nine = [("k0009.bin", sample(9)["bin"]), ("k0009.cls", b"9")]
    again = [[(name.replace(".", f"@{i}."), data) for name, data in nine] for i in (2, 3)]
    assert members(reply.body) == [*nine, ("k0002.cls", b"2"), *again[0], *again[1]]


def test_odd_names(live: Live) -> None:
    """Headers of POSIX pax stay with their members."""
    keys = ["x" * 150, "deep/er/key", "007", "empty", "big"]
    found = members(batch(live, keys, set="odd").body)
    assert found[0] == ("x" * 150 + ".cls", b"3")
    assert [name for name, _ in found[1:]] == [
        "deep/er/key.txt",
        "deep/er/key.seg.png",
        "007.txt",
        "007.npy",
        "empty.txt",
        "big.bin",
    ]
    made = dict(members(batch(live, keys, set="odd", fields=["cls", "txt", "seg.png"]).body))
    assert made == {name: data for name, data in found if not name.endswith((".npy", ".bin"))}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"samples": 5}', 400),
        (b'{"samples": [1.5]}', 400),
        (b'{"samples": [true]}', 400),
        (b'{"samples": [null]}', 400),
        (b'{"samples": [[1]]}', 400),
        (b'{"samples": [1], "fields": "cls"}', 400),
        (b'{"samples": [1], "fields": [1]}', 400),
        (b'{"samples": [1], "set": 5}', 400),
        (b'{"samples": [1], "set": "nothing"}', 404),
        (b'{"samples": [1], "version": "another"}', 409),
        (b'{"samples": [' + b"1," * 100_000 + b"1]}", 413),
        (b'{"samples": [' + b" " * (4 << 20) + b"1]}", 413),
        (b"[" * 100_000, 400),
        (b'{"samples": [' + b"9" * 10_000 + b"]}", 400),
        (b"\xff\xfe", 400),
    ],
)
def test_what_is_refused(live: Live, body: bytes, status: int) -> None:
    reply = live.ask("/-/batch", "POST", body)
    assert reply.status == status
    assert set(json.loads(reply.body)) == {"error"}


@given(
    st.lists(st.one_of(st.integers(-5, N + 5), st.text(max_size=6), st.sampled_from(["k0001", "k0299"])), max_size=40)
)
def test_any_batch(live: Live, asked: list[int | str]) -> None:
    found = members(batch(live, asked).body)
    keys = {f"k{i:04d}": i for i in range(N)}
    rows = [keys.get(one, -1) if isinstance(one, str) else one for one in asked]
    good = [row for row in rows if 0 <= row < N]
    names = [name for row in good for name, _ in expected(row)]
    if found and found[-1][0] == "__missing__.json":
        missing = [one for one, row in zip(asked, rows, strict=True) if not 0 <= row < N]
        assert json.loads(found.pop()[1]) == missing
    assert len(found) == len(names)
    for (name, data), wanted in zip(found, [pair for row in good for pair in expected(row)], strict=True):
        key, _, field = name.partition(".")
        assert (f"{key.partition('@')[0]}.{field}", data) == wanted


def test_the_most_that_may_be_asked(live: Live) -> None:
    rng = random.Random(5)
    asked = [rng.randrange(N) for _ in range(100_000)]
    reply = batch(live, asked, fields=["cls"])
    found = [(name.partition("@")[0].partition(".")[0], data) for name, data in members(reply.body)]
    assert found == [(f"k{i:04d}", str(i % 10).encode()) for i in asked]
    assert live.resident() < 600_000_000


def test_webdataset_reads_it(live: Live, tmp_path: Path) -> None:
    (tmp_path / "batch.tar").write_bytes(batch(live, [7, 250, 7, 7, 33]).body)
    with open(tmp_path / "batch.tar", "rb") as file:
        found = list(
            webdataset.tariterators.group_by_keys(
                webdataset.tariterators.tar_file_expander([{"stream": file, "url": "batch"}])
            )
        )
    assert [one["__key__"] for one in found] == ["k0007", "k0250", "k0007@2", "k0007@3", "k0033"]
    assert [one["jpg"] for one in found] == [sample(i)["jpg"] for i in (7, 250, 7, 7, 33)]
    ours = list(wdstools.stream(str(tmp_path / "batch.tar")))
    assert [serveddata.payloads(one) for one in ours] == [serveddata.payloads(one) for one in found]


def test_a_shard_cut_while_it_is_sent(root: Path, tmp_path: Path) -> None:
    """The answer ends short: without its last chunk, and without the end of a tar."""
    mine = tmp_path / "mine"
    mine.mkdir()
    with ShardWriter(str(mine / "s-%06d.tar"), maxsize=1e9) as writer:
        for i in range(200):
            writer.write({"__key__": f"{i:03d}", "bin": bytes(200_000)})
    body = json.dumps({"samples": list(range(200))}).encode()
    with serving(tmp_path, mine) as live, live.connect() as sock:
        sock.sendall(get("/-/batch", f"Content-Length: {len(body)}", method="POST") + body)
        head = sock.recv(1000)
        assert head.startswith(b"HTTP/1.1 200")
        os.truncate(mine / "s-000000.tar", 20_000_000)
        data = head
        while more := sock.recv(1 << 20):
            data += more
        assert len(data) < 30_000_000
        assert not data.endswith(b"0\r\n\r\n")
        assert "closed short" in live.log or "cut short" in live.log
        shutil.copy(root / "train-000001.tar", mine / "s-000000.tar")
        assert live.ask("/-/health").status == 200


def test_a_client_that_leaves(live: Live) -> None:
    body = json.dumps({"set": "large", "samples": list(range(20)) * 100}).encode()
    for _ in range(5):
        with live.connect() as sock:
            sock.sendall(get("/-/batch", f"Content-Length: {len(body)}", method="POST") + body)
            sock.recv(1000)
    assert batch(live, [1]).status == 200
    assert "Exception" not in live.log
