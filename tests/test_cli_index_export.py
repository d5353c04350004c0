"""`wds-index export` and `import`, called as a shell would call them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Call, caller
from indexing import labelled, touch, write_shards

from wdstools import build
from wdstools.cli.index import exchange
from wdstools.index import Index
from wdstools.interop.formats import FORMATS


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    yield from caller("wdstools.cli.index", capfdbinary, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/t-{000000..000002}.tar, two samples each, with their index; the current folder is the one above."""
    (tmp_path / "out").mkdir()
    shards = [labelled([str(2 * i), str(2 * i + 1)], prefix=f"p{i}/") for i in range(3)]
    build.build(write_shards(tmp_path / "out", shards)).save(tmp_path / "out" / "t.wdsindex")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def test_the_command_knows_the_formats() -> None:
    assert list(exchange.FORMATS) == list(FORMATS)


PATHS = {
    "dali": ["t-000000.idx", "t-000001.idx", "t-000002.idx"],
    "energon": [
        ".nv-meta/index.sqlite", "t-000000.tar.idx", "t-000001.tar.idx", "t-000002.tar.idx", ".nv-meta/.info.json",
        ".nv-meta/index.uuid", ".nv-meta/split.yaml", ".nv-meta/dataset.yaml",
    ],
    "wids": ["shardindex.json"],
    "lhotse": ["t-000000.tar.idx", "t-000001.tar.idx", "t-000002.tar.idx"],
    "ratarmount": ["t-000000.tar.index.sqlite", "t-000001.tar.index.sqlite", "t-000002.tar.index.sqlite"],
    "parquet": ["t.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("format", PATHS)
@pytest.mark.parametrize("target", ["out", "out/t.wdsindex", "out/t-{000000..000002}.tar"])
def test_there_and_back(call: Call, folder: Path, format: str, target: str) -> None:
    done = call("export", target, "--to", format)
    assert (done.code, done.err) == (0, b"")
    assert [str(Path(line).relative_to(folder)) for line in done.lines] == PATHS[format]
    source = {"wids": "out/shardindex.json", "parquet": "out/t.parquet"}.get(format, "out")
    done = call("import", "--from", format, source, "-o", "again.wdsindex")
    assert (done.code, done.lines) == (0, ["again.wdsindex"])
    assert done.err.endswith(b"wds-index: again.wdsindex: 3 shards, 6 samples\n")
    assert (b"all headers" in done.err) == (format in ("wids", "lhotse"))
    assert call("check", "again.wdsindex").code == 0


def test_into_folders_of_their_own(call: Call, folder: Path) -> None:
    done = call("export", "out", "--to", "aistore")
    assert (done.code, b"give a folder for them with --output" in done.err) == (1, True)
    for format in ("aistore", "lhotse", "dali", "ratarmount"):
        names = [os.path.basename(name) for name in PATHS["lhotse" if format == "aistore" else format]]
        done = call("export", "out", "--to", format, "-o", f"for/{format}")
        assert (done.code, done.lines) == (0, [f"for/{format}/{name}" for name in names])
        args = ["import", "--from", format, "out", "--indexes", f"for/{format}", "-o", f"{format}.wdsindex"]
        assert call(*args).code == 0
    assert sorted(os.listdir(folder)) == ["t-000000.tar", "t-000001.tar", "t-000002.tar", "t.wdsindex"]


def test_reports(call: Call, folder: Path) -> None:
    told = json.loads(call("export", "out", "--to", "aistore", "-o", "ais", "--json").out)
    assert (told["format"], told["shards"], told["samples"]) == ("aistore", 3, 6)
    assert [os.path.basename(path) for path in told["paths"]] == PATHS["lhotse"]
    assert "checksum" in told["notes"][0]
    told = json.loads(call("import", "--from", "aistore", "out", "--indexes", "ais", "-o", "x.wdsindex", "--json").out)
    assert told == {
        "path": "x.wdsindex", "format": "aistore", "shards": 3, "samples": 6,
        "read": {"ranges": 0, "headers": 3, "whole": 0},
    }  # fmt: skip


def test_nothing_is_replaced_unless_asked(call: Call, folder: Path) -> None:
    assert call("export", "out", "--to", "dali").code == 0
    done = call("export", "out", "--to", "dali")
    assert (done.code, done.out, b"--overwrite replaces it" in done.err) == (1, b"", True)
    assert call("export", "out", "--to", "dali", "--overwrite").code == 0
    done = call("import", "--from", "dali", "out")
    assert (done.code, b"out/t.wdsindex: is there already" in done.err) == (1, True)
    (folder / "t.wdsindex").unlink()
    assert call("import", "--from", "dali", "out").lines == ["out/t.wdsindex"]
    assert call("import", "--from", "dali", "out", "--overwrite").code == 0
    assert len(Index.load(folder / "t.wdsindex")) == 6


def test_two_formats_under_one_name(call: Call, folder: Path) -> None:
    assert call("export", "out", "--to", "energon").code == 0
    before = (folder / "t-000000.tar.idx").read_bytes()
    done = call("export", "out", "--to", "lhotse", "--overwrite")
    assert done.code == 1
    assert b"t-000000.tar.idx: is an index of Energon" in done.err
    assert b"not an index of Lhotse" in done.err
    assert (folder / "t-000000.tar.idx").read_bytes() == before
    done = call("import", "--from", "lhotse", "out", "-o", "x.wdsindex")
    assert (done.code, b"import --from energon" in done.err) == (1, True)


def test_an_index_that_is_missing_stale_or_of_several_sets(call: Call, folder: Path) -> None:
    touch(folder / "t-000001.tar")
    done = call("export", "out", "--to", "dali")
    assert (done.code, b"stale: 1 changed" in done.err) == (0, True)
    (folder / "t.wdsindex").unlink()
    assert call("export", "out/t-000001.tar", "--to", "dali", "-o", "one").lines == ["one/t-000001.idx"]
    write_shards(folder, [labelled(["1"])], "val-%d.tar")
    done = call("export", "out", "--to", "wids")
    assert (done.code, b"has several sets of shards" in done.err) == (1, True)
    done = call("import", "--from", "wids", "out")
    assert (done.code, b"shardindex.json" in done.err) == (1, True)


def test_wrong_usage(call: Call, folder: Path) -> None:
    for args in (
        ["export", "out"], ["export", "--to", "dali"], ["export", "out", "--to", "nosuch"], ["import", "out"],
        ["import", "--from", "dali"], ["import", "--from", "dali", "out", "-o", "x.idx"],
        ["export", "out", "--to", "dali", "--workers", "0"],
    ):  # fmt: skip
        done = call(*args)
        assert (done.code, done.out, b"Usage: wds-index" in done.err) == (2, b"", True), args
    assert call("export", "nosuch", "--to", "dali").code == 1
    assert call("import", "--from", "dali", "out").code == 1
