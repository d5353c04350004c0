"""Importing without reading payloads; whatever is claimed, the rows are those of the shard."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers import make_tar
from hypothesis import given
from hypothesis import strategies as st
from indexing import Files, rows_of
from interoping import export, imported, indexed, same

from wdstools import _core, shardindex, urls
from wdstools.errors import DestinationError, IndexFileError, ShardError, StaleIndexError, UrlError
from wdstools.index import Index
from wdstools.interop import claims, dali
from wdstools.interop.claims import Claim, Field, Sparse
from wdstools.interop.formats import FORMATS, read_claims
from wdstools.ranges import Range
from wdstools.shardtable import Shards
from wdstools.store import MemoryStore, Stores
from wdstools.storebase import Buffer

RNG = random.Random(1)
BIG: Files = [(f"{i}.{ext}", RNG.randbytes(n)) for i in range(6) for ext, n in (("jpg", 200_000), ("cls", 3))]


class Counting(MemoryStore):
    """Notes the ranges that are read."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.read_bytes = 0

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        wanted = list(ranges)
        self.read_bytes += sum(end - start for start, end in wanted)
        return super().read_ranges(path, wanted)


def scanned(data: bytes, fields: list[Field]) -> tuple[dict[str, object], int]:
    store = Counting({"t.tar": data})
    return _core.scan(Sparse(store, "t.tar", len(data), fields), "t.tar"), store.read_bytes


def fields_of(data: bytes) -> list[Field]:
    index = shardindex.from_columns(_core.scan(io.BytesIO(data), "t.tar"), "t.tar")
    return [Field(None, None, f[2], f[3]) for row in rows_of(index) for f in row.fields]


def test_payloads_are_not_read() -> None:
    data = make_tar(BIG)
    columns, nbytes = scanned(data, [field for field in fields_of(data) if field.nbytes >= claims.SKIP])
    assert columns == _core.scan(io.BytesIO(data), "t.tar")
    assert nbytes == len(data) - 6 * 200_000


@given(st.data())
def test_whatever_is_claimed(data: st.DataObject) -> None:
    """A walk over what was claimed finds what is there, or fails."""
    files = data.draw(
        st.lists(st.tuples(st.sampled_from(["jpg", "cls"]), st.integers(0, 3000)), min_size=1, max_size=6)
    )
    tar = make_tar([(f"{i}.{ext}", b"\0" * n if i % 2 else bytes(512)[:n] + b"x" * max(0, n - 512))
                    for i, (ext, n) in enumerate(files)])  # fmt: skip
    true = fields_of(tar)
    ends = st.integers(0, len(tar) + 600)
    lies = data.draw(st.lists(st.builds(Field, st.none(), st.none(), ends, ends), max_size=4))
    said = [field for field in true if data.draw(st.booleans())] + lies
    try:
        columns, _ = scanned(tar, said)
    except ShardError:
        assert lies
        return
    assert columns == _core.scan(io.BytesIO(tar), "t.tar")


class Remote:
    """Serves a folder's shards under s3://bucket/, through the stores that an import opens."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Counting({path.name: path.read_bytes() for path in folder.glob("*.tar")})
        monkeypatch.setattr(Stores, "of", lambda _, url: (self.store, urls.basename(url)))


def test_a_remote_shard_is_read_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed(tmp_path, [BIG])
    export(index, "dali")
    claim = dali.read(str(tmp_path / "t-000000.idx"), "s3://bucket/t-000000.tar")
    remote = Remote(tmp_path, monkeypatch)
    done = claims.import_claims(str(tmp_path / "again.wdsindex"), [claim], claims.Options())
    assert (done.ranges, done.headers, done.whole) == (1, 0, 0)
    assert rows_of(done.index) == rows_of(index)
    assert done.index.shards.url == ["s3://bucket/t-000000.tar"]
    assert remote.store.read_bytes < 30_000


def test_a_remote_shard_that_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = indexed(tmp_path, [BIG])
    export(index, "dali")
    claim = dali.read(str(tmp_path / "t-000000.idx"), "s3://bucket/t-000000.tar")
    for files in ([("new.txt", b"1" * 700), *BIG], BIG[2:], [(n, d[:-600]) for n, d in BIG if len(d) > 600]):
        (tmp_path / "t-000000.tar").write_bytes(make_tar(files))
        Remote(tmp_path, monkeypatch)
        with pytest.raises(StaleIndexError, match=r"t-000000\.idx.*s3://bucket/t-000000\.tar"):
            claims.import_claims(str(tmp_path / "again.wdsindex"), [claim], claims.Options())
        assert not (tmp_path / "again.wdsindex").exists()


def test_remote_shards_go_out_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = indexed(tmp_path, [BIG])
    index = Index(local.table, Shards(**(vars(local.shards) | {"url": ["s3://bucket/t-000000.tar"]})))
    export(local, "dali")
    Remote(tmp_path, monkeypatch)
    for format in ("dali", "energon", "ratarmount"):
        with pytest.raises(DestinationError, match="nothing can be written beside it"):
            export(index, format)
    (path,) = export(index, "dali", tmp_path / "out").paths
    assert Path(path).read_bytes() == (tmp_path / "t-000000.idx").read_bytes()
    (path,) = export(index, "wids", tmp_path / "out").paths
    (claim,) = read_claims("wids", [path])
    assert claim.url == "s3://bucket/t-000000.tar"
    assert claims.import_claims(str(tmp_path / "x.wdsindex"), [claim], claims.Options()).whole == 1


def test_commands_that_an_index_names_are_not_run(tmp_path: Path) -> None:
    local = indexed(tmp_path)
    index = Index(local.table, Shards(**(vars(local.shards) | {"url": [f"pipe:touch {tmp_path}/pwned"] * 3})))
    for format in FORMATS:
        if format != "parquet":  # which reads no shard
            with pytest.raises((DestinationError, UrlError)):
                export(index, format, tmp_path / "out")
    with pytest.raises(UrlError):
        imported([Claim(index.shards.url[0], "foreign")], tmp_path / "x.wdsindex")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("change", range(8))
def test_a_claim_that_is_changed_is_found(tmp_path: Path, change: int) -> None:
    index = indexed(tmp_path, [[("a/x.jpg", b"1"), ("a/x.cls", b"2"), ("b.jpg", b"3")]])
    url = index.shards.url[0]
    samples = [[Field(r.key, f[0], f[2], f[3]) for f in r.fields] for r in rows_of(index)]
    good = Claim(url, "foreign", samples, starts=[0, 2048], end=3072, nsamples=2, nbytes=10240)
    assert same(index, imported([good], tmp_path / "good.wdsindex"))
    wrong = [
        {"samples": samples[:1]}, {"samples": [samples[0], samples[1] * 2]}, {"starts": [0, 512]}, {"starts": [0]},
        {"end": 2048}, {"nsamples": 3}, {"nbytes": 512}, {"samples": [samples[0][::-1], samples[1]]},
    ][change]  # fmt: skip
    with pytest.raises(IndexFileError, match=r"foreign: does not describe .*t-000000.tar"):
        imported([Claim(**(vars(good) | wrong))], tmp_path / "again.wdsindex")


@pytest.mark.parametrize("name", ["./a/b", "a//b", "a/./b", "a/c/../b", "/a/b", "../a/b", "a/b"])
def test_normal_names(name: str) -> None:
    assert claims.normal(name) == "a/b"


def test_hundreds_of_shards(tmp_path: Path) -> None:
    index = indexed(tmp_path, [[(f"{i}.jpg", b"1")] for i in range(150)])
    export(index, "dali")
    with tempfile.TemporaryDirectory() as folder:
        assert same(index, imported(read_claims("dali", index.shards.url), Path(folder) / "again.wdsindex"))
