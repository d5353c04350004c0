"""open("http://host:8080/train"): the index and the batches of wds-serve, and what happens where they fail."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import pickle
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wdstools
from tests import serveddata
from tests.serveddata import N, payloads, sample
from tests.serving import Live, serving
from wdstools import served
from wdstools.errors import NotFoundError, StaleIndexError, StoreError
from wdstools.served import ServedIndex


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serveddata.make(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def live(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("log")
    with serving(folder, root, "--access-log", folder / "access") as server:
        yield server


def asked(live: Live) -> list[str]:
    """The targets of all requests so far: a health check has the log written."""
    path = Path(re.sub(r"stderr-\d+$", "access", str(live._log)))
    return re.findall(r'"((?:GET|POST|HEAD) [^ "]+)"', path.read_text())


def wait_for_log(live: Live) -> list[str]:
    time.sleep(0.7)  # it is flushed twice a second
    return asked(live)


def test_the_same_samples_as_of_the_folder(live: Live, root: Path) -> None:
    here, there = wdstools.open(str(root / "train.wdsindex")), wdstools.open(f"{live.url}/train")
    assert isinstance(there.index, ServedIndex)
    assert len(there) == N
    assert there.columns() == here.columns()
    rng = random.Random(3)
    rows = [rng.randrange(-N, N) for _ in range(200)]
    found = there.fetch(rows)
    assert [payloads(one) for one in found] == [payloads(one) for one in here.fetch(rows)]
    assert found[0]["__url__"].startswith(f"{live.url}/shards/train-")
    assert [payloads(one) for one in there] == [payloads(sample(i)) for i in range(N)]
    assert payloads(there["k0005"]) == payloads(there[5]) == payloads(sample(5))
    assert payloads(there.where("cls = 3").fetch([1, 2, "k0003"])[0]) == payloads(sample(13))


def test_a_batch_is_one_request(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train")
    before = len(wait_for_log(live))
    dataset.fetch(range(0, N, 3))
    dataset.fetch([5])
    lines = wait_for_log(live)[before:]
    assert [line.split("?")[0] for line in lines] == ["POST /-/batch", "GET /shards/train-000000.tar"]


def test_fields_views_and_decode(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train", fields=["cls", "json"], decode="auto")
    found = dataset.fetch([9, 4])
    assert [one["cls"] for one in found] == [9, 4]
    assert found[0]["json"]["width"] == 49
    assert set(found[0]) == {"__key__", "__url__", "cls", "json"}
    views = wdstools.open(f"{live.url}/train", views=True).fetch([9, 4])
    assert bytes(views[1]["jpg"]) == sample(4)["jpg"]


def test_odd_keys_and_a_set_without_an_index(live: Live, root: Path) -> None:
    dataset = wdstools.open(f"{live.url}/odd")
    here = wdstools.open(str(root / "odd-000000.tar"))
    assert list(dataset.keys()) == list(here.keys())
    assert [payloads(one) for one in dataset.fetch(range(len(here)))] == [payloads(one) for one in here]


def test_samples_of_one_key(tmp_path: Path, root: Path) -> None:
    """Rows tell them apart."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("a-0.tar", "a-1.tar"):
        shutil.copy(root / "train-000000.tar", mine / name)
    with wdstools.ShardWriter(str(mine / "b-%d.tar"), maxcount=1) as writer:
        for i in range(3):
            writer.write({"__key__": "same", "cls": str(i).encode()})
    with serving(tmp_path, mine) as live:
        dataset = wdstools.open(f"{live.url}/a")
        assert [payloads(one) for one in dataset.fetch([0, 80, 0, 81, 1])] == [
            payloads(sample(i)) for i in (0, 0, 0, 1, 1)
        ]
        assert [one["cls"] for one in wdstools.open(f"{live.url}/b").fetch([2, 0, 1, 0])] == [b"2", b"0", b"1", b"0"]


def use(dataset: Any, queue: Any) -> None:
    queue.put([payloads(one) for one in dataset.fetch([1, 200])])


def test_pickled_and_forked(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train")
    dataset.fetch([1, 2])
    assert payloads(pickle.loads(pickle.dumps(dataset)).fetch([1, 200])[1]) == payloads(sample(200))
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=use, args=(dataset, queue))
        process.start()
        assert queue.get(timeout=60) == [payloads(sample(1)), payloads(sample(200))]
        process.join()


def test_a_token_in_headers(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--token", "s3cret") as live:
        options = {"headers": {"Authorization": "Bearer s3cret"}}
        dataset = wdstools.open(f"{live.url}/train", storage_options=options)
        assert payloads(dataset.fetch([7, 8])[1]) == payloads(sample(8))
        with pytest.raises(StoreError):
            wdstools.open(f"{live.url}/train")


def test_a_cache_keeps_blocks(live: Live, tmp_path: Path) -> None:
    dataset = wdstools.open(f"{live.url}/train", cache=f"{tmp_path}/cache:10MB")
    assert payloads(dataset.fetch([7, 8])[1]) == payloads(sample(8))


def test_threads(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train")
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            rows = [rng.randrange(N) for _ in range(30)]
            for row, one in zip(rows, dataset.fetch(rows), strict=True):
                if payloads(one) != payloads(sample(row)):
                    wrong.append(row)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_set_that_is_replaced(root: Path, tmp_path: Path) -> None:
    """Never another sample: an error."""
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy2(root / "train-000000.tar", mine / "a-000000.tar")
    with serving(tmp_path, mine) as live:
        dataset = wdstools.open(f"{live.url}/a")
        dataset.fetch([1, 2])
        shutil.copy2(root / "train-000001.tar", mine / "x.tmp")
        os.replace(mine / "x.tmp", mine / "a-000000.tar")
        time.sleep(0.05)
        with pytest.raises((StaleIndexError, StoreError)):
            dataset.fetch([1, 2])
        with pytest.raises((StaleIndexError, StoreError)):
            dataset.fetch([1])


def test_what_is_no_set(live: Live) -> None:
    for name in ("nothing", "train-000000", "a/b/c"):
        with pytest.raises(NotFoundError):
            wdstools.open(f"{live.url}/{name}")


def test_shards_are_opened_as_before(live: Live) -> None:
    dataset = wdstools.open(f"{live.url}/train-{{000000..000003}}.tar")
    assert not isinstance(dataset.index, ServedIndex)
    assert payloads(dataset[299]) == payloads(sample(299))


class Broken(http.server.BaseHTTPRequestHandler):
    """In front of a server: passes everything on, but spoils batches. `mode`: how."""

    mode = ""
    target = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(None)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes | None) -> None:
        import http.client

        headers = {k: v for k, v in self.headers.items() if k.lower() != "content-length"}
        connection = http.client.HTTPConnection(self.target, timeout=20)
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data, status = response.read(), response.status
        connection.close()
        close = False
        if body is not None:
            if self.mode == "500":
                data, status = b"{}", 500
            elif self.mode == "cut":
                data, close = data[: len(data) // 2], True
            elif self.mode == "other":
                data = data[512 * 20 :] + data[: 512 * 20]
            elif self.mode == "html":
                data, status = b"<html>login</html>", 200
        self.send_response(status)
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        if close:
            length = str(2 * len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.close_connection = close

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize("mode", ["500", "cut", "html"])
def test_ranges_bring_what_a_batch_does_not(live: Live, mode: str, caplog: pytest.LogCaptureFixture) -> None:
    handler = type("Handler", (Broken,), {"mode": mode, "target": live.url.removeprefix("http://")})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            dataset = wdstools.open(f"http://127.0.0.1:{server.server_address[1]}/train")
            assert isinstance(dataset.index, ServedIndex)
            rows = [5, 290, 5, 7, 100]
            assert [payloads(one) for one in dataset.fetch(rows)] == [payloads(sample(i)) for i in rows]
            assert "no batches" in caplog.text
        finally:
            server.shutdown()
            thread.join()


def test_a_batch_of_other_bytes_is_an_error(live: Live) -> None:
    handler = type("Handler", (Broken,), {"mode": "other", "target": live.url.removeprefix("http://")})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            dataset = wdstools.open(f"http://127.0.0.1:{server.server_address[1]}/train")
            with pytest.raises(StaleIndexError):
                dataset.fetch([5, 290, 5, 7, 100])
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"sets": 5}', '{"sets": [5]}', '{"sets": [{"name": "x"}]}', "<html>"]
)
def test_a_server_that_is_none_of_ours(tmp_path: Path, text: str) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/-/sets" else 404)
            self.send_header("Content-Length", str(len(text) if self.path == "/-/sets" else 0))
            self.end_headers()
            if self.path == "/-/sets" and self.command == "GET":
                self.wfile.write(text.encode())

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(NotFoundError):
                wdstools.open(f"http://127.0.0.1:{server.server_address[1]}/train")
        finally:
            server.shutdown()
            thread.join()


def test_what_is_asked_about() -> None:
    """Nobody is asked about names that can be no sets."""
    from wdstools.store import Stores

    class NoStores(Stores):
        def of(self, url: str) -> Any:
            raise AssertionError(url)

    remote = ["", "/train-{0..1}.tar", "/a.tar", "/x.wdsindex", "/folder/", "/a?b", "/a.tar.gz"]
    for name in ["s3://bucket/train", "folder", "-", "pipe:curl http://h/a", *(f"http://h{path}" for path in remote)]:
        assert served.find(name, NoStores()) is None
    assert served.find(["http://h/train"], NoStores()) is None
