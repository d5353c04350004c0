"""The command `wds-cat`: every byte or a non-zero exit, in front of a server that fails in every way; verification."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import pty
import random
import socket
import struct
import subprocess
import sys
import tarfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Done
from helpers import make_tar

from tests.faultproxy import proxied
from tests.servers import Servers
from wdstools import build, remote, retrying
from wdstools.cli import cat

DATA = random.Random(7).randbytes(400_000)
NFAULTS = int(os.environ.get("WDS_CAT_FAULTS", "150"))
RECOVERABLE = ["reset", "cut", "short", "500", "503", "429", "408", "stall"]
LIES = ["403", "norange", "etag", "page", "shift"]

CODE = "import sys; sys.argv[0] = 'wds-cat'; from wdstools.cli.cat import main; main()"
WDS_CAT = [sys.executable, "-c", CODE]


def cat_of(*args: object, **options: Any) -> Done:
    done = subprocess.run([*WDS_CAT, *map(str, args)], capture_output=True, timeout=60, check=False, **options)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Any:
    """In this process, which is not ended."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["wds-cat", *map(str, args)])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cat.main()
        assert isinstance(stopped.value.code, int)
        return Done(stopped.value.code, *capfdbinary.readouterr())

    return run


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


def serve(servers: Servers, name: str = "cat.tar", data: bytes = DATA) -> str:
    server = servers.get("http")
    (server.root / name).write_bytes(data)
    return f"{server.url}/{name}"


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """out/t-{0..2}.tar with their index; the current folder is the one above."""
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "out" / f"t-{i}.tar" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(make_tar([(f"{i}{k}.{e}", bytes([i]) * 700 * k) for k in range(9) for e in ("a", "b")]))
    build.build([str(path) for path in paths]).save(tmp_path / "out" / "t.wdsindex")
    monkeypatch.chdir(tmp_path)
    return paths


# every kind of URL


def test_local(call: Any, tmp_path: Path) -> None:
    for name, data in {"a b;$(x).tar": DATA, "empty": b"", "b.tar.gz": gzip.compress(DATA)}.items():
        (tmp_path / name).write_bytes(data)
        assert call(tmp_path / name) == (0, data, b"")  # raw: never decompressed
    assert call(f"file://{tmp_path}/b.tar.gz", "-l", tmp_path / "a b;$(x).tar").out == gzip.compress(DATA) + DATA


def test_braces(call: Any, tmp_path: Path) -> None:
    for name in ("0", "1", "{0..1}"):
        (tmp_path / name).write_bytes(name.encode())
    assert call(f"{tmp_path}/{{0..1}}") == (0, b"01", b"")
    assert call("--literal", f"{tmp_path}/{{0..1}}") == (0, b"{0..1}", b"")


def test_to_every_kind_of_output(tmp_path: Path) -> None:
    """A pipe, a file, a file that is appended to, a socket."""
    (tmp_path / "a").write_bytes(DATA)
    for flags, want in ((os.O_WRONLY, DATA), (os.O_WRONLY | os.O_APPEND, DATA * 2)):
        fd = os.open(tmp_path / "out", flags | os.O_CREAT)
        try:
            subprocess.run([*WDS_CAT, str(tmp_path / "a")], stdout=fd, timeout=30, check=True)
        finally:
            os.close(fd)
        assert (tmp_path / "out").read_bytes() == want
    piped = subprocess.Popen([*WDS_CAT, str(tmp_path / "a")], stdout=subprocess.PIPE)
    assert piped.stdout is not None
    with piped.stdout:
        os.set_blocking(piped.stdout.fileno(), True)
        assert piped.stdout.read() == DATA
    assert piped.wait(10) == 0


def test_streams(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    assert cat_of("-", input=DATA) == (0, DATA, b"")
    with open(tmp_path / "a", "rb") as file:
        assert cat_of("-", stdin=file) == (0, DATA, b"")
    assert cat_of(f"pipe:cat '{tmp_path}/a'") == (0, DATA, b"")
    failed = cat_of("pipe:printf abc; echo oh no >&2; exit 3")
    assert (failed.code, failed.out) == (1, b"abc")
    assert failed.err == (
        b"wds-cat: pipe:printf abc; echo oh no >&2; exit 3: the command failed with exit status 3: oh no "
        b"(stopped at byte 3)\n"
    )


def test_http(servers: Servers, call: Any) -> None:
    url = serve(servers, data=DATA * 30)
    assert call(url) == (0, DATA * 30, b"")
    assert call(f"{url}?x=1") == (0, DATA * 30, b"")


def test_s3(servers: Servers, call: Any, tmp_path: Path) -> None:
    from wdstools.store import open_store

    server = servers.get("s3")
    store, path = open_store("s3://bucket/x.tar", server.options)
    store.put(path, DATA)
    options = [word for k, v in server.options.items() for word in ("--storage-option", f"{k}={v}")]
    assert call("s3://bucket/x.tar", *options) == (0, DATA, b"")
    assert call("s3://bucket/x.tar", *options, "--cache", f"{tmp_path}/cache:10MB") == (0, DATA, b"")
    assert any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
    assert call("s3://bucket/x.tar", *options, "--range", "7-9") == (0, DATA[7:9], b"")


# ranges


@pytest.mark.parametrize("span", [(0, 0), (0, 5), (99, 399_000), (5, 400_000), (7, None), (400_000, None)])
def test_ranges(span: tuple[int, int | None], servers: Servers, call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from wdstools import passing

    monkeypatch.setattr(passing, "PART", 30_000)
    url = serve(servers)
    (tmp_path / "a").write_bytes(DATA)
    text = f"{span[0]}-{'' if span[1] is None else span[1]}"
    for source in (url, tmp_path / "a", f"pipe:cat {tmp_path}/a"):
        assert call("--range", text, source) == (0, DATA[span[0] : span[1]], b""), source


def test_ranges_past_the_end(servers: Servers, call: Any, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    for source in (serve(servers), tmp_path / "a", f"pipe:cat {tmp_path}/a"):
        for text in ("400001-", "0-400001", "500000-500001"):
            done = call("--range", text, source)
            assert done.code == 1, (source, text)
            assert DATA.startswith(done.out)
            assert str(source).encode() in done.err


def test_wrong_usage(call: Any, tmp_path: Path) -> None:
    for args in (
        (), ("--range", "5-3", "x"), ("--range", "-5", "x"), ("--range", "0-1", "x", "y"), ("--timeout", "0", "x"),
        ("--index", "i", "x"), ("--verify", "--range", "0-1", "x"), ("--storage-option", "anon", "x"),
        ("--storage-option", "a={", "x"),
    ):  # fmt: skip
        done = call(*args)
        assert (done.code, done.out) == (2, b""), args
        assert b"Error: " in done.err
    assert call("--cache", "nowhere", "x").code == 1


# what goes wrong


def test_what_is_not_there(servers: Servers, call: Any, tmp_path: Path) -> None:
    url = serve(servers)
    (tmp_path / "a").write_bytes(b"first")
    for source in (f"{tmp_path}/none", f"{url}.none", "http://127.0.0.1:1/x", "nowhere://x/y", str(tmp_path)):
        done = call(tmp_path / "a", source)
        assert (done.code, done.out) == (1, b"first"), source
        assert done.err.startswith(b"wds-cat: ")
        assert done.err.endswith(b"(stopped at byte 0)\n")
        assert source.encode() in done.err
        assert done.err.count(b"\n") == 1


def test_a_closed_consumer_is_silent(servers: Servers, tmp_path: Path) -> None:
    url = serve(servers, data=DATA * 30)
    (tmp_path / "big").write_bytes(DATA * 30)
    for source in (url, str(tmp_path / "big"), "pipe:cat /dev/zero"):
        done = subprocess.Popen([*WDS_CAT, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.stdout is not None
        assert len(done.stdout.read(10)) == 10
        done.stdout.close()
        assert done.stderr is not None
        with done.stderr:
            assert done.stderr.read() == b"", source
        assert done.wait(20) == 0


def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*WDS_CAT, "-"], input=DATA, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr == b"wds-cat: -: No space left on device (stopped at byte 0)\n"


def test_a_stall_ends(servers: Servers) -> None:
    """Of a server in its answer, of one that never answers, of a command; and of the one who reads."""
    serve(servers)
    with (
        proxied(servers.get("http").port, lambda line: "stall") as proxy,
        socket.create_server(("127.0.0.1", 0)) as deaf,
    ):
        proxy.stall = 30
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}/x"
        for url in (
            f"{proxy.url}/cat.tar",
            f"{proxy.url}/cat.tar?x",
            silent,
            f"{silent}?x",
            "pipe:printf abc; sleep 2",
        ):
            began = time.monotonic()
            done = cat_of("--total", "0.6", url)
            assert time.monotonic() - began < 7
            assert done.code == 1
            assert url.encode() in done.err
            assert b"not done after 0.6 seconds (stopped" in done.err
            assert done.out == (b"abc" if url.startswith("pipe") else b"")
        done = cat_of("--timeout", "0.1", silent)
        assert done.code == 1
        assert silent.encode() in done.err
    done = cat_of("--timeout", "0.3", "pipe:printf abc; sleep 2")
    assert (done.code, done.out) == (1, b"abc")
    assert b"no byte came for 0.3 seconds (stopped at byte 3)" in done.err


def test_a_reader_that_sleeps_is_no_stall(servers: Servers) -> None:
    url = serve(servers, data=DATA * 30)
    slow = subprocess.Popen([*WDS_CAT, "--timeout", "0.3", url], stdout=subprocess.PIPE)
    assert slow.stdout is not None
    with slow.stdout:
        time.sleep(1)
        assert slow.stdout.read() == DATA * 30
    assert slow.wait(10) == 0


def test_a_file_that_changes(tmp_path: Path) -> None:
    """While the consumer sleeps, the file is cut, grows, is written anew."""
    path = tmp_path / "big"

    def append() -> None:
        with open(path, "ab") as file:
            file.write(b"more")

    for change in (lambda: os.truncate(path, 3_000_000), append):
        path.write_bytes(DATA * 20)
        done = subprocess.Popen([*WDS_CAT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.stdout is not None
        assert done.stderr is not None
        with done.stdout, done.stderr:
            have = done.stdout.read(100)
            change()
            have += done.stdout.read()
            assert (DATA * 20).startswith(have)
            assert b"while it was being read" in done.stderr.read()
        assert done.wait(10) == 1


@pytest.mark.parametrize("query", ["", "?own=client"])
def test_faults_give_the_same_bytes_or_a_failure(
    query: str, servers: Servers, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many hundreds of faults: never a wrong byte with exit status 0, and never one that is not of the object."""
    serve(servers)
    monkeypatch.setattr(remote, "FIRST", 4_000)
    monkeypatch.setattr(remote, "PART", 30_000)
    monkeypatch.setattr(retrying, "wait", lambda seconds: None)
    monkeypatch.setattr(remote, "pause", lambda seconds: None)
    rng, lock = random.Random(len(query)), threading.Lock()
    state = {"lies": False}

    def draw(line: str) -> str:
        with lock:
            if rng.random() > 0.4:
                return ""
            if state["lies"] and rng.random() < 0.15:
                return rng.choice(LIES)
            return "stall" if rng.random() < 0.02 else rng.choice(RECOVERABLE[:-1])

    outcomes: Counter[tuple[bool, int]] = Counter()
    with proxied(servers.get("http").port, draw) as proxy:
        proxy.stall = 1
        while proxy.counts.total() - proxy.counts[""] < NFAULTS or len(outcomes) < 3:
            state["lies"] = not state["lies"]
            url = f"{proxy.url}/cat.tar{query}"
            done = call("--timeout", "0.4", url)
            if done.code == 0:
                assert done.out == DATA
                assert done.err == b""
            else:
                assert done.code == 1
                assert DATA.startswith(done.out)
                assert url.encode() in done.err
                assert f"(stopped at byte {len(done.out)})\n".encode() in done.err
            outcomes[state["lies"], done.code] += 1
    assert outcomes[False, 0] > outcomes[False, 1], outcomes


def test_an_object_that_is_replaced_midway(servers: Servers, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(servers)
    monkeypatch.setattr(remote, "FIRST", 4_000)
    monkeypatch.setattr(remote, "PART", 30_000)
    with proxied(servers.get("http").port, lambda line: "") as proxy:
        proxy.draw = lambda line: "etag" if len(proxy.lines) == 5 else ""
        done = call(f"{proxy.url}/cat.tar")
    assert done.code == 1
    assert b"was replaced while it was being read" in done.err


def test_progress_only_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    source = f"pipe:for i in 1 2 3; do cat {tmp_path}/a; sleep 1.05; done"
    done = subprocess.Popen([*WDS_CAT, source], stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    said = b""
    while True:
        try:
            said += os.read(leader, 1000)
        except OSError:
            break
    os.close(leader)
    assert done.wait(10) == 0
    assert b"B/s" in said
    assert cat_of(tmp_path / "a").err == b""


# verification


def test_verified(shards: list[Path], call: Any, servers: Servers) -> None:
    whole = b"".join(path.read_bytes() for path in shards)
    assert call("--verify", "out/t-{0..2}.tar") == (0, whole, b"")
    piped = f"pipe:cat {shards[1]}"
    assert call("--verify", "--index", "out/t.wdsindex", piped) == (0, shards[1].read_bytes(), b"")
    assert b"does not have" in call("--verify", "--index", "out/t.wdsindex", f"{piped} | cat").err
    for path in [*shards, *shards[0].parent.glob("*.wdsindex")]:
        serve(servers, path.name, path.read_bytes())
    url = servers.get("http").url
    assert call("--verify", f"{url}/t-{{0..2}}.tar") == (0, whole, b"")
    assert call("--verify", "--index", "out/t.wdsindex", f"{url}/t-1.tar") == (0, shards[1].read_bytes(), b"")
    assert call("--verify", "--index", f"{url}/t.wdsindex", shards[1]) == (0, shards[1].read_bytes(), b"")


def changed(data: bytes) -> dict[str, tuple[bytes, bytes]]:
    """Shards that are not what the index says, with what is said of them."""
    files = [(f"0{k}.{e}", bytes([0]) * 700 * k) for k in range(9) for e in ("a", "b")]
    renamed = [("0X.a", files[0][1]), ("0X.b", files[1][1]), *files[2:]]
    moved = files[:-4] + files[-2:] + files[-4:-2]
    header = bytearray(data)
    header[5000 // 512 * 512 + 150] ^= 1
    return {
        "another key": (make_tar(renamed), b"sample 0: key is '0X', where the index has '00'"),
        "another order": (make_tar(moved), b"sample 7: key is"),
        "cut": (data[: len(data) // 1024 * 512], b"bytes, where the index has"),
        "no end": (data[:-10240] + b"\1" * 10240, b"byte"),
        "garbage": (bytes(1) + data[1:], b"byte 0"),
    }


@pytest.mark.parametrize("what", ["another key", "another order", "cut", "no end", "garbage"])
def test_what_is_wrong_is_found(what: str, shards: list[Path], call: Any, servers: Servers) -> None:
    data = shards[0].read_bytes()
    wrong, reason = changed(data)[what]
    shards[0].write_bytes(wrong)
    serve(servers, "t.wdsindex", (shards[0].parent / "t.wdsindex").read_bytes())
    for source in (str(shards[0]), serve(servers, "t-0.tar", wrong), f"pipe:cat {shards[0]} #/t-0.tar"):
        done = call("--verify", "--index", "out/t.wdsindex", source)
        assert done.code == 1, (what, source)
        assert wrong.startswith(done.out)
        if what == "cut" and source.startswith("pipe"):
            reason = b"truncated in a member"
        assert reason in done.err, done.err
        assert done.err.count(b"\n") == 1
        assert b"t-0.tar" in done.err
        if what.startswith("another"):
            assert done.out == wrong  # known at its end
        if what == "cut" and not source.startswith("pipe"):
            assert done.out == b""  # known before


def test_verify_without_an_index(shards: list[Path], call: Any, servers: Servers) -> None:
    url = serve(servers, "alone-0.tar", shards[0].read_bytes())
    for args in ([url], ["-"], ["--index", "none", shards[0]], ["--index", str(shards[0]), shards[0]]):
        done = call("--verify", *args)
        assert (done.code, done.out) == (1, b""), args
        assert b"index" in done.err
    (shards[0].parent / "t.wdsindex").unlink()
    assert b"wds-index build" in call("--verify", shards[0]).err


def test_a_compressed_shard_is_not_verified(shards: list[Path], call: Any) -> None:
    path = shards[0].parent / "t-0.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert call("--verify", path).code == 1


def test_start_is_light() -> None:
    code = "import sys; sys.argv = ['wds-cat', '/dev/null']; import os; os._exit = lambda code: print(*sys.modules); "
    done = subprocess.run([sys.executable, "-c", code + CODE], capture_output=True, text=True, timeout=30, check=True)
    loaded = set(done.stdout.split())
    assert "wdstools.passing" in loaded
    assert loaded & {"numpy", "pyarrow", "duckdb", "tqdm", "obstore", "fsspec", "webdataset", "torch"} == set()


def test_under_tar(shards: list[Path]) -> None:
    """As a user would type it."""
    done = subprocess.run(
        " ".join([sys.executable, "-c", f'"{CODE}"', "'out/t-{0..0}.tar' | tar t"]),
        shell=True, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(shards[0].read_bytes())) as tar:
        assert done.stdout.split() == tar.getnames()
