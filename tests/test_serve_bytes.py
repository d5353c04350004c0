"""What the server sends: the right bytes of files, folders, indexes and remote prefixes, as RFC 9110 has it."""

from __future__ import annotations

import email
import email.policy
import http.client
import json
import os
import random
import re
import resource
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import wait_until
from tests.servers import Servers, ask
from tests.serving import Live, get, read_all, serving, statuses
from wdstools.serve.ranges import Unsatisfiable, spans
from wdstools.store import open_store
from wdstools.writer import ShardWriter

DATA = random.Random(1).randbytes(300_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is served and what is not."""
    folder = tmp_path_factory.mktemp("served") / "shards"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    for i in range(3):
        (folder / f"train-00000{i}.tar").write_bytes(DATA[i:])
    (folder / "sub" / "deep" / "a b+é%.tar").write_bytes(DATA[10:1000])
    (folder / "empty.tar").write_bytes(b"")
    (folder / "page.html").write_text("<script>alert(1)</script>")
    for name in (
        ".hidden",
        ".git/config",
        "train-000003.tar.part",
        "x.tmp",
        "y.partial",
        "sub/.train-9.tar.abc.partial",
    ):
        (folder / name).write_bytes(b"secret")
    (folder.parent / "outside.tar").write_bytes(b"outside")
    (folder.parent / "shards-of-others").mkdir()
    (folder.parent / "shards-of-others" / "a.tar").write_bytes(b"others")
    (folder / "out.tar").symlink_to("../outside.tar")
    (folder / "others").symlink_to("../shards-of-others")
    (folder / "in.tar").symlink_to("train-000001.tar")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "gone.tar").symlink_to("nowhere")
    os.mkfifo(folder / "fifo.tar")
    return folder


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root) as server:
        yield server


def test_a_whole_file(live: Live) -> None:
    for path in ("/train-000001.tar", "/shards/train-000001.tar", "/train-000001.tar?any=thing"):
        reply = live.ask(path)
        assert (reply.status, reply.body) == (200, DATA[1:])
        assert reply.headers["content-type"] == "application/x-tar"
        assert reply.headers["accept-ranges"] == "bytes"
        assert reply.headers["date"].endswith(" GMT")


def test_head_has_no_body(live: Live) -> None:
    head, whole = live.ask("/train-000000.tar", "HEAD"), live.ask("/train-000000.tar")
    assert head.body == b""
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}
    sent = live.raw(get("/train-000000.tar", method="HEAD") + get("/empty.tar", "Connection: close"))
    assert sent.count(b"HTTP/1.1 200 OK") == 2
    assert sent.endswith(b"\r\n\r\n")
    assert live.ask("/train-000000.tar", "HEAD", Range="bytes=0-1").status == 200  # Range is defined for GET


def test_names_are_decoded_once(live: Live) -> None:
    for path in ("/sub/deep/a%20b%2B%C3%A9%25.tar", "/shards/sub%2Fdeep/a%20b+%c3%a9%25.tar"):
        assert live.ask(path).body == DATA[10:1000]
    assert live.ask("/sub/deep/a%20b%2B%C3%A9%2525.tar").status == 404


number = st.one_of(st.just(""), st.integers(0, len(DATA) + 10).map(str))
header = (
    st.lists(st.builds("{}-{}".format, number, number), min_size=1, max_size=5).map(",".join).map("bytes={}".format)
)


@settings(max_examples=60)
@given(header)
def test_ranges(live: Live, text: str) -> None:
    reply = live.ask("/train-000000.tar", Range=text)
    try:
        expected = spans(text.encode(), len(DATA))
    except Unsatisfiable:
        assert reply.status == 416
        assert reply.headers["content-range"] == f"bytes */{len(DATA)}"
        return
    if expected is None:
        assert (reply.status, reply.body) == (200, DATA)
    elif len(expected) == 1:
        start, end = expected[0]
        assert (reply.status, reply.body) == (206, DATA[start:end])
        assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    else:
        assert reply.status == 206
        assert parts(reply.headers["content-type"], reply.body) == [(span, DATA[slice(*span)]) for span in expected]


def parts(kind: str, body: bytes) -> list[tuple[tuple[int, int], bytes]]:
    """The parts of a multipart/byteranges, as the mail parser of the standard library cuts them."""
    text = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
    message = email.message_from_bytes(text, policy=email.policy.HTTP)
    found = []
    for part in message.iter_parts():
        match = re.fullmatch(r"bytes (\d+)-(\d+)/\d+", part["Content-Range"])
        assert match is not None
        payload = part.get_payload(decode=True)
        found.append(((int(match[1]), int(match[2]) + 1), payload))
    return found


def test_several_ranges(live: Live) -> None:
    reply = live.ask("/train-000000.tar", Range="bytes=0-4,100000-100099,-5")
    boundary = reply.headers["content-type"].partition("boundary=")[2]
    pieces = reply.body.split(f"--{boundary}".encode())
    assert [piece.partition(b"\r\n\r\n")[2][:-2] for piece in pieces[1:-1]] == [
        DATA[:5],
        DATA[100000:100100],
        DATA[-5:],
    ]
    assert pieces[-1] == b"--\r\n"
    assert int(reply.headers["content-length"]) == len(reply.body)


def test_conditions(live: Live) -> None:
    first = live.ask("/train-000000.tar")
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    reply = live.ask("/train-000000.tar", If_None_Match=etag)
    assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
    assert live.ask("/train-000000.tar", If_Modified_Since=modified).status == 304
    assert live.ask("/train-000000.tar", If_Match='"x"').status == 412
    for value, status in ((etag, 206), (modified, 206), ('"x"', 200), ("W/" + etag, 200)):
        assert live.ask("/train-000000.tar", Range="bytes=0-9", If_Range=value).status == status
    sent = live.raw(get("/train-000000.tar", f"If-None-Match: {etag}") + get("/empty.tar", "Connection: close"))
    assert statuses(sent.replace(b"Content-Length: 0", b"Content-Length: 0")) == [304, 200]


def test_an_empty_file(live: Live) -> None:
    assert (live.ask("/empty.tar").status, live.ask("/empty.tar").body) == (200, b"")
    for text in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        assert live.ask("/empty.tar", Range=text).status == 416


def test_requests_in_a_row_are_answered_in_a_row(live: Live) -> None:
    targets = [(f"/train-00000{i % 3}.tar", i * 100) for i in range(200)]
    data = b"".join(get(path, f"Range: bytes={at}-{at + 9}") for path, at in targets)
    answers = live.raw(data + get("/missing", "Connection: close"))
    bodies = re.findall(rb"Accept-Ranges: bytes\r\n\r\n(.{10})HTTP", answers, re.DOTALL)
    assert bodies == [DATA[at + int(path[12]) :][:10] for path, at in targets]


def test_http_1_0(live: Live) -> None:
    sent = live.raw(get("/empty.tar", version="1.0"), half_close=False)
    assert b"Connection: close" in sent
    kept = live.raw(
        get("/empty.tar", "Connection: keep-alive", version="1.0") + get("/empty.tar", version="1.0"), False
    )
    assert kept.count(b"200 OK") == 2
    assert b"Connection: keep-alive" in kept


def test_who_stops_talking_still_gets_the_answer(live: Live) -> None:
    assert live.raw(get("/train-000000.tar"), half_close=True).endswith(DATA)


@pytest.mark.parametrize(
    "path",
    ["/.hidden", "/.git/config", "/train-000003.tar.part", "/x.tmp", "/y.partial", "/sub/.train-9.tar.abc.partial",
     "/out.tar", "/others/a.tar", "/device", "/gone.tar", "/fifo.tar", "/missing.tar", "/train-000000.tar/x", "/sub",
     "//train-000000.tar", "/sub//deep", "/shards/shards/train-000000.tar", "/../outside.tar", "/%2e%2e/outside.tar",
     "/shards/../../outside.tar", "/..%2foutside.tar", "/..%5coutside.tar", "/%2e%2e%2foutside.tar", "/out.tar%00",
     "/train-000000.tar%00", "/%252e%252e/outside.tar", "/./train-000000.tar", "/etc/passwd", "//etc/passwd",
     "/%2fetc/passwd",
     "/shards%2f..%2f..%2foutside.tar", "/..;/outside.tar", "/shards-of-others/a.tar", "/\\..\\outside.tar",
     "/~root/x", "/C:/outside.tar", "/" + "a" * 300, "/" + "a/" * 2000],
)  # fmt: skip
def test_what_is_not_served(live: Live, path: str) -> None:
    for prefix in ("", "/storage/v1/b/shards/o", "/download/storage/v1/b/shards/o", "/shards"):
        answer = live.raw(get(prefix + path + ("?alt=media" if "v1" in prefix else ""), "Connection: close"))
        assert answer[9:12] in (b"400", b"404", b"301"), (prefix, answer[:300])
        assert not any(word in answer for word in (b"secret", b"outside\n", b"others\n", b"root:"))
        assert DATA[:100] not in answer


def test_a_link_inside_is_served(live: Live) -> None:
    assert live.ask("/in.tar").body == DATA[1:]


def test_nothing_runs_in_the_browser(live: Live) -> None:
    assert live.ask("/page.html").headers["content-type"] == "text/plain; charset=utf-8"


def test_folders_are_pages_of_links(live: Live) -> None:
    page = live.ask("/").body.decode()
    links = re.findall(r'href="([^"]*)"', page)
    names = ["empty.tar", "in.tar", "page.html", "sub/", "train-000000.tar", "train-000001.tar", "train-000002.tar"]
    assert sorted(links) == [f"./{name}" for name in names]
    deep = live.ask("/sub/deep/").body.decode()
    assert urllib.parse.unquote(re.findall(r'href="([^"]*)"', deep)[0]) == "./a b+é%.tar"
    assert live.ask("/shards").headers["location"] == "./shards/"
    assert live.ask("/others/").status == live.ask("/.git/").status == live.ask("/nothing/").status == 404


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / '<img src="x" onerror=alert(1)>.tar').write_bytes(b"x")
    (folder / "\udcff\n.tar").write_bytes(b"raw")
    with serving(tmp_path, folder) as live:
        page = live.ask("/").body
        assert b"<img" not in page
        links = re.findall(rb'href="\./([^"]*)"', page)
        assert sorted(live.ask(f"/{link.decode()}").status for link in links) == [200, 400]  # no control characters
        listing = live.ask("/s?list-type=2").body
        assert b"<img" not in listing
        assert b"&lt;img" in listing
        assert b"%FF%0A.tar" in live.ask("/s?list-type=2&encoding-type=url").body


def test_methods(live: Live) -> None:
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        reply = live.ask("/train-000000.tar", method, b"x")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert live.ask("/train-000000.tar", "OPTIONS").status == 204


def test_it_prints_what_to_train_from(live: Live) -> None:
    (source,) = live.told["sources"]
    assert set(source["patterns"]) == {
        f"{live.url}/{name}"
        for name in ("empty.tar", "in.tar", "train-{000000..000002}.tar", "sub/deep/a%20b%2B%C3%A9%25.tar")
    }
    assert f"pipe:curl -sSfL {live.url}/train-{{000000..000002}}.tar" in source["pipes"]


def test_a_replaced_file_is_another_one(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    path = folder / "a.tar"
    path.write_bytes(b"1" * 1000)
    with serving(tmp_path, folder) as live:
        first = live.ask("/a.tar")
        (tmp_path / "new").write_bytes(b"2" * 1000)
        os.replace(tmp_path / "new", path)
        wait_until(lambda: False, 0.05)
        second = live.ask("/a.tar", Range="bytes=0-9", If_Range=first.headers["etag"])
        assert (second.status, second.body) == (200, b"2" * 1000)
        path.unlink()
        wait_until(lambda: False, 0.05)
        assert live.ask("/a.tar").status == 404


@pytest.fixture
def large(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir()
    with open(folder / "a.tar", "wb") as file:
        for i in range(64):
            file.write(bytes([i]) * (1 << 20))
    return folder / "a.tar"


def test_a_file_that_is_cut_while_it_is_sent_is_closed_short(large: Path, tmp_path: Path) -> None:
    with serving(tmp_path, large.parent) as live:
        with live.connect() as sock:
            sock.sendall(get("/a.tar"))
            begun = sock.recv(1000)
            os.truncate(large, 32 << 20)
            answer = begun + read_all(sock)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: 67108864" in head
        assert len(body) <= 32 << 20
        assert body == b"".join(bytes([i]) * (1 << 20) for i in range(32))[: len(body)]
        wait_until(lambda: b"wds_serve_aborted_total 1" in live.ask("/-/metrics").body, 5)
        assert b"wds_serve_aborted_total 1" in live.ask("/-/metrics").body


def test_a_file_that_is_replaced_while_it_is_sent_comes_whole(large: Path, tmp_path: Path) -> None:
    expected = large.read_bytes()
    with serving(tmp_path, large.parent) as live:
        with live.connect() as sock:
            sock.sendall(get("/a.tar", "Connection: close"))
            begun = sock.recv(1000)
            (tmp_path / "new").write_bytes(b"other" * 1000)
            os.replace(tmp_path / "new", large)
            answer = begun + read_all(sock)
        assert answer.partition(b"\r\n\r\n")[2] == expected


def test_many_at_once(live: Live) -> None:
    wrong: list[object] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
        try:
            for _ in range(100):
                i, start = draw.randrange(3), draw.randrange(len(DATA) - 3)
                end = draw.randrange(start, len(DATA) - 3)
                connection.request("GET", f"/train-00000{i}.tar", headers={"Range": f"bytes={start}-{end}"})
                if connection.getresponse().read() != DATA[i + start : i + end + 1]:
                    wrong.append((i, start, end))
        except Exception as error:  # noqa: BLE001 - the test is told
            wrong.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_cold_file(tmp_path: Path, large: Path) -> None:
    """What is not in the page cache is read elsewhere, and sent all the same."""
    expected = large.read_bytes()
    with open(large, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with serving(tmp_path, large.parent) as live:
        assert live.ask("/a.tar").body == expected


def write_set(folder: Path, pattern: str, count: int = 30) -> None:
    with ShardWriter(str(folder / pattern), maxcount=10) as writer:
        for i in range(count):
            writer.write({"__key__": f"{i:04d}", "txt": str(i)})


def test_an_index_is_a_source(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_set(folder, "train-%06d.tar")
    (folder / "private.txt").write_text("not in the index")
    assert (folder / "train.wdsindex").exists()
    with serving(tmp_path, folder / "train.wdsindex") as live:
        (source,) = live.told["sources"]
        assert source["patterns"] == [f"{live.url}/train-{{000000..000002}}.tar"]
        assert live.ask("/train-000001.tar").body == (folder / "train-000001.tar").read_bytes()
        assert live.ask("/train/train.wdsindex").body == (folder / "train.wdsindex").read_bytes()
        assert live.ask("/private.txt").status == 404
        assert live.ask("/train?list-type=2").body.count(b"<Key>") == 4


def test_several_sources_have_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "x.tar").write_bytes(name.encode())
    with serving(tmp_path, f"first={tmp_path}/a/train", tmp_path / "b" / "train") as live:
        assert live.ask("/first/x.tar").body == b"a"
        assert live.ask("/train/x.tar").body == b"b"
        assert live.ask("/x.tar").status == 404
        assert [source["name"] for source in live.told["sources"]] == ["first", "train"]
        assert set(re.findall(rb'href="([^"]*)"', live.ask("/").body)) == {b"./first/", b"./train/"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    found = Servers(tmp_path_factory.mktemp("servers"))
    yield found
    found.close()


def test_a_remote_prefix(servers: Servers, tmp_path: Path) -> None:
    moto = servers.get("s3")
    for name in ("set/train-000000.tar", "set/deep/x.tar", "set/.hidden", "elsewhere.tar"):
        ask("PUT", f"{moto.url}/bucket/{name}", DATA)
    options = ["--storage-options", json.dumps(moto.options), "--cache", f"{tmp_path}/cache:100MB"]
    with serving(tmp_path, "s3://bucket/set", *options) as live:
        assert live.told["sources"][0]["patterns"] == [f"{live.url}/deep/x.tar", f"{live.url}/train-000000.tar"]
        whole = live.ask("/train-000000.tar")
        assert (whole.status, whole.body) == (200, DATA)
        part = live.ask("/set/train-000000.tar", Range="bytes=1000-1999,5-9")
        assert part.headers["content-type"].startswith("multipart/byteranges")
        assert live.ask("/train-000000.tar", Range="bytes=1000-200000").body == DATA[1000:200001]
        assert live.ask("/train-000000.tar", If_None_Match=whole.headers["etag"]).status == 304
        assert live.ask("/train-000000.tar", "HEAD").headers["content-length"] == str(len(DATA))
        for missing in ("/.hidden", "/../elsewhere.tar", "/%2e%2e/elsewhere.tar", "/nothing.tar"):
            assert live.ask(missing).status in (400, 404)
        listing = live.ask("/set?list-type=2&delimiter=/").body
        assert re.findall(rb"<Key>(.*?)</Key>", listing) == [b"train-000000.tar"]
        assert re.findall(rb"<CommonPrefixes><Prefix>(.*?)<", listing) == [b"deep/"]
        assert list((tmp_path / "cache" / "blocks").glob("*/*"))


def test_a_full_disk_under_the_cache(servers: Servers, tmp_path: Path) -> None:
    moto = servers.get("s3")
    ask("PUT", f"{moto.url}/bucket/full/a.tar", DATA)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    options = ["--storage-options", json.dumps(moto.options), "--cache", f"{tmp_path}/cache:100MB"]
    with serving(tmp_path, "s3://bucket/full", *options, before=no_room) as live:
        for _ in range(2):
            assert live.ask("/a.tar").body == DATA
        assert "reads go on without the cache" in live.log


def test_who_asks_together_is_served_by_one_read(tmp_path: Path) -> None:
    """Eight clients, one cold object: what the origin sends is the object, once."""
    sent: list[int] = []
    origin = socket.create_server(("127.0.0.1", 0))
    body = DATA

    def answer(sock: socket.socket) -> None:
        with sock:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    more = sock.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                match = re.search(rb"range: bytes=(\d+)-(\d+)", head, re.IGNORECASE)
                start, end = (int(match[1]), min(int(match[2]) + 1, len(body))) if match else (0, len(body))
                lines = f'Content-Length: {end - start}\r\nETag: "v1"\r\nAccept-Ranges: bytes\r\n'
                lines += f"Content-Range: bytes {start}-{end - 1}/{len(body)}\r\n" if match else ""
                status = "206 Partial Content" if match else "200 OK"
                sock.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())
                if not head.startswith(b"HEAD"):
                    wait_until(lambda: False, 0.3)  # so that all have come
                    sent.append(end - start)
                    sock.sendall(body[start:end])

    def accept() -> None:
        while True:
            try:
                sock, _ = origin.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    with serving(tmp_path, f"set=http://127.0.0.1:{origin.getsockname()[1]}/x") as live:
        live.ask("/a.tar", "HEAD")
        bodies: list[bytes] = []
        clients = [threading.Thread(target=lambda: bodies.append(live.ask("/a.tar").body)) for _ in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert bodies == [DATA] * 8
    origin.shutdown(socket.SHUT_RDWR)
    origin.close()
    thread.join()
    assert sum(sent) == len(DATA)


def test_a_remote_object_that_is_replaced_is_never_mixed(servers: Servers, tmp_path: Path) -> None:
    moto = servers.get("s3")
    store, path = open_store("s3://bucket/swap/a.tar", moto.options)
    store.put(path, b"1" * 10_000)
    with serving(tmp_path, "s3://bucket/swap", "--storage-options", json.dumps(moto.options)) as live:
        first = live.ask("/a.tar")
        assert first.body == b"1" * 10_000
        store, path = open_store("s3://bucket/swap/a.tar", moto.options)
        store.put(path, b"2" * 10_000)
        try:
            body = live.ask("/a.tar").body
        except http.client.IncompleteRead as broken:  # the old one was promised, and is gone
            body = broken.partial
        assert set(body) <= {ord("2")} or set(body) <= {ord("1")}
        assert body in (b"", b"2" * 10_000)
        wait_until(lambda: live.ask("/a.tar", "HEAD").headers["etag"] != first.headers["etag"], 15)
        assert live.ask("/a.tar").body == b"2" * 10_000


def test_an_unreachable_origin_is_no_crash(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with serving(tmp_path, f"set=http://127.0.0.1:{port}/x") as live:
        assert live.ask("/a.tar").status == 502
        assert live.ask("/-/health").status == 200


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    for source, message in [
        (tmp_path / "a.tar", "is no folder"), (tmp_path / "none", "nothing is there"), ("pipe:cat x", "folder"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            serving(tmp_path, source).__enter__()
    for name in ("x", "y"):
        (tmp_path / name / "s").mkdir(parents=True)
    with pytest.raises(RuntimeError, match="NAME=SOURCE"):
        serving(tmp_path, tmp_path / "x" / "s", tmp_path / "y" / "s").__enter__()


def test_the_index_of_a_folder_opens_over_http(tmp_path: Path) -> None:
    import wdstools

    folder = tmp_path / "data"
    folder.mkdir()
    write_set(folder, "train-%06d.tar")
    shutil.copy(folder / "train.wdsindex", tmp_path / "kept")
    with serving(tmp_path, folder) as live:
        ds = wdstools.open(f"{live.url}/train.wdsindex")
        assert [bytes(ds[i]["txt"]) for i in (0, 17, 29)] == [b"0", b"17", b"29"]
