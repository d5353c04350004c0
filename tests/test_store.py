"""One suite for every store: what storebase.Store promises, over real servers."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Servers
from wdstools import remote, storebase
from wdstools.cache import CachedStore
from wdstools.errors import ChangedError, NotFoundError, PastEndError, StoreError, UrlError
from wdstools.store import LocalStore, MemoryStore, Stat, Store, open_store

# of aiohttp and others, when a large body is sent and when their sessions are dropped
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning"),
]

BIG = random.Random(0).randbytes(3_000_000)
MIDDLE = random.Random(1).randbytes(300_000)
ODD = "a b/é+%20&=,(1)~'.tar"


@dataclass
class Place:
    """A store under test. `url`: of a folder in it; `path`: the path of a name in that folder."""

    make: Callable[[], Store]
    path: Callable[[str], str]
    write: Callable[[str, bytes], None]
    url: str | None = None
    options: dict[str, Any] | None = None
    remove: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        self.store = self.make()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


numbers = itertools.count()


def local(servers: Servers, tmp_path: Path) -> Place:
    store = LocalStore()
    return Place(
        LocalStore, lambda name: f"{tmp_path}/{name}", lambda n, d: store.put(f"{tmp_path}/{n}", d), f"{tmp_path}/"
    )


def memory(servers: Servers, tmp_path: Path) -> Place:
    store = MemoryStore()
    return Place(lambda: store, lambda name: f"f/{name}", lambda n, d: MemoryStore.put(store, f"f/{n}", d))


def http(servers: Servers, tmp_path: Path, query: str = "") -> Place:
    server, folder = servers.get("http"), f"f{next(numbers)}"
    ticks = itertools.count(1_600_000_000, 7)

    def write(name: str, data: bytes) -> None:
        target = server.root / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name("partial")
        partial.write_bytes(data)
        tick = next(ticks)
        os.utime(partial, (tick, tick))  # its ETags are of whole seconds
        partial.replace(target)

    def path(name: str) -> str:
        return "/" + urllib.parse.quote(f"{folder}/{name}") + query

    url = f"{server.url}/{folder}/"
    return Place(lambda: open_store(url)[0], path, write, url, {})


def http_plain(servers: Servers, tmp_path: Path) -> Place:
    """By our own client, which takes URLs with a query."""
    return http(servers, tmp_path, "?signature=a%2Fb")


def cloud(servers: Servers, scheme: str, name: str = "", **more: Any) -> Place:
    """`name`: of the server, where it is not that of the scheme."""
    server, folder = servers.get(name or scheme), f"f{next(numbers)}"
    url, options = f"{scheme}://bucket/{folder}/", {**server.options, **more}
    writer = servers.kept(server.url, lambda: open_store(url, server.options)[0])
    return Place(
        lambda: open_store(url, options)[0],
        lambda name: f"{folder}/{name}",
        lambda name, data: writer.put(f"{folder}/{name}", data),
        url,
        options,
    )


def s3(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "s3")


def gs(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "gs")


def az(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "az")


def s3_fsspec(servers: Servers, tmp_path: Path) -> Place:
    """Options that obstore does not know go to s3fs, for reading, too."""
    return cloud(servers, "s3", default_cache_type="none")


def gs_fsspec(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "gs", default_location="EU")


def az_fsspec(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "az", default_cache_type="none")


def fsspec_memory(servers: Servers, tmp_path: Path) -> Place:
    pytest.importorskip("fsspec")
    url, folder = "memory://host/", f"f{next(numbers)}"
    store = open_store(url)[0]
    return Place(
        lambda: open_store(url)[0],
        lambda n: f"{folder}/{n}",
        lambda n, d: store.put(f"{folder}/{n}", d),
        f"{url}{folder}/",
    )


def ceph(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "s3", "ceph")


def ceph_fsspec(servers: Servers, tmp_path: Path) -> Place:
    return cloud(servers, "s3", "ceph", default_cache_type="none")


def s3_cached(servers: Servers, tmp_path: Path) -> Place:
    place = cloud(servers, "s3")
    make = place.make
    place.make = lambda: CachedStore(make(), f"{tmp_path}/cache:100MB")
    place.store = place.make()
    return place


PLACES: list[Any] = [
    s3_cached,
    local,
    memory,
    http,
    http_plain,
    s3,
    gs,
    az,
    s3_fsspec,
    gs_fsspec,
    az_fsspec,
    fsspec_memory,
]
PLACES += [pytest.param(place, marks=pytest.mark.ceph) for place in (ceph, ceph_fsspec)]
READ_ONLY = {"http", "http_plain"}


@pytest.fixture(params=PLACES, ids=lambda place: place.__name__)
def place(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Place:
    made: Place = request.param(servers, tmp_path)
    return made


@pytest.fixture
def writable(request: pytest.FixtureRequest, place: Place) -> Place:
    return place


def test_size(place: Place) -> None:
    place.write("a.tar", MIDDLE)
    stat = place.store.size(place.path("a.tar"))
    assert stat.nbytes == len(MIDDLE)
    assert stat.etag or stat.mtime_ns
    if stat.mtime_ns and stat.mtime_ns > 1_700_000_000 * 10**9:
        assert abs(stat.mtime_ns - time.time_ns()) < 3600 * 10**9
    assert place.store.size(place.path("a.tar")) == stat


def test_read(place: Place) -> None:
    place.write("a.tar", MIDDLE)
    path, n = place.path("a.tar"), len(MIDDLE)
    for start, end in [(0, n), (0, 1), (n - 1, n), (1000, 2000), (5, 5), (n, n), (0, 0)]:
        data = place.store.read(path, start, end)
        assert type(data) is bytes
        assert data == MIDDLE[start:end]


@pytest.mark.parametrize("known", [False, True])
def test_past_the_end(place: Place, known: bool) -> None:
    place.write("a.tar", MIDDLE)
    path, n = place.path("a.tar"), len(MIDDLE)
    if known:
        place.store.size(path)
    for start, end in [(0, n + 1), (n - 1, n + 10), (n, n + 1), (n + 100, n + 200)]:
        with pytest.raises(PastEndError, match=rf"{n}|past the end"):
            place.store.read(path, start, end)
    assert place.store.read(path, 0, 10) == MIDDLE[:10]


@pytest.mark.parametrize("wrong", [(-1, 5), (7, 3), (-5, -1)])
def test_no_range(place: Place, wrong: tuple[int, int]) -> None:
    place.write("a.tar", b"0123456789")
    with pytest.raises(ValueError, match="range"):
        place.store.read_ranges(place.path("a.tar"), [(0, 1), wrong])


@pytest.mark.parametrize("seed", range(2))
def test_read_ranges(place: Place, seed: int) -> None:
    """Against slices of the bytes: overlapping, touching, empty, equal, in any order."""
    place.write("a.tar", MIDDLE)
    rng, n = random.Random(seed), len(MIDDLE)
    ranges = [(n // 2, n // 2), (0, n)] if seed == 0 else []
    while len(ranges) < 25:
        start = rng.randrange(n)
        ranges.append((start, min(n, start + rng.choice([0, 1, 100, 20_000]))))
        ranges += [ranges[0]] * (rng.random() < 0.1) + [(start, start + 1)] * (rng.random() < 0.2)
    found = place.store.read_ranges(place.path("a.tar"), ranges)
    assert [bytes(data) for data in found] == [MIDDLE[start:end] for start, end in ranges]
    assert place.store.read_ranges(place.path("a.tar"), iter([])) == []


def test_ranges_far_apart_and_long(place: Place) -> None:
    place.write("b.tar", BIG)
    ranges = [(2_500_000, 2_600_000), (0, 100), (1_000_000, 1_000_001), (0, len(BIG))]
    found = place.store.read_ranges(place.path("b.tar"), ranges)
    assert [bytes(data) for data in found] == [BIG[start:end] for start, end in ranges]


@pytest.mark.parametrize("part", [100_000, 8 << 20])
def test_open(place: Place, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PART", part)
    place.write("b.tar", BIG)
    digest, buffer = hashlib.sha256(), bytearray(777_777)
    with place.store.open(place.path("b.tar")) as file:
        assert file.read(10) == BIG[:10]
        digest.update(BIG[:10])
        while n := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(memoryview(buffer)[:n])
        assert file.read(5) == b""
    assert digest.digest() == hashlib.sha256(BIG).digest()
    with place.store.open(place.path("b.tar")) as file:  # closed in the middle
        assert file.read(300_000) == BIG[:300_000]


@pytest.mark.parametrize("nbytes", [0, 1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1])
def test_open_at_the_edges(place: Place, nbytes: int) -> None:
    place.write("a.tar", BIG[:nbytes])
    assert place.store.size(place.path("a.tar")).nbytes == nbytes
    with place.store.open(place.path("a.tar")) as file:
        assert file.read() == BIG[:nbytes]


def test_read_many(place: Place) -> None:
    """Each object gets what read_ranges would give it: bytes, or its own error."""
    contents = {"a.tar": MIDDLE, "b.tar": MIDDLE[::-1], "empty": b""}
    for name, data in contents.items():
        place.write(name, data)
    rng = random.Random(9)
    wanted: list[tuple[str, list[tuple[int, int]]]] = [("none.tar", [(0, 9)]), ("empty", []), ("a.tar", [(5, 5)])]
    for name in ("a.tar", "b.tar", "a.tar"):
        starts = [rng.randrange(290_000) for _ in range(6)]
        wanted.append((name, [(start, start + rng.choice([0, 1, 5000])) for start in starts]))
    wanted.insert(4, ("b.tar", [(0, 10), (299_999, 300_001)]))
    store = place.make()
    for _ in range(2):  # the second time all versions are known
        found = list(store.read_many((place.path(name), ranges) for name, ranges in wanted))
        assert isinstance(found.pop(0), NotFoundError)
        assert isinstance(found.pop(3), PastEndError)
        good = [item for i, item in enumerate(wanted) if i not in (0, 4)]
        for (name, ranges), got in zip(good, found, strict=True):
            assert not isinstance(got, StoreError)
            assert [bytes(data) for data in got] == [contents.get(name, b"")[start:end] for start, end in ranges]
    assert list(store.read_many([])) == []
    sizes = list(store.sizes(place.path(name) for name in ("a.tar", "none.tar", "empty")))
    assert [size.nbytes for size in sizes if isinstance(size, Stat)] == [300_000, 0]
    assert isinstance(sizes[1], NotFoundError)
    known = store.pinned(place.path("a.tar"))
    assert known is not None
    assert known.nbytes == 300_000
    assert store.pinned(place.path("never.tar")) is None
    store.forget(place.path("a.tar"))
    assert store.pinned(place.path("a.tar")) is None
    with pytest.raises(ValueError, match="range"):
        list(store.read_many([(place.path("a.tar"), [(3, 1)])]))


def test_nothing_there(place: Place) -> None:
    path = place.path("nowhere/no.tar")
    for call in (place.store.size, place.store.open, lambda path: place.store.read(path, 0, 10)):
        began = time.monotonic()
        with pytest.raises(NotFoundError, match=r"no\.tar") as raised:
            call(path)
        assert isinstance(raised.value, FileNotFoundError)
        assert time.monotonic() - began < 5


def test_odd_names(place: Place) -> None:
    place.write(ODD, b"0123456789")
    path = place.path(ODD)
    assert place.store.size(path).nbytes == 10
    assert place.store.read(path, 2, 5) == b"234"
    with place.store.open(path) as file:
        assert file.read() == b"0123456789"


def test_another_object_is_an_error(place: Place) -> None:
    place.write("a.tar", MIDDLE)
    path, other = place.path("a.tar"), MIDDLE[::-1]
    assert place.store.read(path, 0, 10) == MIDDLE[:10]
    if "memory:" in place.store.url(path):
        time.sleep(0.01)
    place.write("a.tar", other)
    if isinstance(place.store, CachedStore):  # what it has is whole, and still of the first
        assert place.store.read(path, 0, 20) == MIDDLE[:20]
        return
    if isinstance(place.store, MemoryStore):
        place.store._pins[path] = Stat(len(MIDDLE), "0")
    with pytest.raises(ChangedError, match=r"replaced.*open it anew"):
        place.store.read(path, 0, 10)
    with pytest.raises(ChangedError):
        place.store.read_ranges(path, [(200_000, 200_010), (0, 10)])
    with pytest.raises(ChangedError):
        place.store.open(path).read()
    with pytest.raises(ChangedError):
        place.store.size(path)
    place.store.forget(path)
    assert place.store.read(path, 0, 10) == other[:10]


def test_a_shorter_object_is_an_error(place: Place) -> None:
    if isinstance(place.store, MemoryStore | CachedStore):
        return
    place.write("a.tar", MIDDLE)
    assert place.store.read(place.path("a.tar"), 0, 10) == MIDDLE[:10]
    place.write("a.tar", MIDDLE[:1000])
    with pytest.raises(ChangedError):
        place.store.read(place.path("a.tar"), 200_000, 200_100)


def test_put_and_list(place: Place, request: pytest.FixtureRequest) -> None:
    if place.store.root.startswith("http"):
        with pytest.raises(StoreError, match="http server cannot be written to"):
            place.store.put("/x", b"")
        with pytest.raises(StoreError, match="http server cannot be listed"):
            place.store.list("/")
        return
    names = ["train-0.tar", "train-1.tar", "sub/train-2.tar", "val.tar", ODD]
    for name in names:
        place.store.put(place.path(name), name.encode())
    for name in names:
        assert place.store.read(place.path(name), 0, len(name.encode())) == name.encode()
    top = [name for name in names if "/" not in name]
    assert place.store.list(place.path("")) == sorted(map(place.path, top))
    assert place.store.list(place.path(""), recursive=True) == sorted(map(place.path, names))
    assert place.store.list(place.path("train-")) == [place.path("train-0.tar"), place.path("train-1.tar")]
    assert place.store.list(place.path("sub/")) == [place.path("sub/train-2.tar")]
    assert place.store.list(place.path("sub/"), recursive=True) == [place.path("sub/train-2.tar")]
    for nothing in ("none/", "zzz", "none/none/x"):
        assert place.store.list(place.path(nothing)) == []
        assert place.store.list(place.path(nothing), recursive=True) == []
    place.store.put(place.path("val.tar"), memoryview(b"new"))
    assert place.store.size(place.path("val.tar")).nbytes == 3
    assert place.store.read(place.path("val.tar"), 0, 3) == b"new"


def test_pickle(place: Place) -> None:
    place.write("a.tar", MIDDLE)
    path = place.path("a.tar")
    assert place.store.read(path, 0, 10) == MIDDLE[:10]
    text = pickle.dumps(place.store)
    assert isinstance(place.store, MemoryStore) or len(text) < 2000
    again = pickle.loads(text)
    assert again.read(path, 5, 50) == MIDDLE[5:50]


def test_threads(place: Place) -> None:
    place.write("a.tar", MIDDLE)
    wrong: list[object] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(5):
                ranges = [(start, start + 999) for start in (rng.randrange(250_000) for _ in range(5))]
                found = place.store.read_ranges(place.path("a.tar"), ranges)
                if [bytes(data) for data in found] != [MIDDLE[s:e] for s, e in ranges]:
                    wrong.append(ranges)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORK = """
import json, os, pickle, signal, sys, warnings
warnings.simplefilter("ignore")
from wdstools.store import open_store
url, options, path = json.loads(sys.argv[1])
store, _ = open_store(url, options)
expected = store.read(path, 0, 300_000)
parent = store.read_ranges(path, [(200_000, 200_100), (0, 100)])
stat = store.size(path)
def child(depth):
    pid = os.fork()
    if not pid:
        signal.alarm(40)  # a child that hangs dies of it
        status = 1
        try:
            assert store.size(path).nbytes == stat.nbytes
            assert store.read(path, 100, 2000) == expected[100:2000]
            found = store.read_ranges(path, [(200_000, 200_100), (0, 100)])
            assert [bytes(b) for b in found] == [bytes(b) for b in parent]
            with store.open(path) as file:
                assert file.read() == expected
            fresh, _ = open_store(url, options)
            assert fresh.read(path, 7, 9) == expected[7:9]
            status = child(depth - 1) if depth else 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(pid, 0)[1]
status = child(1) or child(0)
assert store.read(path, 1, 5) == expected[1:5]
sys.exit(1 if status else 0)
"""


def test_a_forked_child_reads(place: Place) -> None:
    """obstore would hang in it for ever; fsspec's connections are the parent's."""
    if place.url is None or place.url.startswith("memory:"):
        return
    place.write("a.tar", MIDDLE)
    arguments = json.dumps([place.url, place.options, place.path("a.tar")])
    result = subprocess.run([sys.executable, "-c", FORK, arguments], capture_output=True, text=True, timeout=100)
    assert (result.returncode, result.stderr) == (0, "")


LOADER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from wdstools.store import open_store
url, options, path = json.loads(sys.argv[1])
store, _ = open_store(url, options)
expected = store.read(path, 0, 100_000)
class Data(torch.utils.data.Dataset):
    def __len__(self): return 100
    def __getitem__(self, i): return bytes(store.read(path, 1000 * i, 1000 * i + 1000))
loader = torch.utils.data.DataLoader(Data(), batch_size=10, num_workers=2, multiprocessing_context="fork",
                                     collate_fn=b"".join, timeout=40)
assert b"".join(loader) == expected and b"".join(loader) == expected
"""


@pytest.mark.may_skip("torch is a gigabyte; the fork itself is tested without it")
def test_a_loader_that_forks(servers: Servers, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    place = s3(servers, tmp_path)
    place.write("a.tar", MIDDLE)
    arguments = json.dumps([place.url, place.options, place.path("a.tar")])
    result = subprocess.run([sys.executable, "-c", LOADER, arguments], capture_output=True, text=True, timeout=110)
    assert (result.returncode, result.stderr[-2000:]) == (0, "")


@pytest.mark.parametrize(
    ("url", "root", "path"),
    [
        ("a/b.tar", "", "a/b.tar"),
        ("file:///a%20b.tar", "", "/a b.tar"),
        ("http://h:1/a/b.tar?x=1#f", "http://h:1", "/a/b.tar?x=1"),
        ("https://u:p@h", "https://u:p@h", "/"),
        ("s3://bucket/a#b?.tar", "s3://bucket/", "a#b?.tar"),
        ("gs://bucket", "gs://bucket/", ""),
        ("az://c@acc.blob.core.windows.net/x", "az://c@acc.blob.core.windows.net/", "x"),
        ("hf://datasets/o/n/x.tar", "hf://datasets/", "o/n/x.tar"),
    ],
)
def test_where_a_url_points(url: str, root: str, path: str) -> None:
    store, found = open_store(url)
    assert (store.root, found) == (root, path)


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat x",
        "-",
        "s3:///x",
        "file://elsewhere/x",
        "gs://",
        "http://",
        "http://h:port/a",
        "http://[::1/a",
        "http://h/a\nb",
    ],
)
def test_no_store(url: str) -> None:
    with pytest.raises(UrlError):
        open_store(url)


def test_unknown_schemes() -> None:
    store, path = open_store("nosuchscheme://host/x")
    with pytest.raises(UrlError, match="nosuchscheme"):
        store.read(path, 0, 1)


def test_put_leaves_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore()
    store.put(f"{tmp_path}/a", b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space"):
        store.put(f"{tmp_path}/a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_local_errors(tmp_path: Path) -> None:
    store = LocalStore()
    with pytest.raises(StoreError, match=r"folder|directory"):
        store.size(str(tmp_path))
    with pytest.raises(NotFoundError):
        store.size("")
    with pytest.raises(UrlError):
        store.read("a\0b", 0, 1)


def test_nothing_heavy_is_loaded() -> None:
    code = "import wdstools.store, sys; print(*{m.split('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"obstore", "fsspec", "numpy", "pyarrow", "asyncio", "ssl"} & set(out.split())


def test_versions_of_many_objects_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store remembers does not grow with the shards that it has read."""
    monkeypatch.setattr(storebase, "PINS", 64)
    store = MemoryStore({f"{i}": b"x" for i in range(1000)})
    for i in range(1000):
        store.size(f"{i}")
        assert store.pinned(f"{i}") is not None
    assert len(store._pins) <= 64
