"""Shards made of shards: subsets, streams, renamed and dropped fields."""

from __future__ import annotations

import functools
import gzip
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from convert_helpers import class_tree, everything, go, listed, members, samples, shards
from helpers import make_tar

import wdstools
from wdstools.convert.shards import is_shards
from wdstools.errors import DestinationError, SourceError, StaleIndexError
from wdstools.index import Index


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with four shards of old samples, old/a-000000.tar and on, and their index."""
    class_tree(tmp_path / "in", classes=4, each=5)
    go(tmp_path / "in", tmp_path / "old/a-%06d.tar", maxcount=6)
    for path in shards(tmp_path / "old"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))
    return tmp_path / "old"


def test_the_same_samples_in_other_shards(old: Path, tmp_path: Path) -> None:
    for number, source in enumerate([old / "a-{000000..000003}.tar", old / "a.wdsindex", old]):
        out = tmp_path / f"out{number}"
        go(source, out / "b-%03d.tar", maxcount=7)
        assert samples(out) == samples(old)
        assert [len(members(p)) // 2 for p in shards(out)] == [7, 7, 6]
        assert list(samples(out)) == sorted(samples(old))  # by key, unless shuffled
        assert len(wdstools.open(str(out / "b.wdsindex"))) == 20


@pytest.mark.parametrize("number", range(4))
def test_one_shard_of_an_indexed_set(old: Path, tmp_path: Path, number: int) -> None:
    # rows of a subset are not its positions: samples came from other rows once
    one = f"a-{number:06d}.tar"
    go(old / one, tmp_path / "out")
    assert samples(tmp_path / "out") == samples(old, one)


def test_shards_without_an_index(old: Path, tmp_path: Path) -> None:
    (old / "a.wdsindex").unlink()
    go(old, tmp_path / "out")
    assert samples(tmp_path / "out") == samples(old)


def test_shuffle_is_only_of_the_keys(old: Path, tmp_path: Path) -> None:
    go(old, tmp_path / "one/x-%d.tar", shuffle=True, seed=3)
    go(tmp_path / "one", tmp_path / "two/x-%d.tar", shuffle=True, seed=3)
    assert list(samples(tmp_path / "one")) != sorted(samples(old))
    assert [p.read_bytes() for p in shards(tmp_path / "one")] == [p.read_bytes() for p in shards(tmp_path / "two")]


def expected(old: Path, change: dict[str, str | None]) -> dict[str, dict[str, bytes]]:
    return {
        key: {new: data for name, data in fields.items() if (new := change.get(name, name)) is not None}
        for key, fields in samples(old).items()
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"rename": (("jpeg", "jpg"),)}, {"jpeg": "jpg"}),
        ({"rename": (("jpeg", "JPG"),)}, {"jpeg": "jpg"}),  # readers give it so
        ({"rename": (("jpeg", "cls"), ("cls", "jpeg"))}, {"jpeg": "cls", "cls": "jpeg"}),
        ({"drop": frozenset({"cls"})}, {"cls": None}),
        ({"keep": frozenset({"cls"})}, {"jpeg": None}),
        ({"keep": frozenset({"cls"}), "rename": (("cls", "label.txt"),)}, {"jpeg": None, "cls": "label.txt"}),
    ],
)
def test_fields(old: Path, tmp_path: Path, options: Any, change: dict[str, str | None], streamed: bool) -> None:
    source = f"pipe:cat {old}/a-*.tar | gzip" if streamed else str(old)
    if streamed:
        source = f"pipe:cat {old}/a-000000.tar"
    go(source, tmp_path / "out", **options)
    wanted = expected(old, change)
    assert samples(tmp_path / "out") == ({k: wanted[k] for k in samples(old, "a-000000")} if streamed else wanted)


@pytest.mark.parametrize("source", ["{old}", "pipe:cat {old}/a-000000.tar"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": (("jpeg", "cls"),)}, "called 'cls'"),
        ({"drop": frozenset({"cls", "jpeg"})}, "no field is left"),
        ({"rename": (("jpeg", "_jpg"),)}, "begins with _"),
        ({"rename": (("jpeg", "a/b"),)}, "readers would not get back"),
    ],
)
def test_fields_that_cannot_be(old: Path, tmp_path: Path, source: str, options: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        go(source.format(old=old), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() or shards(tmp_path / "out") == []


@pytest.mark.parametrize(
    "option", [{"drop": frozenset({"png"})}, {"keep": frozenset({"png"})}, {"rename": (("png", "x"),)}]
)
def test_a_field_that_no_sample_has(old: Path, option: Any) -> None:
    with pytest.raises(SourceError, match="no sample has a field 'png'; they have cls, jpeg"):
        listed(old, on_error="skip", **option)


def test_by_an_index_column_or_a_field(old: Path) -> None:
    for source in (old, old / "a-000001.tar"):
        listing, _ = listed(source, by="cls", splits=(("a", 0.5), ("b", 0.5)))
        assert {e.key: e.group for e in listing.entries} == {
            k: k[2] for k in samples(old, Path(source).name[:8] if source != old else "")
        }
    with pytest.raises(SourceError, match=r"--by who: sample .* has no such field, and the index no such column"):
        listed(old / "a-000001.tar", by="who", splits=(("a", 1.0),))
    (old / "a.wdsindex").unlink()
    listing, _ = listed(old / "a-000001.tar", by="cls", splits=(("a", 1.0),))  # read from the samples
    assert {e.key: e.group for e in listing.entries} == {k: k[2] for k in samples(old, "a-000001")}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(old: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(old))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}"
        finally:
            httpd.shutdown()
            thread.join()


def in_order(folder: Path) -> list[tuple[str, bytes]]:
    return [member for path in shards(folder) for member in members(path)]


def test_streams_keep_their_order(old: Path, tmp_path: Path, server: str) -> None:
    for path in shards(old):
        (old / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    sources = [
        f"{server}/a-{{000000..000003}}.tar",
        f"{old}/a-{{000000..000003}}.tar.gz",
        f"{old}/a-000000.tar::{server}/a-{{000001..000003}}.tar",
    ]
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        summary = go(source, out / "b-%02d.tar", maxcount=7)
        assert in_order(out) == in_order(old)
        assert (summary.samples, [len(members(p)) // 2 for p in shards(out)]) == (20, [7, 7, 6])
        assert Index.load(out / "b.wdsindex").lifted() == ["cls"]


def test_a_stream_goes_on_where_it_stopped(old: Path, tmp_path: Path, server: str) -> None:
    from wdstools.convert.local import convert
    from wdstools.convert.options import Options

    source, options = f"{server}/a-{{000000..000003}}.tar", Options(maxcount=3)
    go(source, tmp_path / "whole", maxcount=3)

    def interrupted(out: Path) -> None:
        left = [10]

        def progress(samples: int, nbytes: int) -> None:
            left[0] -= samples
            if left[0] < 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, str(out), options, progress=progress)
        assert 0 < len(shards(out)) < 7

    interrupted(tmp_path / "out")
    assert convert(source, str(tmp_path / "out"), options).kept > 0
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")

    interrupted(tmp_path / "other")
    (old / "a-000000.tar").write_bytes((old / "a-000001.tar").read_bytes())
    with pytest.raises(SourceError, match=r"sample .* comes where .* was: the source has changed"):
        convert(source, str(tmp_path / "other"), options)
    convert(source.replace("000000", "000001"), str(tmp_path / "other"), Options(maxcount=3, overwrite=True))


@pytest.mark.parametrize("options", [{"shuffle": True}, {"splits": (("a", 0.5), ("b", 0.5))}, {"keys": "number"}])
def test_what_a_stream_cannot_do(tmp_path: Path, options: Any) -> None:
    with pytest.raises(SourceError, match="shards that can be read in any order"):
        go("pipe:cat x.tar", tmp_path / "out", **options)


def test_broken_streams_write_no_half_sample(old: Path, tmp_path: Path) -> None:
    whole = (old / "a-000000.tar").read_bytes()
    for cut in (512 * 5, len(whole) // 2 + 7):
        (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(whole[:cut]))
        with pytest.raises(wdstools.errors.TruncatedError):
            go(tmp_path / "cut.tar.gz", tmp_path / f"out{cut}/x-%d.tar", maxcount=1)
        done = samples(tmp_path / f"out{cut}")
        assert done == {key: samples(old)[key] for key in done}
    with pytest.raises(wdstools.errors.PipeError, match="exit"):
        go("pipe:exit 3", tmp_path / "out")
    with pytest.raises(SourceError, match=r"no such|No such|not found"):
        go(tmp_path / "gone-{0..3}.tar", tmp_path / "out")


def test_two_samples_with_one_key(tmp_path: Path) -> None:
    for number in (0, 1):
        (tmp_path / f"s-{number}.tar").write_bytes(make_tar([("a.txt", b"%d" % number), (f"b{number}.txt", b"")]))
    with pytest.raises(SourceError, match="two samples with one key: 'a'"):
        go(tmp_path / "s-{0..1}.tar", tmp_path / "out")
    go(tmp_path / "s-{0..1}.tar", tmp_path / "out", keys="number")
    assert sorted(s["txt"] for s in samples(tmp_path / "out").values()) == [b"", b"", b"0", b"1"]


def test_a_field_that_would_be_lost_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s-0.tar").write_bytes(make_tar([("a._x", b"1"), ("a.txt", b"2")]))
    with pytest.raises(SourceError, match="a field that begins with _"):
        go(tmp_path / "s-0.tar", tmp_path / "out")


def test_an_index_that_lies(old: Path, tmp_path: Path) -> None:
    data = bytearray((old / "a-000001.tar").read_bytes())
    data[:512] = (old / "a-000002.tar").read_bytes()[:512]
    (old / "a-000001.tar").write_bytes(data)
    with pytest.raises(StaleIndexError, match=r"a-000001.tar"):
        go(old, tmp_path / "out")


def test_shards_do_not_go_among_their_sources(old: Path) -> None:
    before = everything(old)
    for source, dest in ((old, old / "b-%06d.tar"), (old, old), (old / "a-{000000..000003}.tar", old / "a-%03d.tar")):
        with pytest.raises(DestinationError, match="write elsewhere"):
            go(source, dest, overwrite=True)
    assert everything(old) == before
    go(old / "a-{000000..000003}.tar", old / "b-%06d.tar")
    assert samples(old, "b-") == samples(old, "a-")


def test_a_fifo_is_a_stream(old: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.tar")
    data = (old / "a-000000.tar").read_bytes()
    thread = threading.Thread(target=lambda: (tmp_path / "f.tar").write_bytes(data))
    thread.start()
    go(tmp_path / "f.tar", tmp_path / "out")
    thread.join()
    assert samples(tmp_path / "out") == samples(old, "a-000000")


def test_shards_that_are_not_finished(old: Path, tmp_path: Path) -> None:
    for name in (".a.wdsjob", ".x+a.wdsjob"):
        (old / name).write_text("{}")
        for source in (old, old / "a-{000000..000003}.tar"):
            with pytest.raises(SourceError, match=r"a\.wdsjob: these shards are not finished"):
                listed(source)
        (old / name).unlink()
    (old / ".other.wdsjob").write_text("{}")
    assert len(listed(old / "a-{000000..000003}.tar")[0].entries) == 20
    assert len(listed(old / "a.wdsindex")[0].entries) == 20


def test_what_counts_as_shards(old: Path, tmp_path: Path) -> None:
    good = [old, old / "a-000000.tar", "x-{0..3}.tar", "http://x/y", "pipe:cat", "s3://b/k", "gone.tar.gz"]
    assert [is_shards(str(s)) for s in good] == [True] * len(good)
    bad = [tmp_path / "in", tmp_path / "in/n00", "gone.csv", "gone"]
    assert [is_shards(str(s)) for s in bad] == [False] * len(bad)
