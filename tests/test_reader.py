"""stream(): the samples that webdataset gives, in its order; a broken shard is an error, and nothing of it is wrong."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import logging
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from attacks import ATTACKS, Attack
from attacks.build import END, GOOD, SHARD, A, B, C, member
from conftest import wait_until
from helpers import items, make_tar, reference, take
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

import wdstools
from wdstools.errors import (
    DuplicateFieldError,
    HeaderError,
    InterleavedError,
    NotFoundError,
    ShardError,
    TrailingError,
    TruncatedError,
    WdsError,
)

Sample = dict[str, Any]


def theirs(urls: list[str], **options: Any) -> list[Sample]:
    """The samples as webdataset gives them: its stages, over files that are closed in the end (it leaves them open)."""
    with contextlib.ExitStack() as files:
        opened = [{"url": u, "stream": files.enter_context(open(u, "rb")), "local_path": u} for u in urls]
        return list(group_by_keys(tar_file_expander(opened, **options)))


def ordered(samples: list[Sample]) -> list[Any]:
    """Samples with their fields in order; only where __local_path__ stands among them differs."""
    return [
        (s["__key__"], s["__url__"], s.get("__local_path__"), [(k, v) for k, v in fields if not k.startswith("__")])
        for s, fields in zip(samples, items(samples), strict=True)
    ]


def write(folder: Path, *shards: bytes) -> list[str]:
    paths = [folder / f"s-{i:03d}.tar" for i in range(len(shards))]
    for path, data in zip(paths, shards, strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


# as webdataset

part = st.text(st.sampled_from("abAB0._-ü "), min_size=1, max_size=5)
folder = st.sampled_from(["", "d/", "d.e/", "./", "__m__/", "A/b/"])
field = st.sampled_from(["jpg", "JPG", "cls", "seg.png", "json", "", "x.Y"])
entry = st.tuples(st.builds(lambda d, k, f: f"{d}{k}.{f}", folder, part, field), st.binary(max_size=700))
archives = st.lists(st.lists(entry, max_size=8), min_size=1, max_size=3)


@given(archives, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), st.booleans())
@settings(max_examples=150)
def test_random_archives(tmp_path_factory: pytest.TempPathFactory, shards: Any, form: int, views: bool) -> None:
    paths = write(tmp_path_factory.mktemp("s"), *(make_tar(shard, form, mtime=1.5) for shard in shards))
    want: list[list[Sample] | None] = []
    for path in paths:
        try:
            want.append(theirs([path]))
        except ValueError:
            want.append(None)  # a name twice
    got, error = take(wdstools.stream(paths, views=views))
    whole: list[Sample] = []
    for samples in want:
        # a key that comes back is an error here, and two samples there
        if samples is None or len({s["__key__"] for s in samples}) < len(samples):
            assert isinstance(error, DuplicateFieldError | InterleavedError)
            assert ordered(got)[: len(whole)] == ordered(whole)
            return
        whole += samples
    assert error is None
    assert ordered(got) == ordered(whole)


def test_wide_archives(tmp_path: Path) -> None:
    """More than one block, names that need PAX and GNU headers, and payloads at the edges of blocks."""
    files = []
    for i in range(300):
        name = f"{'long/' * (i % 40)}{i:04d}"
        files += [(f"{name}.bin", bytes([i % 251]) * (i * i % 90_000)), (f"{name}.cls", b"%d" % i)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        paths = write(tmp_path, make_tar(files, form, mtime=0.5), make_tar([]), make_tar(files[:10]))
        assert list(wdstools.stream(paths)) == theirs(paths)


def test_what_may_name_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, *(make_tar([(f"{i}.x", b"1")]) for i in range(4)))
    want = ["0", "1", "2", "3"]

    def keys(shards: Any) -> list[str]:
        return [s["__key__"] for s in wdstools.stream(shards)]

    assert keys(f"{tmp_path}/s-{{000..003}}.tar") == want
    assert keys(f"{paths[0]}::{tmp_path}/s-00{{1,2,3}}.tar") == want
    assert keys(paths) == keys(tuple(paths)) == keys(iter(paths)) == want
    assert keys([Path(p) for p in paths]) == want
    assert keys([f"{tmp_path}/s-00{{0,1}}.tar", Path(paths[2]), io.BytesIO(make_tar([("3.x", b"")]))]) == want
    assert keys(Path(paths[1])) == keys(io.BytesIO(make_tar([("1.x", b"")]))) == ["1"]
    assert keys([paths[0], paths[0]]) == ["0", "0"], "a key may come back in another shard"
    assert keys([]) == []
    with open(paths[2], "rb") as file:
        assert keys(file) == ["2"]
    monkeypatch.setenv("WDS_WHERE", str(tmp_path))
    assert keys("${WHERE}/s-{000..003}.tar") == want


def test_metadata(tmp_path: Path) -> None:
    (path,) = write(tmp_path, SHARD)
    assert next(wdstools.stream(path)) == {
        "__key__": "a", "__url__": path, "__local_path__": path, "cls": b"0", "jpg": b"A" * 300,
    }  # fmt: skip
    sample = next(wdstools.stream(f"file:{path}"))
    assert (sample["__url__"], sample["__local_path__"]) == (f"file:{path}", path)
    assert "__local_path__" not in next(wdstools.stream(f"pipe:cat {path}"))
    assert next(wdstools.stream(io.BytesIO(SHARD)))["__url__"] == "<BytesIO>"


def test_fields(tmp_path: Path) -> None:
    (path,) = write(tmp_path, make_tar([("a.jpg", b"1"), ("a.CLS", b"2"), ("b.txt", b"3"), ("c.jpg", b"4")]))
    for fields, want in {
        (): [{}, {}, {}],
        ("cls",): [{"cls": b"2"}, {}, {}],
        ("jpg", "cls", "none"): [{"jpg": b"1", "cls": b"2"}, {}, {"jpg": b"4"}],
    }.items():
        got = list(wdstools.stream(path, fields))
        assert [{k: v for k, v in s.items() if not k.startswith("__")} for s in got] == want
        assert [s["__key__"] for s in got] == ["a", "b", "c"]
    assert "jpg" in next(wdstools.stream(path, iter(["jpg"])))


def test_views_outlive_the_stream(tmp_path: Path) -> None:
    files = [(f"{i}.bin", bytes([i]) * 100_000) for i in range(100)]
    (path,) = write(tmp_path, make_tar(files))
    samples = list(wdstools.stream(path, views=True))
    assert all(isinstance(s["bin"], memoryview) and s["bin"].readonly for s in samples)
    assert [bytes(s["bin"]) for s in samples] == [data for _, data in files]


def test_select_and_rename(tmp_path: Path) -> None:
    files = [("a.jpg", b"1"), ("a.cls", b"2"), ("__m__", b"x"), ("b.jpg", b"3"), ("b.json", b"4")]
    paths = write(tmp_path, make_tar(files), make_tar(files))

    def rename(name: str) -> str:
        return "x/" + name.replace("json", "js")

    def select(name: str) -> bool:
        return name.endswith(("jpg", "js"))

    for options in ({"rename": rename}, {"select": select}, {"rename": rename, "select": select}):
        want = theirs(paths, **{f"{name}_files": call for name, call in options.items()})
        assert list(wdstools.stream(paths, **options)) == want  # type: ignore[arg-type]


# what is broken

attacked = [pytest.param(a, id=name) for name, a in ATTACKS.items() if a.error and name != "not_a_tar_gzip"]
NEXT = make_tar([("next.cls", b"9")])


def true(attack: Attack, url: str) -> list[Sample]:
    return [
        {**s, "__key__": s["__key__"].decode("utf-8", "surrogateescape"), "__url__": url, "__local_path__": url}
        for s in attack.samples
    ]


@pytest.mark.parametrize("attack", attacked)
def test_attacks(attack: Attack, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, bad, last = write(tmp_path, NEXT, attack.data, NEXT)
    ends = [{"__key__": "next", "__url__": url, "__local_path__": url, "cls": b"9"} for url in (first, last)]

    def run(handler: Any) -> tuple[list[Sample], Exception | None]:
        return take(wdstools.stream([first, bad, last], handler=handler))

    got, error = run("raise")
    broken = got[1:]
    assert got[0] == ends[0]
    assert broken == true(attack, bad)[: len(broken)], "whole samples, none of them wrong"
    assert type(error) is attack.error
    assert isinstance(error, ShardError)
    assert error.url == bad
    assert attack.text in str(error)
    if attack.offset is not None:
        assert error.offset == attack.offset

    told: list[Exception] = []
    for handler in ("skip", "warn", lambda e: told.append(e) or True):
        assert run(handler) == ([ends[0], *broken, ends[1]], None)
    assert [str(e) for e in told] == [str(error)]
    assert [r.getMessage() for r in caplog.records] == [f"skipping the rest of a shard: {error}"]
    assert run(lambda _: False) == ([ends[0], *broken], None)
    assert run(webdataset.ignore_and_stop) == run(lambda _: False)
    assert run(webdataset.reraise_exception)[1] is not None


@pytest.mark.parametrize("way", ["file", "object", "pipe"])
def test_cut_at_every_byte(way: str, tmp_path: Path) -> None:
    """Each cut is an error. What comes before it is whole, and of the last sample that came it was known: a member of
    another one had begun, or the end marker."""
    data = A + B + C + END
    wholes = {len(A): 0, len(A + B): 1, len(A + B + C): 2}  # a sample is known to be whole when the next header is read
    path = tmp_path / "a.tar"
    for n in range(0, len(data), 1 if way == "file" else 61 if way == "object" else 499):
        path.write_bytes(data[:n])
        source = {"file": path, "object": io.BytesIO(data[:n]), "pipe": f"pipe:cat {path}"}[way]
        got, error = take(wdstools.stream(source))
        assert type(error) is TruncatedError, n
        assert error.offset == n or way == "file"
        keys = [s["__key__"] for s in got]
        known = sum(n >= end + 512 for end in wholes)
        assert keys == ["a", "b", "c"][: len(keys)], n
        assert len(keys) <= known, (n, "a sample whose end nobody has seen")
        for sample, want in zip(got, GOOD, strict=False):
            assert {k: v for k, v in sample.items() if not k.startswith("__")} == {
                k: v for k, v in want.items() if k != "__key__"
            }
        if way != "file" and n == 0:
            assert "empty" in str(error)


def test_a_cut_shard_does_not_merge_with_the_next(tmp_path: Path) -> None:
    """In webdataset, the rest of a sample in the next shard joins the half of the one before."""
    one = member(b"a.jpg", b"1") + member(b"a.cls", b"2")
    paths = write(tmp_path, one[:1024], member(b"a.cls", b"3") + END)
    got, error = take(wdstools.stream(paths, handler="skip"))
    assert error is None
    assert [{k: v for k, v in s.items() if not k.startswith("__")} for s in got] == [{"cls": b"3"}]


SILENT = {
    "cut between members": (make_tar([(f"{k}.{e}", b"1") for k in "ab" for e in "xy"])[:3072], TruncatedError),
    "cut in a header": (SHARD[: len(A) + 100], TruncatedError),
    "concatenated": (SHARD + SHARD, TrailingError),
    "key comes back": (make_tar([("a.x", b"1"), ("b.x", b"2"), ("a.y", b"3")]), InterleavedError),
}  # fmt: skip


@pytest.mark.parametrize("what", SILENT)
def test_what_webdataset_loses_in_silence(what: str, tmp_path: Path) -> None:
    data, kind = SILENT[what]
    assert reference(data) is not None  # no complaint there
    with pytest.raises(kind):
        list(wdstools.stream(write(tmp_path, data)))


def test_handlers_for_what_cannot_be_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (good,) = write(tmp_path, SHARD)
    urls = [f"{tmp_path}/none.tar", "pipe:exit 3", "s3://b/a.tar", str(tmp_path), good]
    with pytest.raises(NotFoundError):
        list(wdstools.stream(urls))
    assert [s["__key__"] for s in wdstools.stream(urls, handler="skip")] == ["a", "b", "c"]
    assert not caplog.records
    assert len(list(wdstools.stream(urls, handler="warn"))) == 3
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 4
    kinds: list[type[Exception]] = []
    list(wdstools.stream(urls, handler=lambda e: bool(kinds.append(type(e))) or True))
    assert all(issubclass(kind, WdsError) for kind in kinds)
    assert list(wdstools.stream(urls, handler=lambda _: False)) == []


def test_a_handler_that_is_none() -> None:
    for handler in ("wran", None, 3):
        with pytest.raises(ValueError, match="handler"):
            next(wdstools.stream(io.BytesIO(SHARD), handler=handler))  # type: ignore[arg-type]


def test_a_handler_may_raise_something_else(tmp_path: Path) -> None:
    def handler(error: Exception) -> bool:
        raise LookupError("mine") from error

    with pytest.raises(LookupError, match="mine"):
        list(wdstools.stream(f"{tmp_path}/none.tar", handler=handler))


def test_what_the_consumer_raises_is_not_handled(tmp_path: Path) -> None:
    paths = write(tmp_path, SHARD, SHARD)
    samples = wdstools.stream(paths, handler="skip")
    next(samples)
    with pytest.raises(KeyError):
        samples.throw(KeyError("mine"))  # type: ignore[attr-defined]
    assert next(samples, None) is None


def test_compressed_and_cut(tmp_path: Path) -> None:
    for compress in (gzip.compress, bz2.compress):
        (path,) = write(tmp_path, compress(SHARD[:-700]))
        got, error = take(wdstools.stream(path))
        assert isinstance(error, TruncatedError)
        assert len(got) <= 3


def test_garbage_is_not_a_tar(tmp_path: Path) -> None:
    (path,) = write(tmp_path, os.urandom(5000))
    with pytest.raises(HeaderError, match="s-000"):
        list(wdstools.stream(path))


# what it holds


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("scheme", ["", "pipe:cat "])
def test_dropped_midway(scheme: str, views: bool, tmp_path: Path) -> None:
    files = [(f"{i}.bin", bytes(50_000)) for i in range(400)]
    paths = write(tmp_path, make_tar(files), make_tar(files))
    for take_some in (0, 1, 399, 400, 401):
        samples = wdstools.stream([scheme + p for p in paths], views=views)
        kept = [next(samples) for _ in range(take_some)]
        del samples
        assert all(bytes(s["bin"]) == bytes(50_000) for s in kept)


@pytest.mark.usefixtures("no_leaks")
def test_exhausted_and_broken(tmp_path: Path) -> None:
    good, bad = write(tmp_path, SHARD, SHARD[:-1])
    for _ in range(20):
        list(wdstools.stream([good, f"pipe:cat {good}"]))
        take(wdstools.stream([bad]))
        list(wdstools.stream([bad, f"{tmp_path}/none", f"pipe:cat {bad}", good], handler="skip"))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of a large shard, only a few blocks are in memory at a time."""
    path = tmp_path / "big.tar"
    with path.open("wb") as file:
        for i in range(300):
            file.write(member(b"%d.bin" % i, bytes(1 << 20)))
        file.write(END)
    code = (
        "import resource, sys, wdstools\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(len(s['bin']) for s in wdstools.stream(sys.argv[1]))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    total, grown = map(int, out.split())
    assert total == 300 << 20
    assert grown < 60_000, "KiB"


def test_ctrl_c_at_a_silent_pipe(tmp_path: Path) -> None:
    """It ends at once, and takes the command with it."""
    marker = "97.1234567"
    code = f"import wdstools\nprint('on', flush=True)\nlist(wdstools.stream('pipe:sleep {marker}'))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    assert wait_until(lambda: sleeping(marker))
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - begin < 3
    assert "KeyboardInterrupt" in said
    assert wait_until(lambda: not sleeping(marker))


def sleeping(marker: str) -> bool:
    return any(marker in line and "sleep" in line for line in command_lines())


def command_lines() -> Iterator[str]:
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if "import wdstools" not in line:
            yield line
