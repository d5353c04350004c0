"""Remote stores when things go wrong: faults of the network, lies of servers, credentials; every byte is compared."""

from __future__ import annotations

import http.server
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faultproxy import Proxy, proxied
from tests.servers import Servers, free_port, listens
from wdstools import failures, obstores, remote
from wdstools.errors import AccessError, ChangedError, NotFoundError, StoreError, UnreachableError, WdsError
from wdstools.retrying import Retries, Transient
from wdstools.store import Store, Stores, open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
]

DATA = random.Random(7).randbytes(2_000_000)
LONG = DATA * 20
QUICK = Retries(idle=0.5, first=0.01, most=0.05)
AWS = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"]
GCP = ["GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No credentials of the machine that runs the tests."""
    for name in AWS + GCP:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "BOTO_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def serve(servers: Servers, name: str = "data.tar", data: bytes = DATA) -> int:
    server = servers.get("http")
    (server.root / name).write_bytes(data)
    return server.port


def ways(store: Store, path: str) -> list[Callable[[], object]]:
    """The ways in which an object is asked for."""
    return [lambda: store.read(path, 0, 10), lambda: store.size(path), lambda: store.open(path)]


def once(*faults: str) -> Callable[[str], str]:
    """These faults, one a request, then none."""
    left = list(faults)
    lock = threading.Lock()

    def draw(line: str) -> str:
        with lock:
            return left.pop(0) if left else ""

    return draw


PATHS = ["/data.tar", "/data.tar?plain=1"]  # obstore's client, and our own


@pytest.mark.parametrize("path", PATHS)
def test_hundreds_of_faults_and_every_byte(servers: Servers, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 1_000_000)
    rng = random.Random(3)
    lock = threading.Lock()
    faults = ["reset", "cut", "short", "500", "503", "429", "408"]

    def draw(line: str) -> str:
        with lock:
            if rng.random() < 0.004:
                return "stall"
            return rng.choice(faults) if rng.random() < 0.35 else ""

    with proxied(serve(servers, data=LONG), draw) as proxy:
        store, _ = open_store(proxy.url, retries=Retries(idle=0.5, attempts=20, first=0.005, most=0.02))
        for seed in range(12):
            order = random.Random(seed)
            ranges = [(start, start + 3000) for start in (order.randrange(len(LONG) - 3000) for _ in range(60))]
            found = store.read_ranges(path, ranges)
            assert [bytes(data) for data in found] == [LONG[start:end] for start, end in ranges]
        for _ in range(2):
            with store.open(path) as file:
                assert file.read() == LONG
        injected = sum(proxy.counts[fault] for fault in (*faults, "stall"))
        assert injected > 200, proxy.counts


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["reset", "cut", "short", "stall", "500", "503", "429", "408"])
def test_each_fault_once(servers: Servers, path: str, fault: str) -> None:
    with proxied(serve(servers), once(fault, fault)) as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        store._known = True  # type: ignore[attr-defined]  # it has answered before
        assert store.read(path, 1000, 5000) == DATA[1000:5000]
        assert len(proxy.lines) == 3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["reset", "cut", "short", "500", "stall"])
def test_retries_are_bounded(servers: Servers, path: str, fault: str) -> None:
    retries = Retries(idle=0.2, attempts=3, first=0.01, most=0.02)
    with proxied(serve(servers), lambda line: fault) as proxy:
        store, _ = open_store(proxy.url, retries=retries)
        store._known = True  # type: ignore[attr-defined]  # it has answered before
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1") as raised:
            store.read(path, 0, 1000)
        assert isinstance(raised.value, ConnectionError)
        assert time.monotonic() - began < 5
        assert 3 <= len(proxy.lines) <= 6


@pytest.mark.parametrize("path", PATHS)
def test_the_total_time_is_bounded(servers: Servers, path: str) -> None:
    with proxied(serve(servers), lambda line: "503") as proxy:
        store, _ = open_store(proxy.url, retries=Retries(total=1.0, attempts=1000))
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            store.read(path, 0, 1000)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["norange", "page", "shift", "403"])
def test_lies_are_not_repeated(servers: Servers, path: str, fault: str) -> None:
    with proxied(serve(servers), lambda line: fault) as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        expected = {
            "norange": (failures.NoRangesError, "ignores Range"),
            "page": (AccessError, "web page .'Please log in'."),
            "shift": (StoreError, "(?i)range|bytes"),
            "403": (AccessError, "what the proxy says.*credentials"),
        }
        error, said = expected[fault]
        with pytest.raises(error, match=said):
            store.read(path, 1000, 5000)
        assert len(proxy.lines) <= 2


@pytest.mark.parametrize("path", PATHS)
def test_a_changed_etag(servers: Servers, path: str) -> None:
    with proxied(serve(servers), once("", "etag", "")) as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        assert store.read(path, 0, 100) == DATA[:100]
        with pytest.raises(ChangedError, match="another"):
            store.read(path, 100, 200)
        assert store.read(path, 100, 200) == DATA[100:200]


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_with_a_changed_etag(servers: Servers, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", 500_000)
    with proxied(serve(servers), once("", "", "", "etag")) as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        with store.open(path) as file, pytest.raises(ChangedError):
            file.read()


@pytest.mark.parametrize("path", PATHS)
def test_a_server_without_ranges_is_streamed(servers: Servers, path: str) -> None:
    """Also when it breaks off: then from the start again, up to where it was."""

    def draw(line: str) -> str:
        return cuts.pop(0) if cuts else "norange"

    cuts = ["norange"] * (1 if "?" in path else 2) + ["cut", "short", "500", "reset"]
    with proxied(serve(servers), draw) as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        with store.open(path) as file:
            assert file.read() == DATA
        assert not cuts


@pytest.mark.parametrize("path", ["/small.tar", "/small.tar?plain=1"])
@pytest.mark.parametrize("nbytes", [0, 1, 1000])
def test_a_small_object_of_a_server_without_ranges(servers: Servers, path: str, nbytes: int) -> None:
    with proxied(serve(servers, "small.tar", DATA[:nbytes]), lambda line: "norange") as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        with store.open(path) as file:
            assert file.read() == DATA[:nbytes]
        if nbytes:
            assert store.read(path, 0, nbytes) == DATA[:nbytes]
            with pytest.raises(StoreError):
                store.read(path, 0, nbytes + 1)


@pytest.mark.parametrize("path", PATHS)
def test_a_login_page_has_no_size(servers: Servers, path: str) -> None:
    with proxied(serve(servers), lambda line: "page") as proxy:
        store, _ = open_store(proxy.url, retries=QUICK)
        for call in ways(store, path):
            with pytest.raises(AccessError, match=r"Please log in"):
                call()


@pytest.mark.parametrize("path", PATHS)
def test_passwords_are_not_shown(servers: Servers, path: str) -> None:
    for fault in ("403", "500", "norange", "shift", "reset"):
        with proxied(serve(servers), lambda line, fault=fault: fault) as proxy:  # type: ignore[misc]
            store, _ = open_store(proxy.url.replace("//", "//me:secret@"), retries=Retries(attempts=2, first=0.01))
            with pytest.raises(StoreError) as raised:
                store.read(path, 10, 20)
            assert "secret" not in str(raised.value)
            assert "127.0.0.1" in str(raised.value)
    store, _ = open_store(f"http://me:secret@127.0.0.1:{free_port()}", retries=QUICK)
    for call in ways(store, path):
        with pytest.raises(UnreachableError) as raised:
            call()
        assert "secret" not in str(raised.value)


@pytest.mark.parametrize("path", PATHS)
def test_a_stall_ends_with_the_total_time(servers: Servers, path: str) -> None:
    with proxied(serve(servers), lambda line: "stall") as proxy:
        store, _ = open_store(proxy.url, retries=Retries(total=0.5))
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            store.read(path, 0, 1000)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("path", PATHS)
def test_silence_from_the_first_moment(servers: Servers, path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store, _ = open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", retries=QUICK)
        for call in ways(store, path):
            began = time.monotonic()
            with pytest.raises(UnreachableError):
                call()
            assert time.monotonic() - began < 2


class Stubborn(http.server.BaseHTTPRequestHandler):
    """Knows no HEAD, or sends a stranger elsewhere; `asked`: the headers that came."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, str, dict[str, str]]]
    target = ""

    def do_HEAD(self) -> None:
        self.answer(405 if not self.target else 302, b"")

    def do_GET(self) -> None:
        self.answer(206 if not self.target else 302, DATA[:1])

    def answer(self, status: int, body: bytes) -> None:
        type(self).asked.append((self.command, self.path, dict(self.headers)))
        self.send_response(status)
        if self.target:
            self.send_header("Location", self.target)
            body = b""
        self.send_header("Content-Range", f"bytes 0-0/{len(DATA)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def stubborn() -> Iterator[tuple[type[Stubborn], str]]:
    class Handler(Stubborn):
        asked = []  # noqa: RUF012

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_that_refuses_head(stubborn: tuple[type[Stubborn], str]) -> None:
    handler, url = stubborn
    store, path = open_store(
        f"{url}/a.tar?X-Amz-Signature=1", {"headers": {"Authorization": "Bearer x"}}, retries=QUICK
    )
    assert store.size(path).nbytes == len(DATA)
    assert [(a[0], a[1]) for a in handler.asked] == [("HEAD", path), ("GET", path)]
    assert handler.asked[0][2]["Authorization"] == "Bearer x"
    assert handler.asked[1][2]["Range"] == "bytes=0-0"


def test_redirects_are_followed_without_the_password(servers: Servers, stubborn: tuple[type[Stubborn], str]) -> None:
    handler, url = stubborn
    with proxied(serve(servers)) as proxy:
        handler.target = f"{proxy.url}/data.tar"
        for path in ("/x.tar", "/x.tar?q=1"):
            home = url.replace("//", "//user:secret@")
            store, path = open_store(home + path, retries=QUICK)
            assert store.read(path, 5, 1000) == DATA[5:1000]
    assert any("Authorization" in asked[2] for asked in handler.asked)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "127.0.0.1"])
@pytest.mark.parametrize("scheme", ["http", "plain", "s3", "gs", "az", "s3-fsspec", "gs-fsspec"])
def test_no_server_there(clean: pytest.MonkeyPatch, host: str, scheme: str) -> None:
    endpoint = f"http://{host}:{free_port()}"
    kind, _, fsspec = scheme.partition("-")
    options: dict[str, Any] = {
        "s3": {"key": "k", "secret": "s", "endpoint_url": endpoint},
        "gs": {"token": "anon", "endpoint_url": endpoint},
        "az": {"connection_string": f"AccountName=a;AccountKey=a2V5;BlobEndpoint={endpoint}/a"},
    }.get(kind, {})
    if fsspec:
        options["default_cache_type" if kind == "s3" else "consistency"] = "none"
    url = (
        f"{endpoint}/a.tar" + ("?x=1" if scheme == "plain" else "")
        if kind in ("http", "plain")
        else f"{kind}://b/a.tar"
    )
    store, path = open_store(url, options, retries=Retries(idle=2))
    for call in ways(store, path)[: 1 if fsspec else 3]:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"no server answers"):
            call()
        assert time.monotonic() - began < 8


def test_buckets_and_keys_that_are_not_there(servers: Servers, clean: pytest.MonkeyPatch) -> None:
    for scheme in ("s3", "gs", "az"):
        options = servers.get(scheme).options
        for url, match in ((f"{scheme}://bucket/no.tar", "no.tar"), (f"{scheme}://no-bucket/a.tar", "no-bucket")):
            store, path = open_store(url, options, retries=QUICK)
            began = time.monotonic()
            for call in ways(store, path):
                with pytest.raises(NotFoundError, match=match):
                    call()
            if "no-bucket" in url:
                with pytest.raises(NotFoundError, match="no-bucket"):
                    store.list("sub/")
                if scheme == "s3":
                    with pytest.raises(NotFoundError, match="no-bucket"):
                        store.put(path, b"x")
            assert time.monotonic() - began < 8


def test_no_credentials(servers: Servers, clean: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    store, path = open_store("s3://bucket/a.tar", {"endpoint_url": servers.get("s3").url}, retries=QUICK)
    with pytest.raises(AccessError, match=r"no AWS credentials found.*anon"):
        store.read(path, 0, 10)
    with pytest.raises(AccessError, match=r"(?i)credentials"):
        store.list("")
    store, path = open_store("s3://bucket/a.tar", {"profile": "nobody"}, retries=QUICK)
    with pytest.raises(AccessError, match="nobody"):
        store.read(path, 0, 10)
    store, path = open_store("az://bucket/a.tar", retries=QUICK)
    with pytest.raises(AccessError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        store.read(path, 0, 10)
    assert time.monotonic() - began < 10


def test_wrong_key_of_azure(servers: Servers) -> None:
    text = servers.get("az").options["connection_string"].replace("AccountKey=Eby8", "AccountKey=AAAA")
    store, path = open_store("az://bucket/a.tar", {"connection_string": text}, retries=QUICK)
    with pytest.raises(AccessError, match="credentials"):
        store.read(path, 0, 10)
    with pytest.raises(AccessError, match="credentials"):
        store.list("")


def test_the_environment_as_the_clouds_have_it(servers: Servers, clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3, gs, az = (servers.get(scheme) for scheme in ("s3", "gs", "az"))
    for scheme, server in (("s3", s3), ("gs", gs), ("az", az)):
        store, path = open_store(f"{scheme}://bucket/env.tar", server.options)
        store.put(path, DATA[:1000])

    def works(url: str, options: dict[str, Any] | None = None) -> None:
        store, path = open_store(url, options, retries=QUICK)
        assert store.read(path, 10, 20) == DATA[10:20]
        assert path in store.list("env")

    clean.setenv("AWS_ACCESS_KEY_ID", "k")
    clean.setenv("AWS_SECRET_ACCESS_KEY", "s")
    clean.setenv("AWS_ENDPOINT_URL", s3.url)
    works("s3://bucket/env.tar")
    for name in AWS:
        clean.delenv(name, raising=False)
    credentials, config = tmp_path / "credentials", tmp_path / "config"
    credentials.write_text("[me]\naws_access_key_id = k\naws_secret_access_key = s\n")
    config.write_text(f"[profile me]\nregion = us-east-1\nendpoint_url = {s3.url}\n")
    clean.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    clean.setenv("AWS_CONFIG_FILE", str(config))
    works("s3://bucket/env.tar", {"profile": "me"})
    clean.setenv("AWS_PROFILE", "me")
    works("s3://bucket/env.tar")
    works("s3://bucket/env.tar", {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": s3.url}})
    clean.setenv("STORAGE_EMULATOR_HOST", gs.url)
    works("gs://bucket/env.tar")
    works("gcs://bucket/env.tar", {"token": "anon", "project": "p"})
    clean.setenv("AZURE_STORAGE_CONNECTION_STRING", az.options["connection_string"])
    works("az://bucket/env.tar")


def test_nothing_is_asked_for_nothing() -> None:
    store, path = open_store("s3://bucket/a.tar", {"profile": "nobody"})
    assert store.read_ranges(path, [(5, 5), (0, 0)]) == [b"", b""]
    assert store.read_ranges(path, []) == []


def test_one_store_for_one_root() -> None:
    stores = Stores()
    assert stores.of("s3://b/x")[0] is stores.of("s3://b/y/z")[0]
    assert stores.of("s3://b/x")[0] is not stores.of("s3://c/x")[0]
    assert stores.of("http://h/x")[0] is not stores.of("https://h/x")[0]


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (404, "NoSuchKey", NotFoundError),
        (410, "", NotFoundError),
        (401, "", AccessError),
        (403, "", AccessError),
        (400, "<Code>ExpiredToken</Code>", AccessError),
        (403, "Request has expired", AccessError),
        (400, "AuthorizationHeaderMalformed", AccessError),
        (301, "PermanentRedirect", StoreError),
        (412, "", ChangedError),
        (400, "odd", StoreError),
    ],
)
def test_statuses(status: int, said: str, error: type[WdsError]) -> None:
    found = failures.of_status("u", status, said)
    assert type(found) is error
    assert str(found).startswith(f"u: HTTP {status}")
    if "xpired" in said:
        assert "expired: get new ones" in str(found)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_pass(status: int) -> None:
    found = failures.of_status("u", status, after="2")
    assert isinstance(found, Transient)
    assert found.after == 2


def test_retries_stop_at_strangers_sooner() -> None:
    calls = []

    def attempt() -> None:
        calls.append(1)
        raise Transient(UnreachableError("x"), contact=False)

    retries = Retries(first=0.001, most=0.002)
    for known, expected in ((False, 3), (True, 7)):
        calls.clear()
        with pytest.raises(UnreachableError):
            retries.call(attempt, known)
        assert len(calls) == expected


def test_pauses_grow_and_differ() -> None:
    retries = Retries()
    assert len({retries.pause(3) for _ in range(10)}) > 5
    for number in range(1, 20):
        longest = min(5.0, 0.1 * 2 ** (number - 1))
        assert all(longest / 2 <= retries.pause(number) <= longest for _ in range(20))
    assert retries.pause(1, 7) == 7
    assert retries.pause(1, 1e9) == 30


def test_the_proxy_itself(servers: Servers) -> None:
    with proxied(serve(servers)) as proxy:
        assert isinstance(proxy, Proxy)
        assert listens(proxy.port)
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.sendall(b"GET /data.tar HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n")
            assert b"206" in sock.recv(1000)
    assert not listens(proxy.port)


def test_what_is_not_installed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without obstore, http is read by our own client and s3 by s3fs; without s3fs, the error says what to install."""
    monkeypatch.setattr(obstores, "_installed", lambda: False)
    with proxied(serve(servers)) as proxy:
        store, path = open_store(f"{proxy.url}/data.tar")
        assert store.read(path, 3, 1000) == DATA[3:1000]
        assert isinstance(store, remote.RemoteStore)
        assert list(store._clients.made) == ["plain"]
    server = servers.get("s3")
    store, path = open_store("s3://bucket/a.tar", server.options)
    store.put(path, DATA[:1000])
    assert store.read(path, 3, 1000) == DATA[3:1000]
    code = "import sys; sys.modules['s3fs'] = None; from wdstools.store import open_store; "
    code += "open_store('s3://bucket/a', {'key': 'k', 'secret': 's'})[0].list('')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StoreError: s3://bucket/: needs s3fs: pip install wdstools[s3]" in result.stderr
