"""Samples over HTTP, asked of a running server: lists, fields, thumbnails, counts, and what must not work."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import tarfile
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import wdstools
from tests import serveddata
from tests.conftest import wait_until
from tests.serveddata import HTML, N, sample
from tests.serving import Live, Reply, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serveddata.make(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("log")
    losses = folder / "losses.csv"
    lines = [f"k{i:04d},{(i * 37) % 101 / 8},{'yes' if i % 2 else ''}" for i in range(0, N, 2)]
    losses.write_text("\n".join(["key,loss,right", *lines, "k0001,nan,no", "k0003,inf,no"]))
    with serving(folder, root, "--annotations", losses, "--query-seconds", 1) as server:
        yield server


def ask(live: Live, path: str, **query: object) -> Any:
    reply = live.ask(target(path, **query))
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    return json.loads(reply.body)


def target(path: str, **query: object) -> str:
    return path + ("?" + urllib.parse.urlencode(query) if query else "")


def error(reply: Reply) -> tuple[int, str]:
    told = json.loads(reply.body)
    assert set(told) == {"error"}
    return reply.status, told["error"]


def test_sets(live: Live, root: Path) -> None:
    found = {one["name"]: one for one in ask(live, "/-/sets")["sets"]}
    assert set(found) == {"train", "odd"}
    nbytes = sum(path.stat().st_size for path in root.glob("train-*.tar"))
    assert (found["train"]["samples"], found["train"]["shards"], found["train"]["nbytes"]) == (N, 4, nbytes)


def test_info(live: Live) -> None:
    found = ask(live, "/-/info", set="train")
    assert found["fields"] == {"cls": N, "jpg": N, "json": N, "bin": N // 3}
    assert found["class_column"] == "cls"
    assert found["images"] == ["jpg"]
    columns = {one["name"]: (one["type"], one["joined"]) for one in found["columns"]}
    assert columns["cls"] == ("number", False)
    assert columns["width"] == ("number", False)
    assert columns["name"] == ("text", False)
    assert columns["loss"] == ("number", True)
    assert columns["right"] == ("text", True)


def test_a_page(live: Live) -> None:
    found = ask(live, "/-/samples", set="train", offset=290, limit=20)
    assert (found["total"], found["offset"], found["limit"]) == (N, 290, 20)
    assert [one["n"] for one in found["samples"]] == list(range(290, 300))
    first = found["samples"][1]
    assert (first["key"], first["shard"], first["image"]) == ("k0291", "train-000003.tar", "jpg")
    assert sorted(first["fields"]) == ["bin", "cls", "jpg", "json"]
    assert first["columns"]["width"] == 331
    assert first["columns"]["loss"] is None  # which the table lacks
    assert ask(live, "/-/samples", set="train")["samples"][59]["n"] == 59
    assert ask(live, "/-/samples", set="train", limit=0)["samples"] == []
    assert ask(live, "/-/samples", set="train", offset=1 << 60)["samples"] == []


@pytest.mark.parametrize("sort", ["", "loss", "width", "name", "key", "nbytes", "right", "file", "cls"])
@pytest.mark.parametrize("descending", [False, True])
def test_filter_and_sort_against_a_naive_model(live: Live, root: Path, sort: str, descending: bool) -> None:
    """null is last either way, and what is equal keeps its order."""
    lines = [one | one.pop("columns") for one in ask(live, "/-/samples", set="train", limit=1000)["samples"]]
    wanted = [one for one in lines if one["width"] > 60 and "1" in one["key"]]
    if sort:
        name = "shard" if sort == "file" else sort
        there = sorted((one for one in wanted if one[name] is not None), key=lambda one: one[name])
        if descending:
            there = sorted(there, key=lambda one: one[name], reverse=True)
        wanted = there + [one for one in wanted if one[name] is None]
    query = {"where": "width > 60", "key": "1", "sort": sort, "desc": int(descending), "set": "train"}
    found = ask(live, "/-/samples", limit=1000, **query)
    assert found["total"] == len(wanted) > 50
    assert [one["n"] for one in found["samples"]] == [one["n"] for one in wanted]
    paged = [one["n"] for i in range(0, len(wanted), 17) for one in page(live, query, i)]
    assert paged == [one["n"] for one in wanted]


def page(live: Live, query: dict[str, Any], offset: int) -> Any:
    return ask(live, "/-/samples", offset=offset, limit=17, **query)["samples"]


def test_numbers_that_json_does_not_have(live: Live) -> None:
    lines = ask(live, "/-/samples", set="train", limit=4)["samples"]
    assert [lines[i]["columns"]["loss"] for i in (1, 3)] == [None, None]


def test_a_sample(live: Live) -> None:
    found = ask(live, "/-/samples/9", set="train")
    assert found["key"] == "k0009"
    assert (found["position"], found["previous"], found["next"]) == (9, 8, 10)
    members = {one["field"]: one for one in found["members"]}
    assert members["jpg"]["kind"] == "image"
    assert members["jpg"]["type"] == "image/jpeg"
    assert members["cls"] == {
        "field": "cls",
        "type": "text/plain; charset=utf-8",
        "kind": "number",
        "nbytes": 1,
        "text": "9",
    }
    assert json.loads(members["json"]["text"])["width"] == 49
    assert members["bin"]["kind"] == "hex"
    assert bytes.fromhex(members["bin"]["text"]) == sample(9)["bin"][:4096]
    assert ask(live, "/-/samples/k0009", set="train") == found
    assert ask(live, "/-/samples/k0009", set="train", by="key") == found
    assert (ask(live, "/-/samples/0", set="train")["previous"], ask(live, "/-/samples/299", set="train")["next"]) == (
        None,
        None,
    )


def test_next_and_previous_in_a_filter(live: Live) -> None:
    query = {"set": "train", "where": "cls = 4", "sort": "width", "desc": 1}
    found = ask(live, "/-/samples/14", **query)
    assert (found["position"], found["previous"], found["next"]) == (28, 24, 4)
    out = ask(live, "/-/samples/15", **query)
    assert (out["position"], out["previous"], out["next"]) == (None, None, None)


def test_every_field_of_every_sample(live: Live) -> None:
    for number in (0, 1, 81, 299):
        for name, payload in serveddata.payloads(sample(number)).items():
            reply = live.ask(f"/-/samples/{number}/{name}?set=train")
            assert (reply.status, reply.body) == (200, payload)
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert live.ask(f"/-/samples/k{number:04d}/{name}?set=train").body == payload


def test_a_range_of_a_field(live: Live) -> None:
    data = sample(99)["bin"]
    path = "/-/samples/99/bin?set=train"
    reply = live.ask(path, Range="bytes=100-299")
    assert (reply.status, reply.body) == (206, data[100:300])
    assert reply.headers["content-range"] == f"bytes 100-299/{len(data)}"
    assert live.ask(path, Range="bytes=-5").body == data[-5:]
    assert live.ask(path, Range="bytes=0-0,5-9").body == data  # several: the whole field
    assert error(live.ask(path, Range=f"bytes={len(data)}-"))[0] == 416
    etag = reply.headers["etag"]
    assert live.ask(path, If_None_Match=etag).status == 304
    assert error(live.ask(path, If_Match='"other"'))[0] == 412
    assert live.ask(path, "HEAD").headers["content-length"] == str(len(data))
    big = live.ask("/-/samples/big/bin?set=odd", Range="bytes=2999990-")
    assert (big.status, big.body) == (206, bytes(10))
    assert live.ask("/-/samples/empty/txt?set=odd").body == b""


def test_odd_keys(live: Live) -> None:
    found = ask(live, "/-/samples", set="odd")
    keys = [one["key"] for one in found["samples"]]
    assert HTML in keys  # as it is: JSON is no HTML
    assert "deep/er/key" in keys
    for key in keys:
        one = ask(live, f"/-/samples/{urllib.parse.quote(key, safe='')}", set="odd", by="key")
        assert one["key"] == key
    assert live.ask("/-/samples/deep/er/key/txt?set=odd").body == b"one"
    assert live.ask("/-/samples/deep%2fer%2fkey/seg.png?set=odd").body == b"no image"
    assert ask(live, "/-/samples/deep/er/key", set="odd")["key"] == "deep/er/key"
    assert live.ask("/-/samples/007/txt?set=odd&by=key").body == b"bond"
    assert error(live.ask("/-/samples/007/nothing?set=odd&by=key"))[0] == 404
    assert live.ask(f"/-/samples/{'x' * 150}/cls?set=odd").body == b"3"


def test_nothing_that_a_browser_runs(live: Live) -> None:
    reply = live.ask(f"/-/samples/{urllib.parse.quote(HTML)}/html?set=odd")
    assert reply.headers["content-type"].startswith("text/html")
    assert "sandbox" in reply.headers["content-security-policy"]
    assert reply.headers["content-disposition"].startswith("inline; filename=")


def test_no_header_comes_out_of_a_name(live: Live) -> None:
    key = next(one["key"] for one in ask(live, "/-/samples", set="odd")["samples"] if "Cookie" in one["key"])
    number = next(one["n"] for one in ask(live, "/-/samples", set="odd")["samples"] if one["key"] == key)
    reply = live.ask(f"/-/samples/{number}/txt?set=odd")
    assert reply.body == b"header"
    assert "set-cookie" not in reply.headers
    assert "%0D%0A" in reply.headers["content-disposition"]


def test_counts(live: Live) -> None:
    found = ask(live, "/-/counts", set="train", column="name", where="width < 140")
    naive: dict[Any, int] = {}
    for i in range(100):
        name = json.loads(sample(i)["json"])["name"]
        naive[name] = naive.get(name, 0) + 1
    assert {one["value"]: one["count"] for one in found["counts"]} == naive
    counts = [one["count"] for one in found["counts"]]
    assert counts == sorted(counts, reverse=True)
    assert found["more"] is False
    assert error(live.ask("/-/counts?set=train&column=nothing"))[0] == 400
    assert error(live.ask("/-/counts?set=train&column=fields"))[0] == 400


def test_etags_of_lists(live: Live) -> None:
    for path in ("/-/info?set=train", "/-/samples?set=train&where=cls%3D1", "/-/samples/5?set=train"):
        reply = live.ask(path)
        again = live.ask(path, If_None_Match=reply.headers["etag"])
        assert (again.status, again.body) == (304, b"")


def test_a_thumbnail(live: Live) -> None:
    reply = live.ask("/-/thumbnails/7?set=train&size=20")
    assert reply.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(reply.body)) as image:
        assert image.size == (20, 15)
        pixel = image.convert("RGB").getpixel((10, 7))
    assert isinstance(pixel, tuple)
    assert all(abs(a - b) < 12 for a, b in zip(pixel, (7, 248, 7), strict=True))
    assert live.ask("/-/thumbnails/7?set=train&size=20", If_None_Match=reply.headers["etag"]).status == 304
    assert live.ask("/-/thumbnails/k0007?set=train&size=20&field=jpg").body == reply.body
    version = ask(live, "/-/info", set="train")["version"]
    assert "immutable" in live.ask(f"/-/thumbnails/7?set=train&v={version}").headers["cache-control"]
    assert "no-cache" in reply.headers["cache-control"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/-/thumbnails/7?set=train&field=cls", 415),
        ("/-/thumbnails/7?set=train&field=nothing.jpg", 404),
        ("/-/thumbnails/deep%2fer%2fkey?set=odd", 415),  # a .png that is none
        ("/-/thumbnails/empty?set=odd", 415),
        ("/-/thumbnails/300?set=train", 404),
        ("/-/thumbnails/7?set=train&size=15", 400),
        ("/-/thumbnails/7?set=train&size=1e9", 400),
        ("/-/thumbnails/?set=train", 404),
        ("/-/info?set=nothing", 404),
        ("/-/samples/300?set=train", 404),
        ("/-/samples/-1?set=train", 404),
        ("/-/samples/99999999999999999999?set=train", 404),
        ("/-/samples/1/x?set=train", 404),
        ("/-/samples?set=train&limit=1001", 400),
        ("/-/samples?set=train&offset=-1", 400),
        ("/-/samples?set=train&limit=%D9%A3", 400),
        ("/-/samples?set=train&sort=nothing", 400),
        ("/-/samples?set=train&sort=fields", 400),
        ("/-/samples?set=train&key=%ff", 400),
        ("/-/samples?set=train&where=%ff", 400),
        ("/-/samples/../../etc/passwd?set=train", 404),
        ("/-/samples/%2e%2e%2fx?set=train", 404),
    ],
)
def test_errors_are_json(live: Live, path: str, status: int) -> None:
    assert error(live.ask(path))[0] == status


def test_methods(live: Live) -> None:
    reply = live.ask("/-/samples", "POST", b"{}")
    assert error(reply)[0] == 405
    assert reply.headers["allow"] == "GET, HEAD"
    assert error(live.ask("/-/batch"))[0] == 405


EVIL = [
    "key in (select content from read_text('/etc/hostname'))",
    "key in (select * from read_csv('/etc/passwd'))",
    "key in (select * from '/etc/passwd')",
    "key in (select * from read_blob('/etc/passwd'))",
    "key in (select file from glob('/etc/*'))",
    "key in (select * from read_parquet('http://127.0.0.1:1/x'))",
    "true); copy (select 1) to 'EVIL'; --",
    "true); create table t (a int); --",
    "true); attach 'EVIL.db'; --",
    "true); set enable_external_access = true; --",
    "true); pragma database_list; --",
    "true); install httpfs; load httpfs; --",
    "true; drop view samples",
    "key in (select * from sniff_csv('/etc/passwd'))",
    "getenv('HOME') is not null",
    "key in (select * from query('copy (select 1) to ''EVIL'''))",
    "(insert into samples values (1))",
]


@pytest.mark.parametrize("sql", EVIL)
def test_sql_reaches_nothing_but_the_index(live: Live, tmp_path: Path, sql: str) -> None:
    sql = sql.replace("EVIL", str(tmp_path / "evil"))
    status, _ = error(live.ask(target("/-/samples", set="train", where=sql)))
    assert status == 400
    assert list(tmp_path.iterdir()) == []
    assert ask(live, "/-/samples", set="train", where="cls = 1")["total"] == 30


def test_sql_that_takes_too_long_or_too_much(live: Live) -> None:
    began = time.monotonic()
    slow = "(select count(*) from range(100000) a, range(100000) b, range(100) c where a.range + b.range = c.range) > 0"
    status, said = error(live.ask(target("/-/samples", set="train", where=slow)))
    assert (status, "given up" in said) == (400, True)
    assert time.monotonic() - began < 10
    large = "len((select list(a.range || repeat('x', 1000)) from range(20000000) a)) > 0"
    assert error(live.ask(target("/-/samples", set="train", where=large)))[0] == 400
    assert live.resident() < 2_500_000_000
    assert ask(live, "/-/samples", set="train")["total"] == N


def test_slow_queries_hold_up_nothing_else(live: Live) -> None:
    slow = (
        "(select count(*) from range(100000) a, range(100000) b, range(100) c where a.range + b.range = c.range) > %d"
    )
    threads = [
        threading.Thread(target=live.ask, args=(target("/-/samples", set="train", where=slow % i),)) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert live.ask("/train-000000.tar").status == 200
    assert live.ask("/-/samples/5/jpg?set=train").status == 200
    assert time.monotonic() - began < 0.9
    for thread in threads:
        thread.join()


# other servers


def pictures() -> dict[str, bytes]:
    """Images that are to be refused, and two that are not."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))
    good = serveddata.jpeg(3, (400, 200))
    clear = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 100)).save(clear, "PNG")
    noise = io.BytesIO()
    Image.effect_noise((300, 300), 50).save(noise, "JPEG")
    return {
        "bomb.png": bomb + chunk(b"IEND", b""),
        "cut.jpg": noise.getvalue()[:2000],
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nquit\n",
        "good.jpg": good,
        "clear.png": clear.getvalue(),
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_broken_and_huge_pictures(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    root.mkdir()
    with tarfile.open(root / "p-0.tar", "w") as tar:
        for name, data in pictures().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    kept = tmp_path / "kept"
    with serving(tmp_path, root, "--thumbnails", kept) as live:
        for key in ("bomb", "cut", "script"):
            status, said = error(live.ask(f"/-/thumbnails/{key}"))
            assert (status, len(said) < 300) == (415, True), said
        assert live.resident() < 400_000_000
        assert live.ask("/-/thumbnails/good?size=100").headers["content-type"] == "image/jpeg"
        clear = live.ask("/-/thumbnails/clear?size=32")
        assert clear.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(clear.body)) as image:
            assert image.mode == "RGBA"
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[:50])  # what a power failure may leave
    with serving(tmp_path, root, "--thumbnails", kept) as live:
        assert live.ask("/-/thumbnails/clear?size=32").body == clear.body
    shutil.rmtree(kept)
    kept.write_text("no folder")
    with serving(tmp_path, root, "--thumbnails", kept) as live:
        assert live.ask("/-/thumbnails/clear?size=32").body == clear.body
        assert "not kept on disk" in live.log


def test_a_token_is_needed_everywhere(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--token", "s3cret") as live:
        for name in (
            "sets",
            "info",
            "samples",
            "samples/1",
            "samples/1/jpg",
            "thumbnails/1",
            "counts",
            "stream",
            "index",
        ):
            status, _ = error(live.ask(f"/-/{name}"))
            assert status == 401, name
            assert live.ask(f"/-/{name}?set=train&column=cls&token=s3cret").status == 200, name
        assert error(live.ask("/-/batch", "POST", b'{"samples": [1]}'))[0] == 401
        assert live.ask("/-/batch", "POST", b'{"samples": [1]}', Authorization="Bearer s3cret").status == 200
        assert live.ask("/train-000000.tar?archpath=k0001.cls").status == 401
        assert live.ask("/-/health").status == 200


def test_without_samples(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--no-samples") as live:
        assert live.ask("/-/samples").status == 404
        assert live.ask("/-/sets").status == 404
        assert live.ask("/train-000000.tar").status == 200


def test_an_index_file_several_folders_and_processes(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy2(root / "train-000000.tar", other / "train-000000.tar")
    with serving(tmp_path, root, other, f"mine={root / 'train.wdsindex'}", "--processes", 2) as live:
        found = {one["name"]: one["samples"] for one in ask(live, "/-/sets")["sets"]}
        assert found == {"odd": found["odd"], "train": N, "other/train": 80, "mine": N}
        assert ask(live, "/-/samples/5", set="other/train")["key"] == "k0005"
        assert live.ask("/-/samples/5/jpg?set=mine").body == sample(5)["jpg"]


def test_a_shard_that_changes(root: Path, tmp_path: Path) -> None:
    """The index knows: an error until it is built anew, and never another sample."""
    mine = tmp_path / "mine"
    shutil.copytree(root, mine)
    with serving(tmp_path, mine) as live:
        assert live.ask("/-/samples/1/jpg?set=train").status == 200
        data = (mine / "train-000000.tar").read_bytes()
        swapped = data[4096:] + data[:4096]  # as large
        (mine / "new.tmp").write_bytes(swapped)
        os.replace(mine / "new.tmp", mine / "train-000000.tar")
        time.sleep(0.05)
        assert error(live.ask("/-/samples/1/jpg?set=train"))[0] == 503
        assert live.ask("/-/samples/100/jpg?set=train").body == sample(100)["jpg"]
        (mine / "train-000001.tar").write_bytes(data[:5000])
        assert error(live.ask("/-/samples/100/jpg?set=train"))[0] == 503


def test_a_set_that_is_replaced_shows_after_a_while(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy2(root / "train-000000.tar", mine / "a-000000.tar")
    with serving(tmp_path, mine) as live:
        version = ask(live, "/-/info")["version"]
        shutil.copy2(root / "train-000001.tar", mine / "a-000001.tar")
        assert wait_until(lambda: ask(live, "/-/info")["version"] != version, 10)
        assert ask(live, "/-/info")["samples"] == 160


def test_an_index_that_names_what_is_outside(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    index = wdstools.open(str(root) + "/train.wdsindex").index
    index.save(mine / "evil.wdsindex")
    shutil.copy2(root / "train-000000.tar", mine / "evil-000000.tar")
    with serving(tmp_path, mine) as live:
        assert live.ask("/-/samples/100/jpg?set=evil").status == 503
        assert live.ask("/evil-000000.tar").status == 200


def test_aistore(live: Live, root: Path) -> None:
    assert live.ask("/train-000001.tar?archpath=k0085.jpg").body == sample(85)["jpg"]
    assert live.ask("/shards/train-000001.tar?archpath=k0085.jpg").headers["content-type"] == "image/jpeg"
    reply = live.ask("/train-000001.tar?archregx=k0085&archmode=wdskey")
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert found == {f"k0085.{name}": data for name, data in serveddata.payloads(sample(85)).items()}
    reply = live.ask("/train-000001.tar?archregx=.cls&archmode=suffix")
    with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
        assert tar.getnames() == [f"k{i:04d}.cls" for i in range(80, 160)]
    assert error(live.ask("/train-000001.tar?archpath=k0001.jpg"))[0] == 404
    assert error(live.ask("/train-000001.tar?archregx=k9&archmode=wdskey"))[0] == 404
    assert error(live.ask("/train-000001.tar?archregx=k.*"))[0] == 501
    assert error(live.ask("/nothing.tar?archpath=k0001.jpg"))[0] == 404
    assert error(live.ask("/readme.txt?archpath=k0001.jpg"))[0] == 422
    assert error(live.ask("/train-000001.tar?archregx=&archmode=prefix"))[0] == 400


ROUTES = ["sets", "info", "samples", "samples/3", "samples/3/jpg", "thumbnails/3", "counts", "stream", "index"]
NAMES = [
    "set", "where", "sort", "desc", "key", "offset", "limit", "by", "field", "size", "column", "split", "seed", "epoch",
    "rank", "world", "block", "shuffle", "epochs", "fields", "v", "split_seed",
]  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=20),
    st.integers(-(10**25), 10**25).map(str),
    st.sampled_from([
        "train", "odd", "cls", "cls = 1", "key", "1", "0", "-1", "1e9", "nan", "a:1@a", "train:0.9,val:0.1@val", "@",
        "fields", "loss", "((", "';--", "select", "9" * 5000, "\x00", "val", "jpg,cls", "x" * 3000, "a:.@a", "a:0@a",
    ]),
)  # fmt: skip
QUERY = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=6)


@settings(max_examples=400)
@given(st.sampled_from(ROUTES), st.one_of(st.just(b""), st.binary(max_size=12)), QUERY)
def test_fuzzed_queries_never_fail(live: Live, route: str, more: bytes, query: list[tuple[str, str | bytes]]) -> None:
    query = [(name, value) for name, value in query if (name, value) != ("epochs", "0")]  # that has no end
    pairs = [
        (name, value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value) for name, value in query
    ]
    path = f"/-/{route}{urllib.parse.quote(more)}?{urllib.parse.urlencode(pairs)}"
    reply = live.ask(path)
    assert reply.status in (200, 304, 400, 404, 414, 415), (path, reply)
    if reply.status != 200 and reply.headers["content-type"].startswith("application/json"):
        error(reply)


def test_random_requests_at_once(live: Live) -> None:
    """Many clients: every answer is that of its own request."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(40):
            number = rng.randrange(N)
            if live.ask(f"/-/samples/{number}/jpg?set=train").body != sample(number)["jpg"]:
                wrong.append(number)
            if ask(live, f"/-/samples/{number}", set="train")["key"] != f"k{number:04d}":
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
