"""wids' shard index: what it has, read by wids 0.2.111, bases, attacks."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from interoping import PAIRS, RICH, digest, export, imported, indexed, needs_readers, read_with, same

from wdstools.errors import IndexFileError, NotFoundError
from wdstools.interop.formats import read_claims


def told(path: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_golden(tmp_path: Path) -> None:
    index = indexed(tmp_path, PAIRS[:2])
    (path,) = export(index, "wids").paths
    assert path == str(tmp_path / "shardindex.json")
    shards = [(f"t-00000{i}.tar", (tmp_path / f"t-00000{i}.tar").read_bytes()) for i in range(2)]
    assert told(path) == {
        "__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "t",
        "shardlist": [
            {"url": name, "md5sum": hashlib.md5(data).hexdigest(), "nsamples": 4, "filesize": len(data)}
            for name, data in shards
        ],
    }  # fmt: skip


def test_elsewhere_shards_have_whole_paths(tmp_path: Path) -> None:
    index = indexed(tmp_path / "shards")
    (tmp_path / "out").mkdir()
    for output in (tmp_path / "out", tmp_path / "out" / "named.json"):
        (path,) = export(index, "wids", output).paths
        assert os.path.dirname(path) == str(tmp_path / "out")
        assert told(path)["shardlist"][0]["url"] == str(tmp_path / "shards" / "t-000000.tar")
        assert same(index, imported(read_claims("wids", [path]), tmp_path / "x.wdsindex"))


def test_what_others_write(tmp_path: Path) -> None:
    """A base, datasets in place of shards, and nothing but what must be there."""
    index = indexed(tmp_path / "shards")
    shards = [{"url": f"t-00000{i}.tar", "nsamples": 4} for i in range(3)]
    for i, content in enumerate([
        {"wids_version": 1, "base": "shards", "shardlist": shards},
        {"base": str(tmp_path / "shards"), "shardlist": [{**shard, "weight": 2, "keep": True} for shard in shards]},
        {"wids_version": 1, "datasets": [{"shardlist": [s], "base": "shards", "name": "x"} for s in shards]},
    ]):  # fmt: skip
        (tmp_path / "w.json").write_text(json.dumps(content))
        assert same(index, imported(read_claims("wids", [str(tmp_path / "w.json")]), tmp_path / f"{i}.wdsindex"))


ATTACKS = {
    "": "not a shard index of wids",
    "[]": "no object",
    "[" * 100_000: "not a shard index of wids",
    '{"shardlist": 5}': "not a shard index of wids",
    '{"shardlist": [{"url": "t-000000.tar"}]}': "nsamples",
    '{"wids_version": 2, "shardlist": []}': "wids_version 2",
    '{"shardlist": [{"url": "../t.tar", "nsamples": 4}]}': "does not name something inside",
    '{"shardlist": [{"url": "pipe:touch pwned", "nsamples": 4}]}': "a command",
    '{"base": "pipe:cat", "shardlist": [{"url": "t-000000.tar", "nsamples": 4}]}': "base 'pipe:cat'",
    '{"shardlist": [{"url": 5, "nsamples": 4}]}': "names a shard 5",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": 1e99}]}': "are not both counts",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": -4}]}': "are not both counts",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": true}]}': "are not both counts",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": 5}]}': "it has 4 samples, not 5",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": 4, "filesize": 512}]}': "bytes, not 512",
    '{"shardlist": [{"url": "t-000000.tar", "nsamples": 4}, {"url": "t-000000.tar", "nsamples": 4}]}': "more than once",
    '{"datasets": [{"source_url": "http://127.0.0.1:1/x.json"}]}': "import that file",
}


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(tmp_path, PAIRS[:1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(IndexFileError, match=ATTACKS[text]):
        imported(read_claims("wids", ["w.json"]), tmp_path / "again.wdsindex")
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "again.wdsindex").exists()


def test_a_shard_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"shardlist": [{"url": "t.tar", "nsamples": 4}]}')
    with pytest.raises(NotFoundError):
        imported(read_claims("wids", [str(tmp_path / "w.json")]), tmp_path / "again.wdsindex")


@needs_readers
def test_wids_reads_it(tmp_path: Path) -> None:
    sets = [PAIRS[0], [(name, data) for name, data in RICH[0] if "." in name]]
    index = indexed(tmp_path / "shards", sets)
    want = []
    for row in range(len(index)):
        key, shard, _, _ = index.locate(row)
        data = Path(index.shards.url[shard]).read_bytes()
        want.append([key, {f.ext: digest(data[f.offset : f.offset + f.nbytes]) for f in index.fields(row)}])
    paths = [export(index, "wids", output).paths[0] for output in (None, tmp_path / "else.json")]
    for found in read_with("wids", {"indexes": paths, "cache": str(tmp_path / "cache")}):
        assert [[key, {name.lower(): d for name, d in fields.items()}] for key, fields in found] == want
