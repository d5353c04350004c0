"""The openers under webdataset's gopen: whole data or an error, variables, time-outs, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from conftest import held, no_more, wait_until
from helpers import make_tar

from tests.faultproxy import proxied
from tests.servers import Servers
from wdstools import compat, gopen, remote
from wdstools.errors import NotFoundError, PipeError, StoreError, UnreachableError
from wdstools.store import open_store

# webdataset opens files and leaves them to the collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:Unclosed:ResourceWarning"
)

DATA = random.Random(5).randbytes(700_000)
SHARD = make_tar([(f"{i:03d}.bin", b"x" * i * 50) for i in range(60)])
OPENS = int(os.environ.get("WDS_GOPEN_OPENS", "240"))
module: Any = importlib.import_module("webdataset.gopen")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("GOPEN_BUFFER", "GOPEN_TIMEOUT", "GOPEN_VERBOSE", "GOPEN_REWRITE"):
        monkeypatch.delenv(name, raising=False)
    compat.register()
    yield
    compat.unregister()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.tar").write_bytes(DATA)
    return tmp_path / "a.tar"


def serve(servers: Servers, data: bytes = DATA, name: str = "g.tar") -> str:
    server = servers.get("http")
    (server.root / name).write_bytes(data)
    return f"{server.url}/{name}"


def write_and_fail(url: str) -> None:
    with wds.gopen(url, "wb") as stream:
        stream.write(DATA)
        raise RuntimeError("mine")


def keys(url: Any, **options: Any) -> list[str]:
    return [s["__key__"] for s in wds.WebDataset(url, shardshuffle=False, empty_check=False, **options)]


# reading


@pytest.mark.parametrize("buffer", [None, "1", "8192", "4000000"])
def test_every_scheme(buffer: str | None, servers: Servers, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if buffer:
        monkeypatch.setenv("GOPEN_BUFFER", buffer)
    for url in (str(path), f"file:{path}", f"pipe:cat {path}", serve(servers), f"{serve(servers)}?x=1"):
        with wds.gopen(url) as stream:
            assert stream.read(10) == DATA[:10]
            assert stream.read() == DATA[10:]
            assert stream.read(5) == b""


def test_under_webdataset(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(SHARD)
    want = [f"{i:03d}" for i in range(60)]
    for url in (f"pipe:cat {tmp_path}/s.tar", f"{tmp_path}/s.tar", serve(servers, SHARD, "s.tar")):
        assert keys(url) == want
        assert keys(url, cache_dir=str(tmp_path)) == want
        assert [s["__key__"] for s in wds.DataPipeline(wds.SimpleShardList([url]), wds.tarfile_to_samples())] == want


def test_s3(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers.get("s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(gopen, "_stores", {})
    with wds.TarWriter("s3://bucket/w.tar") as writer:
        for i in range(5):
            writer.write({"__key__": str(i), "txt": "x"})
    assert keys("s3://bucket/w.tar") == list("01234")
    with pytest.raises(RuntimeError, match="mine"):
        write_and_fail("s3://bucket/never.tar")
    dropped = wds.gopen("s3://bucket/dropped.tar", "wb")
    dropped.write(DATA)
    del dropped
    with wds.gopen("s3://bucket/empty", "wb"):
        pass
    gc.collect()
    store, _ = open_store("s3://bucket/x", server.options)
    assert store.list() == ["empty", "w.tar"]
    with pytest.raises(NotFoundError):
        wds.gopen("s3://bucket/none.tar")


FAILING = {
    "cat {}; echo oh no >&2; exit 3": "exit status 3: oh no",
    "(cat {}; exit 4) | cat": "exit status 4",
    "head -c 3000 {}; kill -9 $$": "signal 9",
    "cat {}.none": "No such file",
}


@pytest.mark.parametrize("command", FAILING)
def test_a_command_that_fails(command: str, path: Path) -> None:
    url = "pipe:" + command.format(path)
    with pytest.raises(PipeError, match=FAILING[command]):
        wds.gopen(url).read()
    path.write_bytes(SHARD[:5120])  # a loss that webdataset would not notice
    with pytest.raises(PipeError, match=FAILING[command]):
        keys(url)
    with pytest.raises(PipeError, match=FAILING[command]):
        read_to_the_end_of_the_tar(url)


def read_to_the_end_of_the_tar(url: str) -> None:
    """As tarfile does: what is behind it, and the exit status, is left to close()."""
    with wds.gopen(url) as stream:
        stream.read(2000)


def test_stopping_early_is_no_failure(path: Path) -> None:
    ignoring = f"pipe:trap '' PIPE; cat {path} {path} {path} {path}"
    for url in ("pipe:cat /dev/zero", f"pipe:cat {path} /dev/zero; exit 1", ignoring):
        stream = wds.gopen(url)
        assert len(stream.read(100)) == 100
        stream.close()
        stream.close()
        assert stream.closed
    assert wait_until(lambda: not children())


def test_what_is_not_there(servers: Servers, tmp_path: Path) -> None:
    for url in (f"{serve(servers)}.none", f"{tmp_path}/none", f"file:{tmp_path}/none"):
        with pytest.raises(NotFoundError, match="none"):
            wds.gopen(url)
    with pytest.raises(StoreError):
        wds.gopen(str(tmp_path))
    with pytest.raises(UnreachableError):
        wds.gopen("http://127.0.0.1:1/x")


def test_a_body_that_breaks_is_continued(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """webdataset's own curl ends there, and its tar reader takes the end for the end of the shard."""
    monkeypatch.setattr(remote, "FIRST", 10_000)
    monkeypatch.setattr(remote, "PART", 100_000)
    serve(servers)
    rng = random.Random(1)
    with proxied(servers.get("http").port, lambda line: rng.choice(["cut", "short", "503", "", ""])) as proxy:
        assert wds.gopen(f"{proxy.url}/g.tar").read() == DATA
        proxy.draw = lambda line: "etag" if len(proxy.lines) % 4 == 3 else ""
        with pytest.raises(StoreError, match="replaced"):
            wds.gopen(f"{proxy.url}/g.tar").read()


# variables


def test_the_pipe_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    for buffer, mode in (("50000", "rb"), (str(most * 8), "rb"), (str(most * 8), "wb")):
        monkeypatch.setenv("GOPEN_BUFFER", buffer)
        stream = wds.gopen("pipe:cat >/dev/null; cat /dev/zero", mode)
        raw: Any = stream.raw
        fd = raw._source.handle if mode == "rb" else raw.fd
        assert fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) == most
        stream.close() if mode == "rb" else stream.abort()


def test_the_buffer_is_what_is_read_at_once(path: Path, monkeypatch: pytest.MonkeyPatch, servers: Servers) -> None:
    for nbytes in (5000, 300_000):
        monkeypatch.setenv("GOPEN_BUFFER", str(nbytes))
        for url in (str(path), f"pipe:cat {path}; sleep 0.2", serve(servers)):
            with wds.gopen(url) as stream:
                stream.read(1)
                assert 1 <= len(stream.peek()) <= nbytes - 1
                if url == str(path):
                    assert len(stream.peek()) == nbytes - 1


def test_variables_that_are_no_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOPEN_BUFFER", "GOPEN_TIMEOUT"):
        for value in ("x", "-1", "inf", "nan"):
            monkeypatch.setenv(name, value)
            with pytest.raises(ValueError, match=name):
                wds.gopen(f"pipe:cat {path}")
            monkeypatch.delenv(name)
    assert wait_until(lambda: not children())


def test_idle_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = wds.gopen("pipe:sleep 0.5; echo slow")  # a command may be at work
    assert stream.read() == b"slow\n"
    monkeypatch.setenv("GOPEN_TIMEOUT", "0.2")
    with pytest.raises(StoreError, match=r"no byte came for 0\.2 seconds"):
        wds.gopen("pipe:echo fast; sleep 1; echo slow").read()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        began = time.monotonic()
        with pytest.raises(StoreError):
            wds.gopen(f"http://127.0.0.1:{deaf.getsockname()[1]}/x")
        assert time.monotonic() - began < 10


def test_verbose(path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GOPEN_VERBOSE", "1")
    wds.gopen(f"pipe:cat {path}").read()
    with pytest.raises(PipeError):
        wds.gopen("pipe:exit 5").read()
    with wds.gopen("pipe:cat > /dev/null", "wb") as stream:
        stream.write(b"x")
    _, err = capfd.readouterr()
    assert f"GOPEN pipe:cat {path}: 700000 bytes in " in err
    assert "failed: pipe:exit 5: the command failed with exit status 5" in err
    assert "GOPEN pipe:cat > /dev/null: 1 bytes" in err
    monkeypatch.delenv("GOPEN_VERBOSE")
    wds.gopen(f"pipe:cat {path}").read()
    assert capfd.readouterr().err == ""


def test_rewriting_and_security(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOPEN_REWRITE", f"s3://b/=pipe:cat {path.parent}/")
    assert wds.gopen("s3://b/a.tar").read() == DATA
    monkeypatch.delenv("GOPEN_REWRITE")
    monkeypatch.setattr(wds.utils, "enforce_security", True, raising=False)
    for url in (f"pipe:touch {path}.ran", str(path), f"file:{path}"):
        with pytest.raises(ValueError, match="unsafe_gopen"):
            wds.gopen(url)
    assert not Path(f"{path}.ran").exists()


# writing


def test_commands_that_are_written_to(tmp_path: Path) -> None:
    with wds.gopen(f"pipe:cat > {tmp_path}/w", "wb") as stream:
        for i in range(0, len(DATA), 7000):
            stream.write(DATA[i : i + 7000])
    assert (tmp_path / "w").read_bytes() == DATA
    with wds.ShardWriter(f"pipe:cat > {tmp_path}/s-%d.tar", maxcount=3, verbose=0) as writer:
        for i in range(7):
            writer.write({"__key__": str(i), "txt": "x"})
    assert [keys(f"{tmp_path}/s-{i}.tar") for i in range(3)] == [list("012"), list("345"), list("6")]
    with wds.gopen(f"{tmp_path}/plain", "wb") as stream:
        stream.write(DATA)
    assert (tmp_path / "plain").read_bytes() == DATA


def test_commands_that_fail_while_they_are_written_to(tmp_path: Path) -> None:
    for command, text in (
        ("cat >/dev/null; echo full >&2; exit 7", "exit status 7: full"),
        ("exit 0", "before it had read"),
    ):
        with pytest.raises(PipeError, match=text), wds.gopen(f"pipe:{command}", "wb") as stream:
            stream.writelines([DATA] * 50)
    with pytest.raises(PipeError, match="exit status 7"), wds.gopen("pipe:exit 7", "wb"):
        pass
    assert wait_until(lambda: not children())


def test_what_is_left_by_an_error_is_not_written(tmp_path: Path) -> None:
    """Nor what is not closed: the command is killed before it sees an end."""
    command = f"pipe:cat > {tmp_path}/part && mv {tmp_path}/part {tmp_path}/whole"
    with pytest.raises(RuntimeError, match="mine"):
        write_and_fail(command)
    stream = wds.gopen(command, "wb")
    stream.write(DATA)
    del stream
    gc.collect()
    assert not (tmp_path / "whole").exists()
    assert wait_until(lambda: not children())


def test_http_put(tmp_path: Path) -> None:
    with pytest.raises(PipeError, match="curl: "), wds.gopen("http://127.0.0.1:1/x", "wb") as stream:
        stream.write(b"x")


def test_modes() -> None:
    for opener in (gopen.open_stream, gopen.open_pipe):
        with pytest.raises(ValueError, match="unknown mode"):
            opener("pipe:cat", "r+")


# what is left behind


def children() -> list[str]:
    """Commands that run, or that nobody waited for; the servers of the tests are none."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            name = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].partition(")")[0]
            if not name.startswith(("nginx", "python", "pytest")):
                found.append(f"{pid} {name}")
    return found


def test_thousands_of_opens_leave_nothing(servers: Servers, path: Path, tmp_path: Path) -> None:
    """Read to the end, closed early, dropped, failed: no descriptors, processes, threads or memory stay. By hand, with
    WDS_GOPEN_OPENS=10000."""
    urls = [serve(servers, SHARD), str(path), f"{serve(servers, SHARD)}.none", f"pipe:cat {path}", "pipe:exit 3"]

    def some(count: int) -> None:
        for i in range(count):
            url = urls[i % 5]
            try:
                stream = wds.gopen(url)
                if i % 3 == 0:
                    stream.read()
                elif i % 3 == 1:
                    stream.read(1)
                    stream.close()
                del stream
            except StoreError:
                pass

    some(60)
    before, memory = kept(idle=4), rss()
    some(OPENS)
    wait_until(lambda: no_more(kept(), before) and not children(), 5)
    assert no_more(kept(), before), (before, kept())
    assert children() == []
    assert rss() - memory < 12_000_000


def kept(idle: int = 0) -> tuple[int, ...]:
    """As held(), and sockets on their own: so many more may be waiting for the next request later on."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    nsockets = sum(link.startswith("socket:") for link in links)
    return len(links) - nsockets, nsockets + idle, *held()[1:]


def rss() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_forked_child_leaves_the_commands_of_its_parent_alone(tmp_path: Path) -> None:
    code = f"""
import os, sys, webdataset as wds
from wdstools import compat
compat.register()
reader = wds.gopen("pipe:sleep 0.3; echo all; sleep 0.2")
writer = wds.gopen("pipe:cat > {tmp_path}/w", "wb")
pid = os.fork()
if pid == 0:
    del reader, writer
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert reader.read() == b"all\\n"
writer.write(b"x")
writer.close()
assert open("{tmp_path}/w").read() == "x"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_loader_with_workers(servers: Servers) -> None:
    torch = pytest.importorskip("torch")
    for i in range(4):
        serve(servers, make_tar([(f"{i}{k}.txt", b"x") for k in range(10)]), f"w-{i}.tar")
    data = wds.WebDataset(f"{servers.get('http').url}/w-{{0..3}}.tar", shardshuffle=False)
    loader = torch.utils.data.DataLoader(data, num_workers=2, batch_size=None)
    assert sorted(s["__key__"] for s in loader) == [f"{i}{k}" for i in range(4) for k in range(10)]
