"""Clients that mean harm, or know no better: none gets a wrong byte, a 500 or another client's time."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import wait_until
from tests.serving import Live, get, one_byte, read_all, serving, statuses

DATA = random.Random(2).randbytes(200_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "shards"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.tar", "b.tar", "sub/c.tar"):
        (folder / name).write_bytes(DATA)
    return folder


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with serving(tmp_path_factory.mktemp("log"), root, "--slow", 1) as server:
        yield server


SMUGGLED = [
    get("/a.tar", "Content-Length: 6", "Transfer-Encoding: chunked") + b"0\r\n\r\nX",
    get("/a.tar", "Transfer-Encoding: chunked", "Content-Length: 6") + b"0\r\n\r\nX",
    get("/a.tar", "Transfer-Encoding: chunked", "Transfer-Encoding: identity") + b"0\r\n\r\n",
    get("/a.tar", "Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n",
    get("/a.tar", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n\r\n",
    get("/a.tar", "Transfer-Encoding: chunked", method="POST") + b"ffffffffffffffff0\r\n\r\n",
    get("/a.tar", "Content-Length: 0", "Content-Length: 44"),
    get("/a.tar", "Content-Length: 44\x0b"),
    get("/a.tar", "X: y\nContent-Length: 44"),
    get("/a.tar", "X: y\r\n Content-Length: 44"),
    get("/a.tar", "Content-Length : 44"),
    b"GET /a.tar HTTP/1.1\nHost: a\n\n",
    b"GET /a.tar HTTP/1.1\r\nHost: a\r\n\nX: y\r\n\r\n",
]


@pytest.mark.parametrize("data", SMUGGLED)
def test_nothing_is_smuggled(live: Live, data: bytes) -> None:
    """One refusal, the connection closed, and what came with it not taken for a request."""
    answer = live.raw(data + get("/b.tar", "Range: bytes=0-3"))
    assert len(statuses(answer)) == 1
    assert statuses(answer)[0] in (400, 411)
    assert b"Connection: close" in answer
    assert DATA[:4] not in answer


def test_a_length_without_its_body_waits_for_it_and_ends(live: Live) -> None:
    begun = time.monotonic()
    answer = live.raw(get("/a.tar", "Content-Length: 100", method="POST") + b"short", half_close=False)
    assert statuses(answer) == [408]
    assert time.monotonic() - begun < 10


def test_slow_senders_are_given_up(live: Live) -> None:
    """A byte now and then is no progress: a whole request has to come in time."""
    with live.connect() as sock:
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in get("/a.tar", "X: " + "a" * 1000):
                sock.send(bytes([byte]))
                time.sleep(0.05)
                sock.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if sock.recv(1, socket.MSG_PEEK):
                        break
        sock.settimeout(10)
        assert statuses(read_all(sock)) == [408]
        assert time.monotonic() - begun < 10


def stalled(live: Live, count: int) -> list[socket.socket]:
    """Clients that ask for a lot and read nothing."""
    found = []
    for _ in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", live.port))
        sock.sendall(get("/big.tar") * 20)
        found.append(sock)
    return found


def test_slow_readers_are_given_up_and_cost_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    with open(folder / "big.tar", "wb") as file:
        file.truncate(100 << 20)
    with serving(tmp_path, folder, "--slow", 1) as live:
        before = live.resident()
        clients = stalled(live, 50)
        assert live.ask("/big.tar", Range="bytes=0-9").body == bytes(10)
        wait_until(lambda: b"wds_serve_aborted_total 50" in live.ask("/-/metrics").body, 15)
        assert b"wds_serve_aborted_total 50" in live.ask("/-/metrics").body
        assert live.resident() - before < 20e6
        for sock in clients:
            assert len(read_all(sock)) < 50 << 20  # it ends, short
            sock.close()


def test_idle_connections_are_closed(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--idle", 0.5) as live, live.connect() as fresh, live.connect() as used:
        used.sendall(get("/a.tar", "Range: bytes=0-0"))
        begun = time.monotonic()
        assert read_all(fresh) == b""
        assert read_all(used).endswith(DATA[:1])
        assert time.monotonic() - begun < 8


def test_who_is_idle_makes_room(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--max-connections", 20) as live, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(live.connect()) for _ in range(20)]
        for sock in crowd:
            one_byte(sock, "/a.tar")
            time.sleep(0.005)
        assert live.ask("/a.tar").body == DATA
        assert crowd[0].recv(10) == b""  # idle for longest
        one_byte(crowd[-1], "/a.tar")
        assert b"wds_serve_turned_away_total 0\n" not in live.ask("/-/metrics").body


def test_who_is_refused_while_sending_sees_why(live: Live) -> None:
    answer = live.raw(get("/", "X: " + "a" * 5_000_000), half_close=False)
    assert statuses(answer) == [431]


def test_a_million_ranges(live: Live) -> None:
    assert statuses(live.raw(get("/a.tar", "Range: bytes=" + "0-0," * 1_000_000))) == [431]
    begun = time.monotonic()
    for text in ("0-0," * 7000, "0-," * 60 + "0-0", "-1," * 60 + "-1", "1-2,2-3," * 30):
        reply = live.ask("/a.tar", Range="bytes=" + text)
        assert (reply.status, reply.body) == (200, DATA)
    assert time.monotonic() - begun < 5


def test_many_ranges_are_sent_in_bounds(live: Live) -> None:
    text = ",".join(f"{i * 1000}-{i * 1000 + 9}" for i in range(60))
    reply = live.ask("/a.tar", Range=f"bytes={text}")
    assert reply.status == 206
    for i in range(60):
        assert DATA[i * 1000 : i * 1000 + 10] in reply.body


def test_clients_that_vanish(live: Live) -> None:
    for _ in range(50):
        with live.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # RST
            sock.sendall(get("/a.tar") * 3)
    wait_until(lambda: b"wds_serve_connections 1\n" in live.ask("/-/metrics").body, 10)
    assert b"wds_serve_connections 1\n" in live.ask("/-/metrics").body  # this one
    assert live.ask("/a.tar").body == DATA


# A fuzz pass: whatever is asked, the answer is one of these, comes soon, and carries no byte but those asked for.
EXPECTED = {200, 204, 206, 301, 304, 400, 403, 404, 405, 408, 411, 412, 413, 414, 416, 431, 501, 505}

word = st.sampled_from(
    [
        "a.tar",
        "shards",
        "sub",
        "c.tar",
        "..",
        ".",
        "%2e%2e",
        "%00",
        "%",
        "%zz",
        "\\",
        "",
        "~",
        "storage",
        "v1",
        "b",
        "o",
        "download",
        "-",
        "health",
        "metrics",
        "sub%2Fc.tar",
        "é",
        "a" * 300,
        "<b>",
        "'",
        '"',
        "{0..9}.tar",
        ";",
        "%ff",
    ]
)
path = st.lists(word, max_size=7).map(lambda words: "/" + "/".join(words))
name = st.sampled_from(
    [
        "list-type",
        "prefix",
        "delimiter",
        "marker",
        "max-keys",
        "continuation-token",
        "start-after",
        "encoding-type",
        "location",
        "versioning",
        "acl",
        "uploads",
        "versionId",
        "partNumber",
        "alt",
        "pageToken",
        "maxResults",
        "startOffset",
        "token",
        "X-Amz-Signature",
        "X-Amz-Algorithm",
        "fetch-owner",
        "x",
    ]
)
value = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "1",
            "2",
            "-1",
            "1000",
            "99999999999999999999",
            "url",
            "/",
            "a",
            "sub/",
            "media",
            "%00",
            "%f",
            "%ed%a0%80",
            "c3Vi",
            "////",
            "=",
            "1e3",
            "\u0663",
            "<",
            "%26",
            "true",
        ]
    ),
    st.text(max_size=8),
)
query = st.lists(st.builds("{}={}".format, name, value), max_size=5).map(lambda found: "?" + "&".join(found))
target = st.builds(lambda p, q: (p + q).encode("utf-8", "surrogatepass").decode("latin-1"), path, st.just("") | query)
line = st.one_of(
    st.sampled_from(
        [
            "Range: bytes=0-5",
            "Range: bytes=5-",
            "Range: bytes=-3",
            "Range: bytes=0-1,3-4",
            "Range: x",
            'If-Range: "x"',
            "If-None-Match: *",
            "If-Match: *",
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT",
            "If-Modified-Since: x",
            "If-Unmodified-Since: Thu, 01 Jan 9999 99:99:99 GMT",
            "Authorization: AWS4-HMAC-SHA256 x",
            "Authorization: Bearer",
            "x-amz-date: 1",
            "amz-sdk-request: x",
            "Content-Length: 0",
            "Content-Length: 5",
            "Connection: close",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "Accept: text/html",
            "Upgrade: websocket",
            "Cookie: a=b",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20).map("X: {}".format),
)
request = st.builds(
    lambda m, t, lines, body: get(t, *lines, method=m) + body,
    st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "M-SEARCH", "X"]),
    target,
    st.lists(line, max_size=3),
    st.sampled_from([b"", b"", b"hello", b"0\r\n\r\n"]),
)
stream = st.lists(request | st.binary(max_size=60), min_size=1, max_size=3).map(b"".join)


@settings(max_examples=200)
@given(stream)
@example(get("/storage/v1/b/shards/o/%ff"))
@example(get("/shards?list-type=2&continuation-token=_w=="))
@example(get("/shards?list-type=2&prefix=%ed%a0%80"))
def test_fuzz(live: Live, data: bytes) -> None:
    answer = live.raw(data + get("/a.tar", "Range: bytes=7-20", "Connection: close"), seconds=10)
    found = [int(match) for match in re.findall(rb"HTTP/1\.1 (\d\d\d) ", answer)]
    assert found
    assert set(found) <= EXPECTED
    if 400 not in found and answer.endswith(DATA[7:21]):
        assert found[-1] == 206


def test_after_all_that_it_is_well(live: Live) -> None:
    """Runs last in this file: what came before has left no trace."""
    assert live.ask("/-/health").body == b"ok\n"
    assert live.ask("/a.tar").body == DATA
    metrics = live.ask("/-/metrics").body.decode()
    assert 'status="500"' not in metrics
    wait_until(lambda: b"wds_serve_connections 1\n" in live.ask("/-/metrics").body, 10)
    fds = len(list(Path(f"/proc/{live.process.pid}/fd").iterdir()))
    assert fds < 40
    assert live.resident() < 150e6


def test_busy_and_idle_clients_together(root: Path, tmp_path: Path) -> None:
    """A small edition of the benchmark: 300 idle, 20 busy, nobody disturbed."""
    with serving(tmp_path, root) as live, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(live.connect()) for _ in range(300)]
        wrong: list[object] = []

        def client(seed: int) -> None:
            draw = random.Random(seed)
            try:
                with live.connect() as sock:
                    for _ in range(50):
                        at = draw.randrange(100_000)
                        sock.sendall(get("/a.tar", f"Range: bytes={at}-{at + 99_999}"))
                        data = b""
                        while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < 100_000:
                            data += sock.recv(1 << 20)
                        if data.partition(b"\r\n\r\n")[2] != DATA[at : at + 100_000]:
                            wrong.append(at)
            except Exception as error:  # noqa: BLE001 - the test is told
                wrong.append(error)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        for sock in idle:
            sock.sendall(get("/a.tar", "Range: bytes=0-0", "Connection: close"))
        assert all(read_all(sock).endswith(DATA[:1]) for sock in idle)
        assert live.resident() < 150e6
        assert live.stop(signal.SIGTERM) == 0
