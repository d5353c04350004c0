"""The command `wds-index`, called as a shell would call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Call, caller
from helpers import make_tar
from indexing import labelled, touch, write_shards

from wdstools import build
from wdstools.index import Index


@pytest.fixture
def call(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    yield from caller("wdstools.cli.index", capfdbinary, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """out/t-{000000..000002}.tar, two samples each, and no index; the current folder is the one above."""
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", [labelled([str(2 * i), str(2 * i + 1)], prefix=f"p{i}/") for i in range(3)])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


@pytest.fixture
def indexed(folder: Path) -> Path:
    build.build([str(path) for path in sorted(folder.iterdir())], lift=["cls"]).save(folder / "t.wdsindex")
    return folder


# --------------------------------------------------------------------------------------------------------------- build


def test_build_and_refresh(call: Call, folder: Path) -> None:
    done = call("build", "out", "--column", "cls")
    assert (done.code, done.out) == (0, b"out/t.wdsindex\n")
    assert done.err.startswith(b"wds-index: out/t.wdsindex: 3 shards (0 unchanged), 6 samples, in ")
    before = os.stat(folder / "t.wdsindex")
    assert call("build", "out").err == b"wds-index: out/t.wdsindex: up to date: 3 shards (3 unchanged), 6 samples\n"
    after = os.stat(folder / "t.wdsindex")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    touch(folder / "t-000001.tar")
    assert b"3 shards (2 unchanged), 6 samples, in" in call("build", "out").err
    index = Index.load(folder / "t.wdsindex")
    assert index.table.column("cls").to_pylist() == list(range(6))
    assert b"3 shards (0 unchanged)" in call("build", "out", "--force").err
    assert Index.load(folder / "t.wdsindex").lifted() == ["cls"]


def test_build_report(call: Call, folder: Path) -> None:
    done = call("build", "--json", "out/t-{000000..000002}.tar", "--column", "cls,json:w", "--column", "txt")
    (report,) = json.loads(done.out)["indexes"]
    assert report.pop("seconds") > 0
    assert report == {
        "path": "out/t.wdsindex", "shards": 3, "samples": 6, "reused": 0, "columns": ["cls", "json:w", "txt"],
        "empty": ["json:w"], "written": True,
    }  # fmt: skip
    assert b"no sample has anything for the column json:w" in done.err
    (report,) = json.loads(call("build", "--json", "out").out)["indexes"]
    assert (report["reused"], report["written"], report["columns"]) == (3, False, ["cls", "json:w", "txt"])
    call("build", "out", "--no-columns", "--column", "txt")
    assert Index.load(folder / "t.wdsindex").lifted() == ["txt"]
    call("build", "out", "--column", "cls")
    assert Index.load(folder / "t.wdsindex").lifted() == ["txt", "cls"]


def test_build_of_a_folder_with_several_sets(call: Call, folder: Path) -> None:
    write_shards(folder, [labelled(["7"], prefix="v/")], "val-%d.tar")
    assert call("build", "out").lines == ["out/t.wdsindex", "out/val.wdsindex"]
    assert len(Index.load(folder / "val.wdsindex")) == 1
    assert call("build", "out", "-o", "all.wdsindex").lines == ["all.wdsindex"]
    assert len(Index.load("all.wdsindex")) == 7
    assert call("check", "all.wdsindex").code == 0


def test_build_of_an_index_looks_at_its_shards_again(call: Call, indexed: Path) -> None:
    touch(indexed / "t-000002.tar")
    assert b"(2 unchanged)" in call("build", "out/t.wdsindex").err
    os.unlink(indexed / "t-000002.tar")
    done = call("build", "out/t.wdsindex")
    assert (done.code, b"t-000002.tar: No such file" in done.err) == (1, True)
    assert call("build", "out").code == 0  # the shards that are there
    assert len(Index.load(indexed / "t.wdsindex").shards) == 2


def test_build_keeps_what_a_writer_said_of_the_same_shards(call: Call, indexed: Path) -> None:
    index = Index.load(indexed / "t.wdsindex")
    index.metadata = {"wds.job": "{}"}
    index.save(indexed / "t.wdsindex")
    call("build", "out", "--column", "txt")
    assert Index.load(indexed / "t.wdsindex").metadata == {"wds.job": "{}"}
    write_shards(indexed, [labelled(["8"])], first=3)
    call("build", "out")
    assert Index.load(indexed / "t.wdsindex").metadata == {}


def test_build_does_not_drop_shards_by_accident(call: Call, indexed: Path) -> None:
    before = (indexed / "t.wdsindex").read_bytes()
    done = call("build", "out/t-000000.tar")
    assert (done.code, done.out) == (1, b"")
    assert b"out/t.wdsindex has 2 more shards, such as" in done.err
    assert (indexed / "t.wdsindex").read_bytes() == before
    assert call("build", "out/t-000000.tar", "-o", "one.wdsindex").code == 0
    assert call("build", "out/t-000000.tar", "--force").code == 0
    assert len(Index.load(indexed / "t.wdsindex").shards) == 1


def test_build_over_an_index_that_is_broken(call: Call, indexed: Path) -> None:
    data = (indexed / "t.wdsindex").read_bytes()
    for bad in (b"x", data[:500], data.replace(b"\0\x04\0\0\0\0\0\0", b"\1\x04\0\0\0\0\0\0")):
        (indexed / "t.wdsindex").write_bytes(bad)
        done = call("build", "out")
        assert (done.code, b"it is built anew" in done.err) == (0, True)
        assert call("check", "out").code == 0


def test_build_says_what_is_wrong(call: Call, indexed: Path) -> None:
    before = (indexed / "t.wdsindex").read_bytes()
    os.truncate(indexed / "t-000001.tar", 700)
    done = call("build", "out")
    assert (done.code, done.out) == (1, b"")
    assert b"wds-index: out/t-000001.tar: truncated" in done.err
    assert b"at byte 700" in done.err
    assert (indexed / "t.wdsindex").read_bytes() == before
    (indexed.parent / "empty").mkdir()
    for args, code, text in [
        (["empty"], 1, b"empty: no .tar in this folder"),
        (["nosuch.tar"], 1, b"nosuch.tar: No such file or directory"),
        (["out", "-o", "out/t.idx"], 2, b"the name of an index ends with .wdsindex"),
        (["-"], 2, b"stdin has no name"),
        (["http://127.0.0.1:9/a-{0..1}.tar"], 2, b"cannot be written: say with -o"),
        ([], 2, b"Missing argument"),
        (["out", "--workers", "0"], 2, b"workers"),
        (["out/t-000000.tar", "--force", "--column", "key"], 1, b"column 'key' is the index's own"),
        (["a{b.tar"], 1, b"a{b.tar"),
    ]:
        done = call("build", *args)
        assert (done.code, done.out, text in done.err) == (code, b"", True), (args, done)


def test_commands_in_an_index_are_not_run(call: Call, indexed: Path) -> None:
    touching = "pipe:touch ran; cat out/t-000000.tar"
    assert call("build", touching, "-o", "p.wdsindex").code == 0
    os.unlink("ran")
    assert call("build", "p.wdsindex").code == 1
    assert call("check", "p.wdsindex").code == 1
    assert not Path("ran").exists()
    assert call("check", "p.wdsindex", "--run-pipes").code == 0
    assert Path("ran").exists()


# ------------------------------------------------------------------------------------------------------------------ ls


def test_ls(call: Call, indexed: Path) -> None:
    expected = [f"p{i // 2}/{i % 2}\tt-00000{i // 2}.tar\t2048\ttxt,cls\t{i}" for i in range(6)]
    for target in ("out", "out/t.wdsindex", "out/t-{000000..000002}.tar", indexed):
        done = call("ls", target)
        assert (done.code, done.lines, done.err) == (0, expected, b"")
    assert call("ls", "out", "--limit", "2").lines == expected[:2]
    assert call("ls", "out", "--limit", "0").lines == []
    assert call("ls", "out", "--where", "cls >= 4").lines == expected[4:]
    assert call("ls", "out", "--where", "cls % 2 = 0", "--limit", "2").lines == [expected[0], expected[2]]
    assert call("ls", "out/t-{000001..000002}.tar", "--where", "cls < 4").lines == expected[2:4]
    assert call("ls", "out/t-000002.tar", "out").code == 2
    done = call("ls", "out", "--columns", "cls,key", "--columns", "row", "--header", "--limit", "1")
    assert done.lines == ["cls\tkey\trow", "0\tp0/0\t0"]


def test_ls_json(call: Call, indexed: Path) -> None:
    rows = [json.loads(line) for line in call("ls", "out", "--json", "--columns", "key,cls,fields").lines]
    assert [(row["key"], row["cls"]) for row in rows] == [(f"p{i // 2}/{i % 2}", i) for i in range(6)]
    assert rows[0]["fields"] == [
        {"ext": "txt", "header": 0, "offset": 512, "nbytes": 4},
        {"ext": "cls", "header": 1024, "offset": 1536, "nbytes": 1},
    ]
    assert call("ls", "out", "--json", "--where", "false").out == b""


def test_ls_of_more_than_a_chunk(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wdstools.cli.index.show.CHUNK", 4)
    call("build", "out")
    assert call("ls", "out", "--columns", "row").lines == list("012345")
    assert call("ls", "out", "--columns", "row", "--where", "row <> 3").lines == list("01245")


def test_ls_without_an_index_makes_one_for_the_moment(call: Call, folder: Path) -> None:
    for target in ("out", "out/t-{000000..000002}.tar"):
        done = call("ls", target, "--columns", "key", "--limit", "1")
        assert (done.code, done.lines) == (0, ["p0/0"])
        assert done.err.startswith(b"wds-index: no index for 3 shards")
    assert sorted(os.listdir(folder)) == ["t-000000.tar", "t-000001.tar", "t-000002.tar"]


def test_ls_of_odd_values(call: Call, folder: Path) -> None:
    write_shards(folder, [labelled(["a\tb\nc", "é", None])], "odd-%d.tar")
    call("build", "out/odd-0.tar", "--column", "cls")
    assert call("ls", "out/odd-0.tar", "--columns", "key,cls").lines == ["s0\ta\\tb\\nc", "s1\té", "s2\t"]
    rows = [json.loads(line) for line in call("ls", "out/odd-0.tar", "--columns", "cls", "--json").lines]
    assert rows == [{"cls": "a\tb\nc"}, {"cls": "é"}, {"cls": None}]


def test_ls_says_what_is_wrong(call: Call, indexed: Path) -> None:
    for args, code, text in [
        (["out", "--where", "nothing = 1"], 1, b"columns: key, shard"),
        (["out", "--where", "exists(from read_csv('/etc/passwd'))"], 1, b"wds-index: Permission Error"),
        (["out", "--columns", "nothing"], 2, b"no column 'nothing'; there are key, shard"),
        (["out", "--limit", "-1"], 2, b"limit"),
        (["nosuch"], 1, b"nosuch: No such file or directory"),
        (["nosuch.wdsindex"], 1, b"nosuch.wdsindex: no such index"),
    ]:
        done = call("ls", *args)
        assert (done.code, done.out, text in done.err) == (code, b"", True), (args, done)
    (indexed / "u.wdsindex").write_bytes(b"")
    assert b"holds 2 indexes (t.wdsindex, u.wdsindex)" in call("ls", "out").err


def test_a_closed_pipe_is_silent(folder: Path) -> None:
    (folder / "m-0.tar").write_bytes(make_tar([(f"{i:05}{'x' * 80}.a", b"") for i in range(5000)]))
    code = "from wdstools.cli.index import main; main()"
    script = '"$@" ls out/m-0.tar | head -n 1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    first, status = done.stdout.splitlines()
    assert (first[:5], status, b"Error" in done.stderr or b"Broken" in done.stderr) == (b"00000", b"0", False)


# ----------------------------------------------------------------------------------------------------------------- get


def test_get_a_field(call: Call, indexed: Path) -> None:
    for which, expected in [("p1/0", b"2"), ("0", b"0"), ("5", b"5")]:
        done = call("get", "out", which, "cls")
        assert (done.code, done.out, done.err) == (0, expected, b"")
    assert call("get", "out", "--", "-1", "cls").out == b"5"
    assert call("get", "out/t-{000001..000002}.tar", "0", "cls").out == b"2"
    assert call("get", "out/t-000002.tar", "p2/1", "cls").out == b"5"
    assert call("get", "out", "--number", "3", "cls").out == b"3"
    assert call("get", "out", "--key", "p0/0", "txt").out == b"text"
    assert call("get", "out", "--key", "p0/0", "TXT").out == b"text", "fields are in lower case"


def test_get_a_field_of_any_bytes(call: Call, folder: Path) -> None:
    data = bytes(range(256)) * 100
    (folder / "b-0.tar").write_bytes(make_tar([("k.bin", data), ("k.none", b"")]))
    assert call("get", "out/b-0.tar", "k", "bin").out == data
    assert call("get", "out/b-0.tar", "k", "none") == (0, b"", call("get", "out/b-0.tar", "k", "none").err)


def test_get_a_sample(call: Call, indexed: Path) -> None:
    done = call("get", "out", "p1/1", "-o", "here/deep")
    assert (done.code, done.lines) == (0, ["here/deep/p1/1.txt", "here/deep/p1/1.cls"])
    assert Path("here/deep/p1/1.cls").read_bytes() == b"3"
    done = call("get", "out", "p1/1", "-o", "here/deep")
    assert (done.code, b"is there already; --overwrite replaces it" in done.err) == (1, True)
    assert call("get", "out", "p1/1", "-o", "here/deep", "--overwrite").code == 0
    assert call("get", "out", "2").lines == ["./p1/0.txt", "./p1/0.cls"]


@pytest.mark.parametrize("key", ["../evil", "/tmp/evil", "a/../../evil"])
def test_get_stays_in_its_folder(call: Call, folder: Path, key: str) -> None:
    (folder / "e-0.tar").write_bytes(make_tar([(f"{key}.txt", b"x")]))
    done = call("get", "out/e-0.tar", "0", "-o", "here")
    assert (done.code, b"leads out of the folder" in done.err) == (1, True)
    assert not Path("evil.txt").exists()
    assert not Path("/tmp/evil.txt").exists()
    assert call("get", "out/e-0.tar", "0", "txt").out == b"x"


def test_keys_that_look_like_numbers(call: Call, folder: Path) -> None:
    """1 is sample 2 by its key and sample 1 by its number; 0 is both; 007 can only be a key; 2 only a number."""
    keys = ["0", "007", "1"]
    (folder / "n-0.tar").write_bytes(make_tar([(f"{key}.x", f"key {key}".encode()) for key in keys]))
    call("build", "out/n-0.tar")
    for args, code, expected in [
        (["0"], 0, b"key 0"),
        (["007"], 0, b"key 007"),
        (["2"], 0, b"key 1"),
        (["1"], 2, b""),
        (["--key", "1"], 0, b"key 1"),
        (["--number", "1"], 0, b"key 007"),
        (["--key", "2"], 1, b""),
        (["--number", "3"], 1, b""),
        (["--number", "007"], 2, b""),
        (["7"], 1, b""),
        (["0001"], 1, b""),
        (["--", "-4"], 1, b""),
        (["--", "-3"], 0, b"key 0"),
        (["-0"], 2, b""),
        (["99999999999999999999999"], 1, b""),
    ]:
        words = ["get", "out/n-0.tar", *args, "x"]
        done = call(*words)
        assert (done.code, done.out) == (code, expected), (args, done)
    assert b"1 is the key of sample 2 and a number: say --key or --number" in call("get", "out/n-0.tar", "1", "x").err


def test_get_says_what_is_wrong(call: Call, indexed: Path) -> None:
    for args, text in [
        (["p1/9"], b"no sample has the key 'p1/9'; near: p1/"),
        (["p1/0", "jpg"], b"sample 'p1/0' has no field 'jpg'; it has txt, cls"),
        (["p1/0", "__key__"], b"no field '__key__'"),
        (["6"], b"no sample has the key or the number 6; there are 6"),
    ]:
        done = call("get", "out", *args)
        assert (done.code, done.out, text in done.err) == (1, b"", True), (args, done)
    write_shards(indexed, [labelled(["1", "2"], prefix="other/")])
    done = call("get", "out", "p0/0", "cls")
    assert (done.code, done.out, b"does not describe" in done.err) == (1, b"", True)


# ------------------------------------------------------------------------------------------------- info, check, merge


def test_info(call: Call, indexed: Path) -> None:
    done = call("info", "out")
    assert done.lines == [
        f"index       {indexed}/t.wdsindex (format 1), fresh",
        "shards      3",
        "samples     6",
        "members     12",
        "bytes       30.7 kB (30,720)",
        "fields      cls: 6 samples, 1 bytes each",
        "            txt: 6 samples, 4 bytes each",
        "columns     cls: int64",
        "duplicates  none",
    ]
    told = json.loads(call("info", "out", "--json").out)
    assert (told["shards"], told["samples"], told["members"], told["nbytes"]) == (3, 6, 12, 30720)
    assert (told["version"], told["state"], told["columns"], told["duplicates"]) == (1, "fresh", {"cls": "int64"}, {})
    assert json.loads(call("info", "out/t-000001.tar", "--json").out)["samples"] == 2
    touch(indexed / "t-000001.tar")
    write_shards(indexed, [labelled(["9"], prefix="p0/")], "d-%d.tar")
    assert "stale: 1 changed" in call("info", "out").lines[0]
    call("merge", "m.wdsindex", "out/t.wdsindex", *call("build", "out/d-0.tar").lines)
    assert call("info", "m.wdsindex").lines[-1] == "duplicates  1 keys, such as p0/0"


def test_info_without_an_index(call: Call, folder: Path) -> None:
    done = call("info", "out")
    assert (done.code, done.lines[0]) == (0, "index       none, counted from headers (format 1), none")


def test_check(call: Call, indexed: Path) -> None:
    for target in ("out", "out/t.wdsindex", "out/t-{000000..000002}.tar"):
        done = call("check", target)
        assert (done.code, done.out, done.err) == (0, b"", b"wds-index: 3 shards, 6 samples: no problems\n")
    touch(indexed / "t-000000.tar")
    done = call("check", "out")
    assert (done.code, done.err) == (0, b"wds-index: 3 shards, 6 samples: no problems, 1 warning\n")
    assert call("check", "out", "--strict").code == 1
    os.truncate(indexed / "t-000001.tar", 700)
    os.unlink(indexed / "t-000002.tar")
    write_shards(indexed, [labelled(["1"])], "t-%06d.tar", first=3)
    done = call("check", "out")
    assert done.code == 1
    where = f"{indexed}/t-00000"
    assert done.lines == [
        "error    index        out/t-000003.tar: is not in the index out/t.wdsindex; "
        "fix: wds-index build out/t-000003.tar",
        f"error    truncated    {where}1.tar: truncated in a member at byte 700; "
        f"fix: wds-index repair {where}1.tar OUT",
        f"error    unreadable   {where}2.tar: No such file or directory; fix: make it readable, or leave it out",
        f"warning  index-older  {where}0.tar: changed after it was indexed: the headers are as they were, what is in "
        f"the payloads is not known; fix: wds-index build {where}0.tar",
    ]
    assert done.err == b"wds-index: 4 shards, 6 samples: 3 problems, 1 warning\n"
    told = json.loads(call("check", "out", "--json").out)
    assert (told["indexes"], told["shards"], told["errors"], told["warnings"]) == (["out/t.wdsindex"], 4, 3, 1)
    assert {problem["index"] for problem in told["problems"]} == {"out/t.wdsindex"}


def test_check_of_a_folder_checks_all_that_is_there(call: Call, indexed: Path) -> None:
    write_shards(indexed, [labelled(["1"])], "val-%d.tar")
    done = call("check", "out")
    fix = "fix: wds-index build out/val-0.tar"
    assert (done.code, done.lines) == (1, [f"error  index  out/val-0.tar: no index; {fix}"])
    call("build", "out")
    (indexed / "broken.wdsindex").write_bytes(b"x")
    done = call("check", "out")
    assert done.code == 1
    assert ["not an index" in line for line in done.lines] == [True]
    assert done.err == b"wds-index: 4 shards, 7 samples: 1 problem\n"


def test_check_says_what_is_wrong(call: Call, folder: Path) -> None:
    for target, text in [
        ("nosuch.wdsindex", b"nosuch.wdsindex: no such index"),
        ("out/t-000000.tar", b"out/t.wdsindex: no such index"),
        ("nosuch", b"nosuch.wdsindex: no such index"),
    ]:
        done = call("check", target)
        assert (done.code, text in done.out + done.err) == (1, True), done
    for shard in folder.iterdir():
        shard.unlink()
    assert call("check", "out").code == 1


def test_merge(call: Call, indexed: Path) -> None:
    write_shards(indexed, [labelled(["7"], prefix="v/")], "val-%d.tar")
    call("build", "out")
    done = call("merge", "all.wdsindex", "out/val.wdsindex", "out/t.wdsindex")
    assert (done.code, done.out, done.err) == (0, b"", b"wds-index: all.wdsindex: 4 shards, 7 samples\n")
    assert call("ls", "all.wdsindex", "--columns", "key,cls").lines[:2] == ["v/0\t", "p0/0\t0"]
    assert call("check", "all.wdsindex").code == 0
    done = call("merge", "all.wdsindex", "out/t.wdsindex")
    assert (done.code, b"all.wdsindex: is there already" in done.err) == (1, True)
    assert call("merge", "all.wdsindex", "all.wdsindex", "out/t.wdsindex", "--overwrite").code == 1
    assert call("merge", "all.wdsindex", "out/t.wdsindex", "--overwrite").code == 0
    assert len(Index.load("all.wdsindex")) == 6
    for args, code in ((["x.idx", "out/t.wdsindex"], 2), (["x.wdsindex"], 2), (["x.wdsindex", "nosuch"], 1)):
        assert call("merge", *args).code == code
    assert not Path("x.wdsindex").exists()


def test_wrong_usage(call: Call) -> None:
    for args in (["nosuch"], ["ls"], ["--nosuch"], ["ls", "--nosuch", "out"]):
        done = call(*args)
        assert (done.code, done.out, b"Usage: wds-index" in done.err) == (2, b"", True)
