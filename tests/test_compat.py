"""Under webdataset: the same samples in the same order, the same handlers; and its silent losses are errors."""

from __future__ import annotations

import gzip
import importlib
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from helpers import make_tar
from webdataset import cache, tariterators
from webdataset import compat as wds_compat
from webdataset.gopen import gopen_schemes

from wdstools import compat
from wdstools.errors import (
    DuplicateFieldError,
    InterleavedError,
    NotFoundError,
    PipeError,
    ShardError,
    StoreError,
    TrailingError,
    TruncatedError,
    UrlError,
)

Sample = dict[str, Any]
# webdataset opens files and leaves them to the collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:.*WDS_.*:UserWarning"
)


NSAMPLES = (0, 15, 1, 15, 0, 9)


@pytest.fixture
def installed() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = patched()
    yield
    assert patched() == before


def patched() -> list[Any]:
    return [
        wds_compat.tar_file_expander, wds_compat.group_by_keys, cache.StreamingOpen, tariterators.tarfile_samples,
        tariterators.tarfile_to_samples, wds.tarfile_samples, wds.tarfile_to_samples,
    ]  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    draw = random.Random(1)
    paths = []
    for shard, nsamples in enumerate(NSAMPLES):
        files = [("__meta__", b"x")]
        for i in range(nsamples):
            key = f"{'d/' * (i % 3)}{shard}{i:03d}"
            files += [(f"{key}.{e}", draw.randbytes(draw.randrange(3000))) for e in ("seg.PNG", "bin")]
            files += [(f"{key}.cls", b"%d" % i), (f"{key}.json", b'{"i": %d}' % i)]
        paths.append(str(tmp_path / f"s-{shard}.tar"))
        Path(paths[-1]).write_bytes(make_tar(files, mtime=1.5))
    return paths


def stages(shards: Any, stage: Any) -> list[Sample]:
    return list(wds.DataPipeline(wds.SimpleShardList(shards), stage))


def both(make: Callable[[], Any]) -> tuple[list[Any], list[Any]]:
    """What a pipeline gives: webdataset's own, and ours under it."""
    theirs = list(make())
    compat.install()
    try:
        return list(make()), theirs
    finally:
        compat.uninstall()


def rename(name: str) -> str:
    return name.replace("json", "js").replace("d/", "D/")


def select(name: str) -> bool:
    return "bin" not in name


OPTIONS: list[dict[str, Any]] = [
    {},
    {"select_files": select},
    {"rename_files": rename},
    {"select_files": select, "rename_files": rename},
    {"handler": wds.ignore_and_continue},
    {"handler": wds.warn_and_stop, "select_files": lambda name: False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_the_stage(options: dict[str, Any], shards: list[str]) -> None:
    want = stages(shards, wds.tarfile_to_samples(**options))
    assert stages(shards, compat.tarfile_to_samples(**options)) == want
    assert want or "handler" in options


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_under_webdataset(options: dict[str, Any], shards: list[str]) -> None:
    ours, theirs = both(lambda: wds.WebDataset(shards, shardshuffle=False, empty_check=False, **options))
    assert ours == theirs
    ours, theirs = both(lambda: wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples(**options)))
    assert ours == theirs


def test_schemes(shards: list[str], tmp_path: Path) -> None:
    for url in (f"pipe:cat {shards[1]}", f"file:{shards[1]}", shards[1]):
        assert stages([url], compat.tarfile_to_samples()) == stages([url], wds.tarfile_to_samples())
        ours, theirs = both(lambda url=url: wds.WebDataset([url], shardshuffle=False, empty_check=False))
        assert ours == theirs
    Path(tmp_path / "z.tar.gz").write_bytes(gzip.compress(Path(shards[2]).read_bytes()))
    ours, theirs = both(lambda: wds.WebDataset(f"{tmp_path}/z.tar.gz", shardshuffle=False, empty_check=False))
    assert ours == theirs


def test_patterns(shards: list[str], tmp_path: Path) -> None:
    pattern = f"{tmp_path}/s-{{0..3}}.tar::{tmp_path}/s-{{4,5}}.tar"
    ours, theirs = both(lambda: wds.WebDataset(pattern, shardshuffle=False))
    assert ours == theirs


def test_items_with_a_local_path(shards: list[str]) -> None:
    items = [{"url": url, "local_path": f"elsewhere/{i}"} for i, url in enumerate(shards)]
    assert list(compat.tarfile_samples(items)) == list(tariterators.tarfile_samples(dict(i) for i in items))


def test_streams_that_are_open(shards: list[str]) -> None:
    def opened() -> Iterator[Sample]:
        for url in shards:
            with open(url, "rb") as stream:
                yield {"url": url, "stream": stream, "local_path": url}

    want = list(tariterators.group_by_keys(tariterators.tar_file_expander(opened())))
    assert list(compat.group_by_keys(compat.tar_file_expander(opened()))) == want


def test_a_cache(shards: list[str], tmp_path: Path) -> None:
    """The files of a cache are read, and named, as webdataset does it."""
    urls = [f"pipe:cat {url}" for url, n in zip(shards, NSAMPLES, strict=True) if n]
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        if name == "b":
            compat.install()
        data = list(wds.WebDataset(urls, shardshuffle=False, cache_dir=str(tmp_path / name)))
        found.append([{**s, "__local_path__": os.path.basename(s["__local_path__"])} for s in data])
    compat.uninstall()
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_other_openers(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody puts into gopen's table, or its variables, is heeded."""
    opened: list[str] = []

    def mine(url: str, mode: str = "rb", bufsize: int = 8192) -> Any:
        opened.append(url)
        return open(shards[int(url[-1])], mode)

    monkeypatch.setitem(gopen_schemes, "mine", mine)
    monkeypatch.setitem(gopen_schemes, "pipe", mine)
    for url in ("mine://x/1", "pipe:never run; 1"):
        ours, theirs = both(lambda url=url: wds.WebDataset([url], shardshuffle=False, empty_check=False))
        assert ours == theirs
        assert stages([url], compat.tarfile_to_samples()) == ours
    assert len(opened) == 6
    monkeypatch.undo()
    monkeypatch.setenv("GOPEN_REWRITE", "pipe:nowhere=pipe:cat")
    url = f"pipe:nowhere {shards[1]}"
    assert stages([url], compat.tarfile_to_samples()) == stages([url], wds.tarfile_to_samples())


def test_no_unsafe_pipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wds.utils, "enforce_security", True)
    for stage in (wds.tarfile_to_samples(), compat.tarfile_to_samples()):
        with pytest.raises(ValueError, match="unsafe_gopen"):
            stages([f"pipe:touch {tmp_path}/ran"], stage)
    assert not (tmp_path / "ran").exists()


# what comes after


def test_decoded(shards: list[str]) -> None:
    def make() -> Any:
        return wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("cls", "json", "bin;x", "__key__")

    ours, theirs = both(make)
    assert ours == theirs
    assert len(ours) > 10


@pytest.mark.parametrize("detshuffle", [False, True])
def test_shuffled_with_a_seed(detshuffle: bool, shards: list[str]) -> None:
    def make() -> Any:
        data = wds.WebDataset(shards, shardshuffle=4, detshuffle=detshuffle, seed=7)
        return data.shuffle(20, rng=random.Random(5)).to_tuple("__key__", "cls").batched(4, partial=True)

    ours, theirs = both(make)
    assert [list(map(list, b)) for b in ours] == [list(map(list, b)) for b in theirs]


def test_resampled(shards: list[str]) -> None:
    def make() -> Any:
        return wds.WebDataset(shards, resampled=True, shardshuffle=False, seed=3).slice(60).to_tuple("__key__")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = both(make)
    assert len(ours) == 60
    known = {s["__key__"] for s in stages(shards, compat.tarfile_to_samples())}
    assert {key for (key,) in [*ours, *theirs]} <= known


def test_empty_check(shards: list[str], installed: None) -> None:
    empty = [url for url, n in zip(shards, NSAMPLES, strict=True) if not n]
    with pytest.raises(ValueError, match="No samples found"):
        list(wds.WebDataset(empty, shardshuffle=False))


@pytest.mark.parametrize("loader", ["torch", "wds"])
def test_workers(loader: str, shards: list[str]) -> None:
    """Two workers with a shard in turn each; nodesplitter and workersplitter see what they saw."""
    torch = pytest.importorskip("torch")
    kind = torch.utils.data.DataLoader if loader == "torch" else wds.WebLoader

    def make() -> Any:
        data = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node, empty_check=False)
        return kind(data.to_tuple("__key__", "bin"), num_workers=2, batch_size=None)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ours, theirs = both(make)
    assert ours == theirs
    assert len(ours) > 10


# broken shards

GOOD = [(f"{k}.{e}", b"1") for k in "ab" for e in ("x", "y")]
WHOLE = make_tar(GOOD)
BROKEN: dict[str, tuple[bytes, type[Exception], list[str]]] = {
    "cut between members": (WHOLE[:3072], TruncatedError, ["a"]),
    "cut in a header": (WHOLE[:3200], TruncatedError, ["a"]),
    "cut before the end": (WHOLE[:4096], TruncatedError, ["a"]),
    "two tars": (WHOLE + WHOLE, TrailingError, ["a", "b"]),
    "a key comes back": (make_tar([*GOOD, ("a.z", b"1")]), InterleavedError, ["a"]),
    "a name twice": (make_tar([*GOOD, ("b.x", b"1")]), DuplicateFieldError, ["a"]),
    "no tar": (b"<html>" * 200, ShardError, []),
}


@pytest.mark.parametrize("under", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_losses_are_errors(what: str, under: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wds.handlers.time, "sleep", lambda _: None)
    data, kind, keys = BROKEN[what]
    last = make_tar([("last.y", b"9")])
    urls = []
    for i, content in enumerate((make_tar([("first.x", b"1")]), data, last)):
        urls.append(str(tmp_path / f"{i}.tar"))
        Path(urls[-1]).write_bytes(content)

    def run(**options: Any) -> list[Sample]:
        if under:
            return list(wds.WebDataset(urls, shardshuffle=False, **options))
        return stages(urls, compat.tarfile_to_samples(**options))

    if under:
        compat.install()
    try:
        with pytest.raises(kind) as caught:
            run()
        assert isinstance(caught.value, ShardError)
        assert urls[1] in str(caught.value)
        with pytest.raises(kind):
            run(handler=wds.reraise_exception)
        goes_on = run(handler=wds.ignore_and_continue)
        with pytest.warns(UserWarning, match=r"1\.tar"):
            assert run(handler=wds.warn_and_continue) == goes_on
        stops = run(handler=wds.ignore_and_stop)
        with pytest.warns(UserWarning, match=r"1\.tar"):
            assert run(handler=wds.warn_and_stop) == stops
    finally:
        compat.uninstall()
    got = [s["__key__"] for s in stops]
    assert got == ["first", *keys[: len(got) - 1]]
    assert [s["__key__"] for s in goes_on] == [*got, "last"]
    for s in goes_on:
        fields = {k for k in s if k[:2] != "__"}
        assert fields == ({"x"} if s["__key__"] == "first" else {"y"} if s["__key__"] == "last" else {"x", "y"})


@pytest.mark.parametrize("under", [False, True])
def test_failing_commands(under: bool, shards: list[str], tmp_path: Path) -> None:
    """Also those that webdataset's shell hides; what they said is in the error."""
    cases = {
        f"pipe:cat {shards[1]}; echo went wrong >&2; exit 3": "went wrong",
        f"pipe:(cat {shards[1]}; echo hidden >&2; exit 3) | cat": "hidden",
        f"pipe:cat {tmp_path}/none | cat": "No such file",
    }
    for url, text in cases.items():
        if under:
            compat.install()
        try:
            data = wds.WebDataset([url], shardshuffle=False, empty_check=False)
            stage = wds.DataPipeline(wds.SimpleShardList([url]), compat.tarfile_to_samples())
            with pytest.raises(PipeError, match=text):
                list(data if under else stage)
        finally:
            compat.uninstall()


def test_what_cannot_be_opened(tmp_path: Path, shards: list[str], installed: None) -> None:
    none = str(tmp_path / "none.tar")
    with pytest.raises(NotFoundError):
        list(wds.WebDataset([none], shardshuffle=False))
    told: list[Exception] = []

    def handler(error: Exception) -> bool:
        told.append(error)
        return True

    got = list(wds.WebDataset([none, "nowhere://x", "file://host/x", *shards], shardshuffle=False, handler=handler))
    assert got == list(wds.WebDataset(shards, shardshuffle=False))
    assert [type(e) for e in told] == [NotFoundError, ValueError, UrlError]
    assert (
        list(wds.WebDataset([none, *shards], shardshuffle=False, handler=wds.ignore_and_stop, empty_check=False)) == []
    )


class FakePipe:
    """A webdataset Pipe, as the table's other schemes give them."""

    def __init__(self, data: bytes, error: OSError | None, status: int = 1) -> None:
        import io

        self.read, self.error, self.status = io.BytesIO(data).read, error, status

    def close(self) -> None:
        if self.error:
            raise self.error


@pytest.mark.parametrize("data", [WHOLE, WHOLE[:3072]])
def test_a_command_of_another_scheme_that_fails(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gopen_schemes, "x", lambda url, *_, **__: FakePipe(data, OSError("exit 9")))
    with pytest.raises(StoreError, match="x://1: exit 9"):
        stages(["x://1"], compat.tarfile_to_samples())


def test_a_command_that_we_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gopen_schemes, "x", lambda url, *_, **__: FakePipe(b"?" * 9999, OSError("exit -13"), -13))
    with pytest.raises(ShardError, match="checksum"):
        stages(["x://1"], compat.tarfile_to_samples())


# install


def test_install_and_uninstall() -> None:
    before = patched()
    compat.install()
    ours = patched()
    assert not [name for name, a, b in zip(range(9), before, ours, strict=False) if a is b]
    compat.install()
    assert patched() == ours
    compat.uninstall()
    assert patched() == before
    compat.uninstall()
    assert patched() == before


def test_pipelines_that_were_built_before_keep_what_they_have(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(WHOLE[:3072])
    old = wds.WebDataset(str(path), shardshuffle=False)
    compat.install()
    new = wds.WebDataset(str(path), shardshuffle=False)
    compat.uninstall()
    assert [s["__key__"] for s in old] == ["a", "b"], "the loss that this module is about"
    with pytest.raises(TruncatedError):
        list(new)


@pytest.mark.usefixtures("installed")
def test_dropped_midway(shards: list[str], no_leaks: None) -> None:
    for url in (shards[1], f"pipe:cat {shards[1]} /dev/zero"):
        data = iter(wds.WebDataset([url] * 3, shardshuffle=False))
        next(data)
        del data


# register


def table() -> tuple[dict[str, Any], bool]:
    return dict(gopen_schemes), "open" in vars(importlib.import_module("webdataset.gopen"))


def test_register_and_unregister(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table()
    compat.register()
    ours = table()
    changed = {scheme for scheme in ours[0] if ours[0][scheme] is not before[0].get(scheme)}
    assert changed == {"pipe", "http", "https", "s3", "gs", "az"}
    assert ours[1]
    compat.register()
    assert table() == ours
    compat.unregister()
    assert table() == before
    compat.unregister()
    assert table() == before


def test_openers_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were there before register(), and those that came between it and unregister()."""
    monkeypatch.setitem(gopen_schemes, "s3", len)
    monkeypatch.setitem(gopen_schemes, "http", len)
    compat.register()
    assert gopen_schemes["s3"] is gopen_schemes["http"] is len
    gs = gopen_schemes["gs"]
    gopen_schemes["gs"] = gopen_schemes["az"] = len
    compat.unregister()
    assert {gopen_schemes[scheme] for scheme in ("s3", "http", "gs", "az")} == {len}
    gopen_schemes["gs"] = compat.gopen_gsutil
    del gopen_schemes["az"]
    assert gs is not compat.gopen_gsutil


@pytest.mark.parametrize("under", [False, True])
def test_after_register_wdstools_still_opens(under: bool, shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def note(url: str) -> Any:
        opened.append(url)
        return real(url if not url.startswith("s3:") else shards[1])

    real = compat.open_source
    monkeypatch.setattr(compat, "open_source", note)
    compat.register()
    if under:
        compat.install()
    try:
        for url in (f"pipe:cat {shards[1]}", shards[1], "s3://b/x"):
            data = wds.WebDataset([url], shardshuffle=False, empty_check=False)
            found = list(data) if under else stages([url], compat.tarfile_to_samples())
            assert len(found) == 15
        assert opened == [f"pipe:cat {shards[1]}", shards[1], "s3://b/x"]
        with monkeypatch.context() as patch:
            patch.setitem(gopen_schemes, "pipe", lambda url, *_, **__: open(shards[3], "rb"))
            assert [s["cls"] for s in stages(["pipe:exit 1"], compat.tarfile_to_samples())] == [
                b"%d" % i for i in range(15)
            ]
        assert opened[3:] == []
    finally:
        compat.uninstall()
        compat.unregister()


def test_a_variable_that_rewrites_goes_through_gopen(shards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOPEN_REWRITE", "s3://b/=pipe:cat ")
    compat.register()
    try:
        assert len(stages([f"s3://b/{shards[1]}"], compat.tarfile_to_samples())) == 15
    finally:
        compat.unregister()
