"""What users get wrong, from end to end: each through wdstools.open and wdstools.stream, over real servers, in seconds.

The error is of the class that fits, names the URL, and says what to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wdstools
from tests.faultproxy import Proxy, proxied
from tests.servers import Server, Servers, free_port
from wdstools import ShardWriter
from wdstools.errors import (
    AccessError,
    IndexFileError,
    KeyMissingError,
    NotFoundError,
    QueryError,
    ShardError,
    StoreError,
    UnreachableError,
)
from wdstools.store import open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
]

SCHEMES = ["http", "s3", "gs", "az"]
SECONDS = 15  # that anybody waits for an error, on a slow machine


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of the machine that runs the tests."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))


def shards(servers: Servers, scheme: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """Two shards and their index behind a server; returns (URL with a slash at the end, storage_options)."""
    server = servers.get(scheme)

    def make() -> None:
        with ShardWriter(str(folder / "r-%03d.tar"), maxcount=5) as sink:
            for i in range(10):
                sink.write({"__key__": f"k{i}", "cls": i})
        if scheme == "http":
            (server.root / "f").mkdir()
        for path in folder.glob("r*"):
            if scheme == "http":
                (server.root / "f" / path.name).write_bytes(path.read_bytes())
            else:
                store, name = open_store(f"{scheme}://bucket/f/{path.name}", server.options)
                store.put(name, path.read_bytes())

    servers.kept(f"shards of {scheme}", make)
    return (f"{server.url}/f/" if scheme == "http" else f"{scheme}://bucket/f/"), server.options


def ways(url: str, options: dict[str, Any]) -> list[tuple[str, Callable[[], object]]]:
    """(the name that is asked for, how): an index, shards without one, a stream."""
    tars = url + "r-{000..001}.tar"
    return [
        ("r.wdsindex", lambda: wdstools.open(url + "r.wdsindex", storage_options=options)),
        ("r-000.tar", lambda: wdstools.open(tars, storage_options=options)),
        ("r-000.tar", lambda: list(wdstools.stream(tars, storage_options=options))),
    ]


def fails(url: str, options: dict[str, Any], error: type[Exception], match: str, shown: str | None = None) -> None:
    """Every way gives the error, at once and with the URL, or with what is `shown` of it."""
    for name, ask in ways(url, options):
        began = time.monotonic()
        with pytest.raises(error, match=match) as caught:
            ask()
        assert time.monotonic() - began < SECONDS
        text = str(caught.value)
        assert (url + name if shown is None else shown) in text
        assert type(caught.value) is error, text


def behind(proxy: Proxy, server: Server, url: str) -> tuple[str, dict[str, Any]]:
    """The same through a proxy."""
    proxy.host = f"127.0.0.1:{server.port}"
    options = {k: v.replace(server.url, proxy.url) if isinstance(v, str) else v for k, v in server.options.items()}
    return url.replace(server.url, proxy.url), options


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_not_there(scheme: str, servers: Servers, tmp_path: Path) -> None:
    url, options = shards(servers, scheme, tmp_path)
    assert len(wdstools.open(url + "r.wdsindex", storage_options=options)) == 10
    fails(url.replace("/f/", "/no/"), options, NotFoundError, "HTTP 404")
    if scheme != "http":
        fails(url.replace("bucket", "no-bucket"), options, NotFoundError, "HTTP 404")
        began = time.monotonic()
        with pytest.raises(NotFoundError, match="no-bucket"):
            wdstools.open(f"{scheme}://no-bucket/f/", storage_options=options)
        assert time.monotonic() - began < SECONDS


EXPIRED = {
    "http": ("403", b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
    "s3": ("400", b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
    "gs": ("401", b"<Error><Code>AuthenticationRequired</Code><Details>The access token has expired</Details></Error>"),
    "az": ("403", b"<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature not valid in the "
           b"specified time frame</AuthenticationErrorDetail></Error>"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_may_not_be_read(scheme: str, servers: Servers, tmp_path: Path) -> None:
    url, _ = shards(servers, scheme, tmp_path)
    server = servers.get(scheme)
    with proxied(server.port) as proxy:
        there, options = behind(proxy, server, url)
        for status, said in (("403", "HTTP 403.*do not allow"), ("401", "HTTP 401.*credentials are lacking")):
            proxy.says = (status, b"no")
            proxy.draw = lambda line: "says"
            fails(there, options, AccessError, said)
        proxy.says = EXPIRED[scheme]
        fails(there, options, AccessError, "the credentials have expired: get new ones")
        dataset = wdstools.open(url + "r.wdsindex", storage_options=server.options)
        assert len(dataset) == 10
        proxy.draw = lambda line: ""
        expiring = wdstools.open(there + "r.wdsindex", storage_options=options)
        assert expiring[0]["cls"] == b"0"
        proxy.draw = lambda line: "says"
        for read in (lambda: expiring[7], lambda: expiring.fetch([3, 9]), lambda: list(expiring)):
            with pytest.raises(AccessError, match=r"r-00.\.tar.*have expired: get new ones"):
                read()


@pytest.mark.parametrize("fault", ["page", "page206"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_login_page_in_place_of_data(scheme: str, fault: str, servers: Servers, tmp_path: Path) -> None:
    url, _ = shards(servers, scheme, tmp_path)
    server = servers.get(scheme)
    with proxied(server.port) as proxy:
        there, options = behind(proxy, server, url)
        opened = wdstools.open(there + "r.wdsindex", storage_options=options)
        proxy.draw = lambda line: fault
        fails(there, options, AccessError, r"login")
        for read in (lambda: opened[7], lambda: opened.fetch([3, 9]), lambda: list(opened)):
            with pytest.raises((StoreError, IndexFileError), match=r"r-00.\.tar"):
                read()


def test_a_page_that_lies_on_the_disk_of_a_server(servers: Servers, tmp_path: Path) -> None:
    """With the content type of a tar: then its first block is no header."""
    shards(servers, "http", tmp_path)
    server = servers.get("http")
    (server.root / "p-0.tar").write_bytes(b"<!DOCTYPE html><html><body>" + b"Sign in " * 200)
    for ask in (lambda u: wdstools.open(u), lambda u: list(wdstools.stream(u))):
        with pytest.raises(ShardError, match=r"p-0\.tar: .*at byte 0"):
            ask(f"{server.url}/p-0.tar")


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_no_credentials(scheme: str, servers: Servers, tmp_path: Path) -> None:
    url, options = shards(servers, scheme, tmp_path)
    if scheme == "s3":
        none = {"endpoint_url": options["endpoint_url"]}
        fails(url, none, AccessError, r"no AWS credentials found: set .*'anon': True", "s3://bucket/")
    else:
        fails(url, {}, AccessError, "no account: set AZURE_STORAGE", "az://bucket")
        wrong = options["connection_string"].replace("AccountKey=Eby8", "AccountKey=AAAA")
        fails(url, {"connection_string": wrong}, AccessError, "credentials")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_server(scheme: str, servers: Servers, tmp_path: Path) -> None:
    url, _ = shards(servers, scheme, tmp_path)
    server = servers.get(scheme)
    nobody = f"http://127.0.0.1:{free_port()}"
    options = {k: v.replace(server.url, nobody) if isinstance(v, str) else v for k, v in server.options.items()}
    url = url.replace(server.url, nobody)
    fails(url, options, UnreachableError, "no server answers.*refused", f"{url}r")


def test_what_is_asked_of_a_dataset(servers: Servers, tmp_path: Path) -> None:
    url, options = shards(servers, "s3", tmp_path)
    dataset = wdstools.open(url + "r.wdsindex", storage_options=options)
    with pytest.raises(KeyMissingError, match="no sample has the key 'k1O'; near: k"):
        dataset["k1O"]
    with pytest.raises(KeyMissingError, match="near"):
        dataset.fetch(["k1", "K1"])
    for wrong in (10, -11, 1 << 70):
        with pytest.raises(IndexError, match=r"sample -?\d+ of 10"):
            dataset[wrong]
    with pytest.raises(IndexError, match="sample 10 of 10"):
        dataset.fetch([0, 10])
    with pytest.raises(QueryError, match=r"(?s)Binder Error.*clss.*columns: .*key.*nbytes"):
        dataset.where("clss < 3")
    with pytest.raises(QueryError, match=r"(?s)Parser Error.*columns: "):
        dataset.where("key = = 3")


def test_credentials_are_not_shown(servers: Servers, tmp_path: Path) -> None:
    """In no error and no name: a password in the URL, a key, a signature."""
    url, _ = shards(servers, "http", tmp_path)
    for name in (
        "no-0.tar",
        "no-{0..1}.tar?plain=1",
        "no.tar?X-Amz-Signature=s3cret&sig=s3cret",
        "no.tar?api_key=s3cret",
    ):
        secret = url.replace("//", "//user:s3cret@") + name
        for ask in (lambda u: wdstools.open(u), lambda u: list(wdstools.stream(u))):
            with pytest.raises(NotFoundError) as caught:
                ask(secret)
            assert "s3cret" not in str(caught.value)
    server = servers.get("s3")
    with pytest.raises(NotFoundError) as caught:
        wdstools.open("s3://bucket/no.wdsindex", storage_options={**server.options, "secret": "s3cret"})
    assert "s3cret" not in str(caught.value)
