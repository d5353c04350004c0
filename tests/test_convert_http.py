"""wds-shard from folders that web servers show as pages, and from manifests in buckets and behind http."""

from __future__ import annotations

import http.server
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_helpers import class_tree, go, put, samples, shards
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Servers, free_port, running
from test_convert_bucket import reach_s3

from wdstools import httpfolders
from wdstools.convert import place
from wdstools.convert.local import convert
from wdstools.convert.options import Options
from wdstools.errors import AccessError, DestinationError, SourceError, StoreError

NAMES = ["a b", "per%cent", "q?m#s", "ümlaut", "plus+and&amp;", "co:lon", "sq'uote", 'dq"uote', "~tilde", "%41"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture(params=["nginx", "python"])
def folder(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """An empty folder that a server shows, and its URL."""
    name = f"{random.getrandbits(40):x}"
    if request.param == "nginx":
        server = servers.get("http")
        root = server.root / "shown" / name
        root.mkdir(parents=True)
        yield root, f"{server.url}/shown/{name}/"
        return
    root = tmp_path / "served" / name
    root.mkdir(parents=True)
    port, logs = free_port(), tmp_path / "logs"
    logs.mkdir()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(root.parent)]
    with running(command, port, logs):
        yield root, f"http://127.0.0.1:{port}/{name}/"


def assert_same_shards(found: Path, wanted: Path) -> None:
    assert [p.name for p in shards(found)] == [p.name for p in shards(wanted)]
    assert [p.name for p in shards(found) if p.read_bytes() != (wanted / p.name).read_bytes()] == []


@pytest.mark.parametrize("layout", ["classes", "flat"])
def test_as_a_local_tree(folder: tuple[Path, str], layout: str, tmp_path: Path) -> None:
    root, url = folder
    class_tree(root / "in", 3, 7, 900)
    odd = {f"{name}/x/{name}.bin": name.encode() for name in NAMES}
    put(root / "in", {**odd, "n02/deep/er.bin": b"deep", "n02/empty.bin": b"", "n02/.hid": b"1", ".h/a.bin": b"2"})
    put(root, {"beside.bin": b"not below"})
    options = {"layout": layout, "maxcount": 5, "shuffle": True}
    go(url + "in/", tmp_path / "out", **options)
    go(root / "in", tmp_path / "wanted", **options)
    assert len(samples(tmp_path / "out")) == 23 + len(NAMES)
    assert_same_shards(tmp_path / "out", tmp_path / "wanted")
    assert go(url + "in/", tmp_path / "out", **options).complete
    if layout == "classes":
        assert json.loads((tmp_path / "out/classes.json").read_text())["q?m#s"] >= 0


def test_a_folder_of_shards(folder: tuple[Path, str], tmp_path: Path) -> None:
    root, url = folder
    class_tree(tmp_path / "in")
    go(tmp_path / "in", root / "set", maxcount=4)
    go(url + "set/", tmp_path / "out/in-%06d.tar", maxcount=4)
    assert samples(tmp_path / "out") == samples(root / "set")


def test_a_file_that_changes(folder: tuple[Path, str], tmp_path: Path) -> None:
    root, url = folder
    class_tree(root / "in", 2, 4)
    path = root / "in/n01/img_002.JPEG"
    data = path.read_bytes()

    def change(plan: object) -> None:
        put(root, {"in/n01/img_002.JPEG": data[::-1]}, age=5)

    with pytest.raises(SourceError, match=r"img_002.JPEG: changed while it was packed"):
        convert(url + "in/", str(tmp_path / "out"), Options(maxcount=3), planned=change)
    with pytest.raises(DestinationError, match="source"):
        go(url + "in/", tmp_path / "out", maxcount=3)


def test_nothing_is_shown(servers: Servers, tmp_path: Path) -> None:
    server = servers.get("http")
    (server.root / "hidden").mkdir(exist_ok=True)
    put(server.root / "shown/page", {"index.html": "<html><body>Welcome <a href='../up'>up</a></body></html>"})
    put(server.root / "shown/text", {"index.html": "nothing here"})
    with pytest.raises(AccessError, match="403"):
        go(f"{server.url}/hidden/", tmp_path / "out")
    with pytest.raises(
        SourceError, match=r"no links to files below it: is the listing of folders .autoindex. switched"
    ):
        go(f"{server.url}/shown/page/", tmp_path / "out")
    with pytest.raises(StoreError, match="shows no links to files"):
        go(f"{server.url}/shown/text/", tmp_path / "out")
    with pytest.raises(SourceError, match="404"):
        go(f"{server.url}/shown/nowhere/", tmp_path / "out")
    assert not (tmp_path / "out").exists()


PAGE = """<HTML><body><a href="../">Parent</a><a href="?C=N;O=D">Name</a><a href="http://other/raw/x.bin">x</a>
<a href="https://h/raw/y.bin">y</a><a href="/raw/z%20z.bin">z</a><a href='sub/'>sub/</a><a href="sub/in.bin">deeper</a>
<a HREF=bare.bin>bare</a><a href="./a:b.bin">colon</a><a href="z%20z.bin">again</a><a href="#top">top</a>
<a href="javascript:void(0)">js</a><a href="http://[bad">bad</a><a href="/raw">self</a><a href="">empty</a>
<a href="//h/raw/net.bin">net</a><a href="a&amp;b.bin">amp</a></body></HTML>"""


def test_links_that_lead_elsewhere_are_none() -> None:
    folders, files = httpfolders.names("http://h/raw/", [PAGE.encode()], False)
    assert folders == ["sub/"]
    assert files == ["z%20z.bin", "bare.bin", "a:b.bin", "net.bin", "a&b.bin"]


@pytest.mark.parametrize("link", ["a%2Fb", "a%00", "%2E%2E", "x/..%2f..%2fetc"])
def test_links_that_name_no_file(link: str) -> None:
    page = f'<html><a href="{link}">x</a></html>'.encode()
    if link.startswith("x/"):
        assert httpfolders.names("http://h/raw/", [page], True) == ([], [])
        return
    with pytest.raises(StoreError, match="names no file in it"):
        httpfolders.names("http://h/raw/", [page], True)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, len(PAGE) - 8))
def test_a_page_that_was_cut_is_told(cut: int) -> None:
    with pytest.raises(StoreError, match="has no end"):
        httpfolders.names("http://h/raw/", [PAGE[:cut].encode()], False)


def test_a_page_that_is_cut_on_its_way(tmp_path: Path) -> None:
    """The server tells a length and sends less, each time: no file may be lost by that."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE[:300].encode())
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            with pytest.raises(StoreError, match="the server sent 300 bytes of"):
                go(f"http://127.0.0.1:{server.server_address[1]}/raw/", tmp_path / "out")
        finally:
            server.shutdown()
            thread.join()


ROWS = [{"image": "img/a b.jpg", "caption": "one"}, {"image": "./img/../img/b.jpg", "caption": "two, with: colon"}]


def write_manifests(root: Path) -> list[str]:
    put(root, {"img/a b.jpg": b"jpg of a", "img/b.jpg": b"jpg of b"})
    put(root, {"m.csv": "image,caption\n" + "".join(f'"{r["image"]}","{r["caption"]}"\n' for r in ROWS)})
    put(root, {"m.tsv": "image\tcaption\n" + "".join(f"{r['image']}\t{r['caption']}\n" for r in ROWS)})
    put(root, {"m.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS)})
    pq.write_table(pa.Table.from_pylist(ROWS), root / "m.parquet")
    os.utime(root / "m.parquet", (1e9, 1e9))
    return ["m.csv", "m.tsv", "m.jsonl", "m.parquet"]


def check_manifests(root: Path, url: str, tmp_path: Path) -> None:
    for name in write_manifests(root):
        if not url.startswith("http"):
            for path in ("img/a b.jpg", "img/b.jpg", name):
                place.write(url + path, (root / path).read_bytes())
        go(url + name, tmp_path / name / "out", maxcount=1)
        go(root / name, tmp_path / name / "wanted", maxcount=1)
        assert len(shards(tmp_path / name / "out")) == 2
        assert_same_shards(tmp_path / name / "out", tmp_path / name / "wanted")


def test_manifests_behind_http(folder: tuple[Path, str], tmp_path: Path) -> None:
    check_manifests(*folder, tmp_path)


def test_manifests_in_a_bucket(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach_s3(monkeypatch, servers.get("s3").url)
    url = f"s3://bucket/{random.getrandbits(40):x}/"
    check_manifests(tmp_path / "m", url, tmp_path)
    place.write(url + "full.csv", f"image\n{url}img/b.jpg\n".encode())
    go(url + "full.csv", tmp_path / "full")
    assert samples(tmp_path / "full") == {"img/b": {"jpg": b"jpg of b"}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("gone.jpg", "no such object"),
        ("/img/b.jpg", "not a file in the bucket, or on the host"),
        ("../../../b.jpg", "not a file in the bucket, or on the host|no such object"),
        ("s3://other/b.jpg", "not a file in the bucket, or on the host"),
        ("img/noext", "no extension"),
    ],
)
def test_rows_that_make_no_sample(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, row: str, reason: str, tmp_path: Path
) -> None:
    reach_s3(monkeypatch, servers.get("s3").url)
    url = f"s3://bucket/{random.getrandbits(40):x}/"
    place.write(url + "img/b.jpg", b"b")
    place.write(url + "m.csv", f"image\nimg/b.jpg\n{row}\n".encode())
    with pytest.raises(SourceError, match=rf"m.csv: row 2: .*({reason})"):
        go(url + "m.csv", tmp_path / "out")
    assert go(url + "m.csv", tmp_path / "skip", on_error="skip").samples == 1


def test_no_manifest(servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reach_s3(monkeypatch, servers.get("s3").url)
    url = f"s3://bucket/{random.getrandbits(40):x}/"
    place.write(url + "bad.csv", b"a,b\n1\n")
    with pytest.raises(SourceError, match=r"no-such.csv"):
        go(url + "no-such.csv", tmp_path / "out")
    with pytest.raises(SourceError, match=rf"{url}bad.csv: not a table"):
        go(url + "bad.csv", tmp_path / "out")
