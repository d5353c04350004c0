"""Samples of remote shards beside those of the same shards on disk: batches, changes under the index, processes."""

from __future__ import annotations

import functools
import gzip
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import wdstools
from tests.conftest import wait_until
from tests.faultproxy import proxied
from tests.servers import Server, Servers
from wdstools import Dataset, ShardWriter, fetching, finding, urls
from wdstools.errors import (
    AccessError,
    ChangedError,
    DestinationError,
    IndexFileError,
    KeyMissingError,
    NotFoundError,
    StaleIndexError,
    StoreError,
    UnreachableError,
    UrlError,
)
from wdstools.index import Index
from wdstools.store import Store, Stores, open_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
]

Sample = dict[str, Any]
N = 60


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = random.Random(1)
    with ShardWriter(str(tmp_path / "r-%03d.tar"), maxcount=13, lift=["cls"]) as sink:
        for i in range(N):
            data = draw.randbytes(draw.choice([0, 1, 511, 512, 3000, 70_000]))
            sink.write({"__key__": f"k{i:03d}", "bin": data, "cls": i, "json": {"i": i}})
    return tmp_path


class Place:
    """Where shards were put. `url`: with a slash at the end; `options` for open()."""

    def __init__(self, scheme: str, server: Server, name: str) -> None:
        self.scheme, self.server, self.name = scheme, server, name
        self.url = f"{server.url}/{name}/" if scheme == "http" else f"{scheme}://bucket/{name}/"
        self.options: dict[str, Any] = {"storage_options": server.options} if server.options else {}

    def put(self, path: Path) -> None:
        if self.scheme == "http":
            (self.server.root / self.name).mkdir(exist_ok=True)
            shutil.copy(path, self.server.root / self.name / path.name)
        else:
            store, at = open_store(self.url + path.name, self.server.options)
            store.put(at, path.read_bytes())

    def open(self, names: str = "r.wdsindex", **more: Any) -> Dataset:
        return wdstools.open(self.url + names, **self.options, **more)


def put(servers: Servers, scheme: str, folder: Path, index: bool = True) -> Place:
    place = Place(scheme, servers.get(scheme), folder.name)
    for path in folder.iterdir():
        if index or path.suffix == ".tar":
            place.put(path)
    return place


def local(folder: Path, place: Place) -> list[Sample]:
    """The same samples on disk, as the remote ones are to be."""
    samples = []
    for sample in wdstools.open(folder):
        sample["__url__"] = place.url + os.path.basename(sample.pop("__local_path__"))
        samples.append(sample)
    return samples


def plain(sample: Sample) -> Sample:
    return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}


def count(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many ranges of each object every later call of a remote store asks for."""
    from wdstools.remote import RemoteStore

    asked: list[list[int]] = []
    true = RemoteStore.read_many

    def read_many(self: Store, wanted: Any) -> Any:
        objects = [(path, list(ranges)) for path, ranges in wanted]
        asked.append([len(ranges) for _, ranges in objects])
        return true(self, objects)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteStore, "read_many", read_many)
    return asked


# the same samples


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "az"])
def test_as_on_disk(scheme: str, servers: Servers, folder: Path) -> None:
    place = put(servers, scheme, folder)
    want = local(folder, place)
    for got in (place.open(), place.open("r-{000..004}.tar"), place.open(views=True)):
        assert len(got) == N
        draw = random.Random(2)
        numbers = [draw.randrange(-N, N) for _ in range(100)]
        assert [plain(s) for s in got.fetch(numbers)] == [want[i] for i in numbers]
        assert [plain(s) for s in got.fetch(["k007", 3, "k007"])] == [want[7], want[3], want[7]]
        assert plain(got[5]) == plain(got["k005"]) == want[5]
        assert [plain(s) for s in got] == want
        assert [plain(s) for s in got[::-7]] == want[::-7]
        assert got.fetch([]) == list(got[:0]) == []
        assert [plain(s)["cls"] for s in got.where("cls % 20 = 3").__getitems__([2, 0])] == [b"43", b"3"]
        with pytest.raises(KeyMissingError, match="near: k0"):
            got["k0O2"]
    assert isinstance(place.open(views=True).fetch([4])[0]["bin"], memoryview)
    assert got.index.name == place.url + "r.wdsindex"
    only = place.open(fields=["cls"], decode={"cls": "cls"})
    assert only.fetch([9, 3]) == [{k: (i if k == "cls" else want[i][k]) for k in want[i] if k[:2] == "__" or k == "cls"}
                                  for i in (9, 3)]  # fmt: skip


def test_folders(servers: Servers, folder: Path) -> None:
    place = put(servers, "s3", folder)
    assert place.open("")[3] == local(folder, place)[3]
    with pytest.raises(NotFoundError, match=r"no index and no \.tar"):
        wdstools.open("s3://bucket/nothing-here/", **place.options)


def test_without_an_index(servers: Servers, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for scheme in ("http", "s3"):
        caplog.clear()
        place = put(servers, scheme, folder, index=False)
        got = place.open("r-{000..004}.tar")
        assert got.fetch(range(N)) == local(folder, place)
        (said,) = [r for r in caplog.records if r.name == "wdstools"]
        assert said.levelno == logging.WARNING
        assert "no index for 5 shards" in said.message
        assert "read as a whole" in said.message
        again = pickle.loads(pickle.dumps(got[::2]))
        assert list(again) == local(folder, place)[::2]
        (folder / "r.wdsindex").touch()


def test_some_of_the_shards(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    some = wdstools.open([place.url + "r-003.tar", place.url + "r-001.tar"])
    assert list(some) == local(folder, place)[39:52] + local(folder, place)[13:26]


def test_local_and_remote_shards_in_one_index(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    shards = [place.url + "r-003.tar", f"{folder}/r-001.tar", place.url + "r-000.tar"]
    got = wdstools.open(shards)
    want = local(folder, place)
    keys = [s["__key__"] for s in want[39:52] + want[13:26] + want[:13]]
    order = random.Random(5).sample(range(39), 39)
    assert [s["__key__"] for s in got.fetch(order)] == [keys[i] for i in order]
    assert [s["__key__"] for s in got] == keys
    assert got[20]["__local_path__"] == f"{folder}/r-001.tar"


def test_a_batch_is_one_call(servers: Servers, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got = put(servers, "http", folder).open()
    asked = count(monkeypatch)
    got.fetch(range(0, N, 2))
    assert asked == [[7, 6, 7, 6, 4]]
    asked.clear()
    assert len(list(got[:26])) == 26
    assert asked == [[13, 13]], "samples in order are read many at a time"


def test_shards_are_read_at_once(servers: Servers, folder: Path) -> None:
    """Five requests meet at a barrier: one after the other they would wait there for ever. The version of a shard comes
    with its bytes: nothing else is asked."""
    place = put(servers, "http", folder)
    meet = threading.Barrier(5, timeout=20)
    with proxied(place.server.port) as proxy:
        got = wdstools.open(f"{proxy.url}/{place.name}/r.wdsindex")
        proxy.lines.clear()
        proxy.draw = lambda line: ("", "", "", "", "", "")[meet.wait()]
        assert [s["cls"] for s in got.fetch([0, 13, 26, 39, 52])] == [b"0", b"13", b"26", b"39", b"52"]
        assert len(proxy.lines) == 5


def test_a_cache(servers: Servers, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = put(servers, "http", folder)
    cache = tmp_path_factory.mktemp("cache")
    got = place.open(cache=f"{cache}:100MB")
    assert got.fetch(range(N)) == local(folder, place)
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert held > sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert place.open(cache=f"{cache}:100MB")[::-1].fetch(range(N)) == local(folder, place)[::-1]
    with pytest.raises(UrlError, match="is no cache"):
        place.open(cache="much")


# one after the other, and the next ones meanwhile


def test_the_next_batch_is_read_while_one_is_consumed(
    servers: Servers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FIRST", 13)
    place = put(servers, "http", folder)
    with proxied(place.server.port) as proxy:
        got = wdstools.open(f"{proxy.url}/{place.name}/r.wdsindex")
        proxy.lines.clear()
        samples = iter(got)
        assert next(samples)["cls"] == b"0"
        assert wait_until(lambda: len(proxy.lines) == 3), "the batch of 13, and the next one of 26"
        for i in range(1, 13):
            assert next(samples)["cls"] == b"%d" % i
        assert len(proxy.lines) == 3, "and no more than the next one"
        assert next(samples)["cls"] == b"13"
        assert wait_until(lambda: len(proxy.lines) == 5)
        assert [s["cls"] for s in samples] == [b"%d" % i for i in range(14, N)]
        assert len(proxy.lines) == 5


def test_batches_are_bounded(folder: Path) -> None:
    batches = fetching.Ahead(lambda rows, stopped: [], lambda row: 1)._batches(range(5000))
    assert [len(batch) for batch in batches] == [64, 128, 256, 512, 1024, 1024, 1024, 968]
    batches = fetching.Ahead(lambda rows, stopped: [], lambda row: 11 << 20)._batches(range(7))
    assert list(batches) == [[0, 1, 2], [3, 4, 5], [6]]


def test_errors_come_in_the_place_of_their_sample(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    got, want = place.open(), local(folder, place)
    (place.server.root / place.name / "r-001.tar").unlink()
    change(place, folder, "r-002.tar", lambda data: data.clear())
    for order, good, error in (
        (range(N), 13, NotFoundError),
        ([0, 52, 40, 26, 13], 3, StaleIndexError),
        ([52, 40, 14, 26], 2, NotFoundError),
    ):
        samples = iter(got.select(order))
        for i in range(good):
            assert next(samples) == want[order[i]]
        with pytest.raises(error):
            next(samples)
        assert next(samples, None) is None


def test_a_row_outside_of_its_shard_is_an_error_in_its_place(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    index = place.open().index
    ends = index.table.column("end").to_pylist()
    ends[20] = 1 << 40
    at = index.table.column_names.index("end")
    table = index.table.set_column(at, "end", pa.array(ends, pa.uint64()))
    samples = iter(Dataset(Index(table, index.shards)))
    assert [next(samples)["cls"] for _ in range(20)] == [b"%d" % i for i in range(20)]
    with pytest.raises(IndexFileError, match="row 20 lies outside of its shard"):
        next(samples)


def test_closing_gives_up_what_is_under_way(servers: Servers, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "FIRST", 5)
    place = put(servers, "http", folder)
    with proxied(place.server.port) as proxy:
        got = wdstools.open(f"{proxy.url}/{place.name}/r.wdsindex")
        for _ in range(3):
            samples = iter(got)
            assert next(samples)["cls"] == b"0"
            samples.close()  # type: ignore[attr-defined]
            assert next(samples, None) is None
        proxy.lines.clear()
        proxy.latency = 0.05
        assert got.fetch([0, 59])[1]["cls"] == b"59", "and the threads are free"
        assert len(proxy.lines) <= 4


def test_an_iterator_that_a_child_inherits(servers: Servers, folder: Path) -> None:
    """The batch that is under way when a process forks is read by the child itself."""
    place = put(servers, "http", folder)
    got = place.open()
    samples = iter(got)
    first = next(samples)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if [first, *samples] == local(folder, place) else 1
        finally:
            os._exit(status)
    ended: list[tuple[int, int]] = []
    assert wait_until(lambda: bool(ended.append(os.waitpid(pid, os.WNOHANG)) or ended[-1][0]), 40), "it hangs"
    assert ended[-1][1] == 0
    assert [first, *samples] == local(folder, place)


# what is kept


def test_an_index_that_is_built_is_kept(servers: Servers, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = put(servers, "s3", folder, index=False)
    caplog.set_level(logging.INFO)
    place.open("r-{000..004}.tar")
    assert "save_index=True" in caplog.text
    assert "wds-index build" in caplog.text
    got = place.open("r-{000..004}.tar", save_index=True)
    assert got.index.name == place.url + "r.wdsindex"
    assert len(pickle.dumps(got)) < 2000
    caplog.clear()
    again = place.open("")
    assert again.index.name == got.index.name
    assert not caplog.records
    for dataset in (got, again, pickle.loads(pickle.dumps(got))):
        assert dataset.fetch(range(N)) == local(folder, place)
        assert all(dataset.index.shards.etag)
        assert all(dataset.index.shards.mtime)
    (folder / "elsewhere").mkdir()
    path = again.save_index(folder / "elsewhere" / "x.wdsindex")
    assert wdstools.open(path, **place.options).fetch([3]) == got.fetch([3])


def test_a_place_that_cannot_be_written_to(servers: Servers, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = put(servers, "http", folder, index=False)
    got = place.open("r-{000..004}.tar", save_index=True)
    assert got.fetch([3]) == local(folder, place)[3:4]
    assert "is not saved: " in caplog.text
    assert "http server cannot be written to" in caplog.text
    with pytest.raises(StoreError, match="cannot be written to"):
        got.save_index()


def test_an_index_of_other_shards_is_not_overwritten(servers: Servers, folder: Path) -> None:
    place = put(servers, "s3", folder)
    (folder / "r.wdsindex").unlink()
    some = place.open("r-{000..002}.tar", save_index=True)
    assert len(some) == 39
    index = wdstools.open(folder / "r-000.tar").index
    for path in (f"{folder}/o.wdsindex", place.url + "r.wdsindex"):
        index.shards.url = [place.url + "r-000.tar"]
        dataset = Dataset(index, stores=Stores(place.server.options))
        if is_local := path.startswith("/"):
            assert dataset.save_index(path) == path
            assert dataset.save_index(path) == path, "the same shards"
            index.shards.url = [place.url + "r-001.tar"]
        with pytest.raises(DestinationError, match="an index of other shards"):
            dataset.save_index(path)
        assert is_local or len(place.open()) == N


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "az"])
def test_an_index_knows_the_etags(scheme: str, servers: Servers, folder: Path) -> None:
    """Other bytes of the same size, with headers that fit: only the ETag tells that they are other ones."""
    place = put(servers, scheme, folder, index=False)
    built = place.open("r-{000..004}.tar")
    assert built[14]["cls"] == b"14"
    built.save_index(folder / "k.wdsindex")
    place.put(folder / "k.wdsindex")
    _, _, _, end = built.index.locate(14)
    change(place, folder, "r-001.tar", lambda data: data.__setitem__(end - 1, 1))
    fresh = place.open("k.wdsindex")
    for read in (lambda: fresh[14], lambda: fresh.fetch([0, 14]), lambda: list(fresh)):
        with pytest.raises(StaleIndexError, match=r"does not describe .*r-001\.tar any more: its ETag is"):
            read()
    assert fresh.fetch([0, 40])[1]["cls"] == b"40"


# what is not as it was


def change(place: Place, folder: Path, name: str, how: Callable[[bytearray], object]) -> None:
    data = bytearray((folder / name).read_bytes())
    how(data)
    (folder / name).write_bytes(data)
    place.put(folder / name)
    if place.scheme == "http":  # nginx makes its ETags of size and whole seconds
        os.utime(place.server.root / place.name / name, (1, 1))


@pytest.mark.parametrize(
    ("scheme", "how"),
    [*(("http", how) for how in ("longer", "shorter", "empty", "key", "etag")), ("s3", "shorter"), ("s3", "etag")],
)
def test_a_shard_that_is_not_the_indexed_one(scheme: str, how: str, servers: Servers, folder: Path) -> None:
    """Before it was read, or between two reads: an error with the names of both, never another sample."""
    place = put(servers, scheme, folder)
    opened, fresh = place.open(), place.open()
    assert opened[14]["cls"] == b"14"

    def edit(data: bytearray) -> None:
        if how == "longer":
            data += bytes(512)
        elif how == "shorter":
            del data[-1024:]
        elif how == "empty":
            data.clear()
        elif how == "key":  # two samples change places
            (_, _, a, b), (_, _, c, d) = opened.index.locate(13), opened.index.locate(14)
            data[a:d] = data[c:d] + data[a:b]
        else:
            data[-1] = 1  # beyond all samples: only the ETag tells

    change(place, folder, "r-001.tar", edit)
    for got in (opened,) if how == "etag" else (opened, fresh):
        for read in (lambda got=got: got[14], lambda got=got: got.fetch([0, 13, 14, 40]), lambda got=got: list(got)):
            with pytest.raises(StaleIndexError, match=r"r\.wdsindex: does not describe .*r-001\.tar any more"):
                read()
        assert got.fetch([0, 40])[1]["cls"] == b"40", "the other shards are right"
    if how == "etag":
        assert fresh[14]["cls"] == b"14"


def test_errors_tell_the_byte_of_the_shard(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    got = place.open()
    _, _, start, _ = got.index.locate(16)
    change(place, folder, "r-001.tar", lambda data: data.__setitem__(start + 150, 0))
    with pytest.raises(StaleIndexError, match=rf"r-001\.tar: .* at byte {start}[;:]") as there:
        got.fetch([3, 16])
    with pytest.raises(StaleIndexError) as here:
        wdstools.open(folder).fetch([3, 16])
    assert str(there.value).split(": ")[-1] == str(here.value).split(": ")[-1]


def test_a_shard_that_is_not_there(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    (place.server.root / place.name / "r-001.tar").unlink()
    got = place.open()
    with pytest.raises(NotFoundError, match=r"r-001\.tar"):
        got.fetch([0, 14, 40])
    assert got.fetch([0, 40])[0]["cls"] == b"0"


def test_an_index_that_is_none(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    for data in (b"", b"ARROW1\0\0nonsense", (folder / "r.wdsindex").read_bytes()[:-9]):
        (folder / "x.wdsindex").write_bytes(data)
        place.put(folder / "x.wdsindex")
        with pytest.raises(IndexFileError, match=r"not an index"):
            place.open("x.wdsindex")
    with pytest.raises(NotFoundError, match=r"none\.wdsindex"):
        place.open("none.wdsindex")
    (folder / "x.wdsindex").write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    place.put(folder / "x.wdsindex")
    with pytest.raises((IndexFileError, AccessError)):
        place.open("x.wdsindex")


def test_a_missing_shard_shows_before_the_others_are_read(
    servers: Servers, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = put(servers, "http", folder, index=False)
    monkeypatch.setattr(finding, "_index_shard", lambda *a, **k: pytest.fail("streamed"))
    with pytest.raises(NotFoundError, match=r"r-005\.tar"):
        place.open("r-{000..005}.tar")


def test_commands_in_an_index_are_not_run(servers: Servers, folder: Path, tmp_path: Path) -> None:
    """Whoever wrote a remote index chose the names in it."""
    place = put(servers, "http", folder)
    index = wdstools.open(folder).index
    index.shards.url[1] = f"pipe:touch {tmp_path}/run; cat {folder}/r-001.tar"
    index.save(folder / "p.wdsindex")
    place.put(folder / "p.wdsindex")
    with pytest.raises(UrlError):
        place.open("p.wdsindex")[14]
    assert not (tmp_path / "run").exists()


def test_credentials_stay_with_the_host_of_the_index(folder: Path) -> None:
    """Whoever wrote a remote index chose the hosts in it: what the user said for one is not told to another."""
    asked: list[tuple[str, str | None]] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.headers["Host"].partition(":")[0], self.headers["X-Secret"]))
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.server_address[1]
            index = wdstools.open(folder).index
            index.shards.url = [f"http://localhost:{port}/{os.path.basename(url)}" for url in index.shards.url]
            index.save(folder / "h.wdsindex")
            url, options = f"http://127.0.0.1:{port}/h.wdsindex", {"headers": {"X-Secret": "s3cret"}}
            dataset = wdstools.open(url, storage_options=options)
            for again in (dataset, pickle.loads(pickle.dumps(dataset))):
                with pytest.raises(StoreError, match="ignores Range"):
                    again[0]
        finally:
            server.shutdown()
            thread.join()
    assert set(asked) == {("127.0.0.1", "s3cret"), ("localhost", None)}


def test_what_cannot_be_opened(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    with pytest.raises(NotFoundError, match=r"none-0\.tar"):
        place.open("none-{0..1}.tar")
    with pytest.raises(StoreError, match="cannot be listed"):
        place.open("")
    with pytest.raises(UnreachableError):
        wdstools.open("http://127.0.0.1:9/x.wdsindex")
    for name, data in {"gz": gzip.compress((folder / "r-000.tar").read_bytes()), "page": b"<html>" * 200}.items():
        (folder / f"{name}-0.tar").write_bytes(data)
        place.put(folder / f"{name}-0.tar")
    with pytest.raises(StoreError, match=r"is compressed .*random access needs plain tars"):
        place.open("gz-0.tar")
    with pytest.raises(wdstools.WdsError, match=r"page-0\.tar"):
        place.open("page-0.tar")


# processes


def child(got: Dataset, into: Any) -> None:
    into.send([plain(s) for s in got.fetch(range(0, len(got), 3))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_another_process(method: str, servers: Servers, folder: Path) -> None:
    place = put(servers, "s3", folder)
    got, want = place.open(), local(folder, place)
    assert got.fetch(range(N)) == want, "its threads and connections are there when it forks"
    context: Any = multiprocessing.get_context(method)
    for dataset, wanted in ((got, want), (got[::-1], want[::-1])):
        out, into = context.Pipe(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = context.Process(target=child, args=(dataset, into))
            process.start()
        try:
            assert out.poll(40), "it hangs"
            assert out.recv() == wanted[::3]
        finally:
            process.kill()
            process.join()


@pytest.mark.parametrize(
    ("method", "scheme", "cached"),
    [("fork", "http", False), ("fork", "s3", False), ("fork", "http", True), ("fork", "s3", True)]
    + [("spawn", "http", False)],
)
def test_torchs_own_loader(method: str, scheme: str, cached: bool, servers: Servers, folder: Path) -> None:
    """Whole batches, in workers that were forked or spawned while this process has connections and threads of obstore;
    and iteration in a worker, whose parent is iterating."""
    from torch.utils.data import DataLoader

    place = put(servers, scheme, folder)
    got = place.open(cache=f"{folder}/cache:10MB" if cached else None)[5:]
    want = local(folder, place)[5:]
    assert got.fetch(range(20)) == want[:20]
    assert "obstore" in sys.modules
    samples = iter(got)
    assert next(samples) == want[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader: Any = DataLoader(
            got,  # type: ignore[arg-type]
            batch_size=8,
            num_workers=2,
            collate_fn=list,
            multiprocessing_context=method,
            timeout=40,
        )
        for _ in range(2):
            assert [sample for batch in loader for sample in batch] == want
    assert list(samples) == want[1:]


def test_pickled(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    got = place.open(fields=["cls"])
    got[0]
    data = pickle.dumps(got[5:])
    assert len(data) < 2000
    assert list(pickle.loads(data)) == list(got[5:])
    shutil.copy(folder / "r.wdsindex", folder / "other")
    with ShardWriter(str(folder / "r-%03d.tar"), overwrite=True) as sink:
        sink.write({"__key__": "other", "cls": 1})
    place.put(folder / "r.wdsindex")
    with pytest.raises(ChangedError, match=r"r\.wdsindex: was replaced"):
        pickle.loads(data)


def test_threads(servers: Servers, folder: Path) -> None:
    place = put(servers, "http", folder)
    got, want = place.open(), local(folder, place)
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(10):
            numbers = draw.sample(range(N), 20)
            wrong.extend(i for i, s in zip(numbers, got.fetch(numbers), strict=True) if s != want[i])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stores_are_not_asked_about_local_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wdstools.store.Stores.of", lambda *a: pytest.fail("asked"))
    assert len(wdstools.open(folder).fetch(range(N))) == N


def test_what_is_remote() -> None:
    assert all(map(fetching.is_remote, ["http://h/a", "S3://b/c", "gs://b/c", "az://b/c", "memory://a"]))
    assert not any(map(fetching.is_remote, ["a.tar", "/a", "file:///a", "pipe:cat a", "-", "a:b/c"]))
    assert urls.scheme("a:b/c") == "file"
    assert open_store("/a")[0].root == ""
