"""Uploads that nobody completed: all of them found, those that are asked for aborted, by requests that S3 takes."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from faultproxy import proxied
from servers import Server, Servers

from wdstools.errors import StoreError
from wdstools.remote import RemoteStore
from wdstools.retrying import Retries, Transient
from wdstools.uploads import Uploads, signs

NAMES = ["a/x-000.tar", "a/x-001.tar", "a/b c+d&e=ü~.tar", "a/deep/x.tar", "other/x.tar"]
FAST = Retries(attempts=4, first=0.01, most=0.02)


@pytest.fixture(scope="module", params=["s3", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers.get(request.param)
    servers.close()


def begin(options: dict[str, Any], names: list[str]) -> None:
    files = RemoteStore("s3", "s3://bucket/", options, FAST)._clients.fsspec()
    for name in names:
        files._s3("create_multipart_upload", name, Bucket="bucket", Key=name)


def test_what_is_asked_for_is_aborted(server: Server) -> None:
    begin(server.options, [*NAMES, NAMES[0]])
    uploads = Uploads("s3://bucket/", server.options, FAST)
    seen: list[str] = []
    assert uploads.abandon("a/", lambda path: seen.append(path) is not None) == 0
    assert sorted(seen) == sorted([*NAMES[:4], NAMES[0]])
    assert uploads.abandon("a/x-", lambda path: path.endswith("0.tar")) == 2
    assert uploads.abandon("a/b c+", lambda path: True) == 1
    store = RemoteStore("s3", "s3://bucket/", server.options, FAST)
    assert store.abandon("", lambda path: True) == 3
    assert store.abandon("", lambda path: True) == 0
    assert sorted(store._clients.made) == ["uploads"]


@pytest.mark.parametrize("server", ["s3"], indirect=True)  # the proxy knows no chunked answers, which Ceph gives
def test_faults_are_repeated_and_refusals_told(server: Server) -> None:
    begin(server.options, NAMES[:2])
    for fault in ("500", "reset", "cut", "lost"):
        left = [fault] * 2
        with proxied(server.port, lambda line, left=left: left.pop() if left else "") as proxy:  # type: ignore[misc]
            store = RemoteStore("s3", "s3://bucket/", {**server.options, "endpoint_url": proxy.url}, FAST)
            begun = store.abandon("a/", lambda path: False)
            assert (begun, len(proxy.lines)) == (0, 3)
    with proxied(server.port, lambda line: "403") as proxy:
        uploads = Uploads("s3://bucket/", {**server.options, "endpoint_url": proxy.url}, FAST)
        with pytest.raises(StoreError, match=r"s3://bucket/: .*HTTP 403.*credentials"):
            uploads.abandon("a/", lambda path: True)
    with proxied(server.port, lambda line: "500") as proxy:
        uploads = Uploads("s3://bucket/", {**server.options, "endpoint_url": proxy.url}, FAST)
        with pytest.raises(Transient):
            uploads.abandon("a/", lambda path: True)
    with proxied(server.port, lambda line: "says") as proxy:
        uploads = Uploads("s3://bucket/", {**server.options, "endpoint_url": proxy.url}, FAST)
        proxy.says = ("200", b"<html>")
        with pytest.raises(StoreError, match="the list of uploads is no XML"):
            uploads.abandon("a/", lambda path: True)
        proxy.says = ("200", b"<R><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker></R>")
        with pytest.raises(StoreError, match="the list of uploads does not end"):
            uploads.abandon("a/", lambda path: True)
    assert Uploads("s3://bucket/", server.options, FAST).abandon("", lambda path: True) == 2


class Paged(http.server.BaseHTTPRequestHandler):
    """Lists uploads two at a time."""

    uploads: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        after = int(query.get("upload-id-marker", "-1")) + 1
        assert query.get("key-marker") == (self.uploads[after - 1] if after else None)
        items = "".join(
            f"<Upload><Key>{name}</Key><UploadId>{after + i}</UploadId></Upload>"
            for i, name in enumerate(self.uploads[after : after + 2])
        )
        more = after + 2 < len(self.uploads)
        marks = f"<NextKeyMarker>{self.uploads[after + 1]}</NextKeyMarker>" if more else ""
        marks += f"<NextUploadIdMarker>{after + 1}</NextUploadIdMarker>" if more else ""
        text = f'<L xmlns="urn:x">{items}{marks}<IsTruncated>{str(more).lower()}</IsTruncated></L>'.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def test_every_page_is_read() -> None:
    Paged.uploads = [f"a/{i:02d} é.tar" for i in range(7)]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Paged)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        options = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
        seen: list[str] = []
        Uploads("s3://bucket/", options, FAST).abandon("a/", lambda path: seen.append(path) is not None)
        assert seen == Paged.uploads
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_who_signs() -> None:
    assert signs({"key": "k", "secret": "s"})
    assert not signs({"anon": True})


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "id"), ("SECRET_ACCESS_KEY", "secret"), ("SESSION_TOKEN", "token")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    found = Uploads("s3://bucket/", {}, FAST)._credentials()
    assert (found.access_key, found.secret_key, found.token) == ("id", "secret", "token")
    found = Uploads("s3://bucket/", {"key": "mine", "secret": "own"}, FAST)._credentials()
    assert (found.access_key, found.secret_key, found.token) == ("mine", "own", None)
