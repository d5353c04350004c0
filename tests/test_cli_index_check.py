"""The commands `wds-index check`, as a doctor, and `wds-index repair`, called as a shell would call them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Call, caller
from helpers import make_tar
from indexing import labelled, write_shards
from servers import nginx

from wdstools.index import Index
from wdstools.reader import stream


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    yield from caller("wdstools.cli.index", capfdbinary, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/t-{000000..000002}.tar, five samples each, and no index; the current folder is the one above."""
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", [labelled(list("12345"), prefix=f"p{i}/") for i in range(3)])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def damage(path: Path) -> None:
    """Spoil the header of the second sample's cls."""
    data = bytearray(path.read_bytes())
    data[3 * 1024 : 3 * 1024 + 20] = b"\xff" * 20
    path.write_bytes(data)


def test_check_without_an_index(call: Call, folder: Path) -> None:
    assert call("check", "out").code == 1
    done = call("check", "out", "--no-index")
    assert (done.code, done.out, done.err) == (0, b"", b"wds-index: 3 shards, 15 samples: no problems\n")
    assert call("check", "out/t-000001.tar", "--no-index").code == 0


def test_check_then_repair(call: Call, folder: Path) -> None:
    call("build", "out")
    damage(folder / "t-000001.tar")
    done = call("check", "out")
    assert done.code == 1
    (row,) = done.lines
    assert row.split()[:2] == ["error", "header"]
    assert "bad tar header (checksum); the next member is at byte 4096; at byte 3072" in row
    fix = row.partition("fix: ")[2]
    assert fix.startswith("wds-index repair ")
    done = call(*fix.split()[1:-1], "mended")
    assert (done.code, done.lines) == (1, ["mended/t-000001.tar", "mended/t.wdsindex"])
    assert b"wds-index: lost: " in done.err
    assert [sample["__key__"] for sample in stream("mended/t-000001.tar")] == ["p1/0", "p1/2", "p1/3", "p1/4"]
    assert call("check", "mended").code == 0
    assert call(*fix.split()[1:-1], "mended").code == 1, "it is there"
    assert call("repair", "out/t-000000.tar", "good").code == 0


def test_check_json(call: Call, folder: Path) -> None:
    call("build", "out")
    damage(folder / "t-000002.tar")
    shutil.copy(folder / "t-000000.tar", folder / "u-000000.tar")
    call("build", "out/u-000000.tar")
    done = call("check", "out", "--json")
    told = json.loads(done.out)
    assert (done.code, done.err) == (1, b"")
    assert told["indexes"] == ["out/t.wdsindex", "out/u.wdsindex"]
    assert (told["shards"], told["samples"], told["errors"], told["warnings"]) == (4, 20, 1, 0)
    (problem,) = told["problems"]
    assert problem["shard"].endswith("out/t-000002.tar")
    assert problem["message"].startswith(problem["shard"])
    assert {key: problem[key] for key in ("index", "kind", "level", "offset", "from", "to")} == {
        "index": "out/t.wdsindex", "kind": "header", "level": "error", "offset": 3072, "from": 3072, "to": 4096,
    }  # fmt: skip
    assert len(json.loads(call("check", "out", "--json", "--checksums").out)["checksums"]) == 4


def test_check_strict(call: Call, folder: Path) -> None:
    (folder / "e-0.tar").write_bytes(make_tar([("a.x", b""), ("b.x", b"1")]))
    for extra, code in (((), 0), (("--strict",), 1)):
        done = call("check", "out/e-0.tar", "--no-index", *extra)
        assert (done.code, len(done.lines)) == (code, 1)
        assert done.err == b"wds-index: 1 shards, 2 samples: no problems, 1 warning\n"


def test_remote_shards(call: Call, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with nginx(tmp_path_factory.mktemp("nginx")) as server:
        os.rmdir(server.root)
        folder = Path(shutil.copytree(folder, server.root))
        base = server.url
        assert call("check", f"{base}/t-{{000000..000002}}.tar", "--no-index").code == 0
        damage(folder / "t-000001.tar")
        os.truncate(folder / "t-000002.tar", 5000)
        done = call("check", f"{base}/t-{{000000..000002}}.tar", "--no-index")
        assert done.code == 1
        assert [row.split()[:3] for row in done.lines] == [
            ["error", "header", f"{base}/t-000001.tar:"],
            ["error", "truncated", f"{base}/t-000002.tar:"],
        ]
        assert call("repair", f"{base}/t-{{000000..000002}}.tar", "mended").code == 1
    assert len(Index.load("mended/t.wdsindex")) == 5 + 4 + 2


def test_repair_json_and_report(call: Call, folder: Path) -> None:
    (folder / "d-0.tar").write_bytes(make_tar([("a.x", b"1"), ("b.x", b"2"), ("a.x", b"3")]))
    done = call("repair", "out/d-0.tar", "one")
    assert (done.code, done.out, b"say --keep first" in done.err) == (1, b"", True)
    done = call("repair", "out/d-0.tar", "one", "--keep", "rename", "--json")
    told = json.loads(done.out)
    assert (done.code, told["samples"], told["shards"]) == (0, 3, ["one/d-0.tar"])
    assert told["renamed"] == [{"shard": "out/d-0.tar", "key": "a", "to": "a-2"}]
    assert json.loads(Path("one/repair.json").read_text()) == told
    assert b"one: 1 shards, 3 samples; 1 renamed; nothing lost\n" in done.err


def test_repair_of_an_index_and_of_a_folder(call: Call, folder: Path) -> None:
    call("build", "out")
    assert call("repair", "out/t.wdsindex", "a").code == 0
    assert call("repair", "out", "b").code == 0
    assert sorted(os.listdir("a")) == sorted(os.listdir("b"))
    assert len(Index.load("b/t.wdsindex")) == 15


def test_wrong_usage(call: Call, folder: Path) -> None:
    for args in (
        ["repair", "x"],
        ["repair", "out", "x", "--keep", "best"],
        ["check"],
        ["check", "out", "--workers", "0"],
    ):
        assert call(*args).code == 2, args
    done = call("repair", "out", "out")
    assert (done.code, b"not repaired in place" in done.err) == (1, True)
    done = call("repair", "nosuch.tar", "x")
    assert (done.code, Path("x").exists()) == (1, False)
