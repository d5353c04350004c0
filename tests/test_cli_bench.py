"""`wds-bench io`: real sweeps over small shards, an interrupted one, what it writes, wrong usage."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Call, caller
from tests.conftest import wait_until
from tests.servers import nginx

FAST = ("--seconds", "0.02", "--rounds", "2", "--workers", "1,2")


@pytest.fixture
def bench(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    yield from caller("wdstools.cli.bench", capfdbinary, monkeypatch)


def make(folder: Path, count: int = 3, nbytes: int = 300_000) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"s-{i:03d}.tar" for i in range(count)]
    for path in paths:
        with tarfile.open(path, "w") as tar:
            for i in range(4):
                info = tarfile.TarInfo(f"{i}.bin")
                info.size = nbytes
                tar.addfile(info, BytesIO(os.urandom(nbytes)))
    return [str(path) for path in paths]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return make(tmp_path / "data")


class Page(HTMLParser):
    """Checks that tags are closed in order; collects what would be fetched."""

    VOID = ("meta", "rect", "line", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[tuple[str, str | None]] = []
        self.bars = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.bars += tag == "rect"
        self.fetched += [(name, value) for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.bars += tag == "rect"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_sweep(bench: Call, shards: list[str], tmp_path: Path) -> None:
    out, page, told = tmp_path / "io.json", tmp_path / "io.html", tmp_path / "told"
    notify = f'echo talk; printf "%s|%s|%s" "$WDS_BENCH_JSON" "$WDS_BENCH_HTML" "$WDS_BENCH_LINE" > {told}'
    done = bench(
        "io", *FAST, "--reader", "plain,cat,dd,stream", "--size", "plain=8K,1M", "--json", out, "--html", page,
        "--notify", notify, Path(shards[0]).parent,
    )  # fmt: skip
    assert done.code == 0, done.err
    labels = ["plain 8K", "plain 1M", "cat", "dd 4M", "stream"]
    cells = [re.split(r"\s{2,}", line)[:2] for line in done.lines[1:-2]]
    assert sorted(cells) == sorted([label, str(n)] for label in labels for n in (1, 2))
    assert b"talk" not in done.out  # of the notified command
    line = done.lines[-1]
    assert line.endswith(tuple(f"{Path(shards[0]).parent}/s-{{000..002}}.tar{quote}" for quote in ("", "'")))
    assert re.match(r"(export GOPEN_BUFFER=\d+; )?url=", line)

    found = json.loads(out.read_text())
    assert found["line"] == line
    assert told.read_text() == f"{out}|{page}|{line}"
    assert len(found["results"]) == 5 * 2 * 2
    for result in found["results"]:
        assert result["bytes"] >= 1 << 20
        assert result["seconds"] > 0
        assert result["slowest"] >= 1
        assert "error" not in result
    record = found["record"]
    assert {"date", "arguments", "packages", "git", "kernel", "cpu", "device", "programs"} <= set(record)
    assert record["packages"]["webdataset"] == "1.0.2"
    assert record["device"]["file_system"]
    assert found["one_reader"] > 0
    assert not Path(f"{out}.journal").exists()  # it is complete

    parser = Page()
    parser.feed(page.read_text())
    parser.close()
    assert (parser.open, parser.fetched) == ([], [])
    assert parser.bars == len(cells)
    assert not re.search(r"https?://|url\(|@import", page.read_text())


def test_json_on_stdout(bench: Call, shards: list[str]) -> None:
    done = bench("io", *FAST, "--reader", "cat", "--warm", "--json", "-", *shards)
    assert done.code == 0
    found = json.loads(done.out)
    assert found["sweep"]["paths"] == shards
    assert found["line"].startswith("url='pipe:cat ")


def test_more_workers_than_shards_are_not_measured(bench: Call, shards: list[str]) -> None:
    done = bench("io", *FAST, "--workers", "2,8", "--reader", "cat", "--json", "-", *shards)
    assert {result["workers"] for result in json.loads(done.out)["results"]} == {1, 2}
    assert b"3 shards" in done.err


def test_names_with_everything_in_them(bench: Call, tmp_path: Path) -> None:
    make(tmp_path / "it's $HOME & more", 2)
    done = bench("io", *FAST, "--reader", "cat,plain", "--size", "plain=64K", tmp_path / "it's $HOME & more")
    assert done.code == 0, done.err
    shown = subprocess.run(["bash", "-c", f'{done.lines[-1]}; printf %s "$url"'], capture_output=True, text=True).stdout
    assert shown.replace("pipe:cat ", "").strip("'").endswith(("s-{000..001}.tar",))


def test_a_reader_that_fails_is_told_and_the_others_are_measured(bench: Call, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(100_000))
    done = bench("io", *FAST, "--reader", "stream,cat", tmp_path / "a.tar")
    assert done.code == 1
    assert re.search(rb"wds-bench: stream x1: .*a\.tar", done.err)
    assert done.lines[-1].startswith("url='pipe:cat")


def test_shards_that_cannot_be_read(bench: Call, tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    done = bench("io", *FAST, tmp_path / "a.tar")
    assert (done.code, done.out) == (1, b"")
    assert b"a.tar: nothing to read" in done.err


def start(shards: list[str], *options: str) -> subprocess.Popen[str]:
    code = "from wdstools.cli.bench import main; main()"
    command = [sys.executable, "-c", code, "io", "--reader", "cat,plain", "--workers", "1,2", *options, *shards]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_an_interrupted_sweep_goes_on(shards: list[str], tmp_path: Path) -> None:
    out = tmp_path / "io.json"
    journal = tmp_path / "io.json.journal"
    options = ("--seconds", "0.05", "--rounds", "3", "--size", "plain=8K,64K", "--json", str(out))
    running = start(shards, *options)
    assert wait_until(lambda: len(lines(journal)) > 3, 30)
    running.send_signal(signal.SIGINT)
    shown, said = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "the same command goes on" in said
    assert "Interrupted" in said
    assert shown.startswith("reader ")
    assert not out.exists()
    before = lines(journal)
    assert 3 < len(before) < 19
    with journal.open("a") as file:
        file.write('{"reader": "cat", "si')  # and as if the machine had gone down in a write

    running = start(shards, *options)
    shown, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    assert f"goes on with {18 + 1 - len(before)} of 18" in said
    found = json.loads(out.read_text())["results"]
    assert found[: len(before) - 1] == before[1:]  # not measured again
    assert len({(r["reader"], r["size"], r["workers"], r["round"]) for r in found}) == len(found) == 18
    assert not journal.exists()


def test_a_journal_of_something_else(bench: Call, shards: list[str], tmp_path: Path) -> None:
    journal = tmp_path / "j"
    assert bench("io", *FAST, "--reader", "cat", "--resume", journal, *shards).code == 0
    again = bench("io", *FAST, "--reader", "cat", "--resume", journal, *shards)
    assert (again.code, b"goes on with 0 of 4" in again.err) == (0, True)
    other = bench("io", *FAST, "--reader", "dd", "--resume", journal, *shards)
    assert (other.code, other.out) == (1, b"")
    assert b"the journal of a sweep with other options" in other.err
    (tmp_path / "not").write_text("hello\n")
    other = bench("io", *FAST, "--reader", "cat", "--resume", tmp_path / "not", *shards)
    assert other.code == 1
    assert b"no journal of wds-bench io" in other.err
    assert (tmp_path / "not").read_text() == "hello\n"


def test_a_yaml_file_of_sweeps(bench: Call, shards: list[str], tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(
        f"""
paths: {Path(shards[0]).parent}
workers: [1, 2]
seconds: 0.02
rounds: 1
sweeps:
  - reader: plain
    sizes: [8K, 65536]
  - reader: dd
    sizes: [1M]
    flags: iflag=fullblock
"""
    )
    done = bench("io", "--config", config, "--workers", "1", "--json", "-")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["sweep"]["workers"] == [1]  # options win
    assert [(r["reader"], r["size"], r["flags"]) for r in found["results"]] == [
        ("plain", 8192, []), ("plain", 65536, []), ("dd", 1 << 20, ["iflag=fullblock"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1", "is no YAML"),
        ("turbo: 1", "has turbo"),
        ("- a", "has list"),
        ("sizes: 1M", "is a mapping"),
        ("paths: x\nreaders: tape", "tape is no reader"),
        ("workers: x\npaths: x", "invalid literal"),
        ("paths: [x]\nsweeps: [1]", "has a reader"),
    ],
)
def test_a_yaml_file_that_is_wrong(
    bench: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    done = bench("io", "--config", tmp_path / "sweep.yaml")
    assert done.code == 2
    assert says in done.err.decode()


@pytest.mark.parametrize(
    "words",
    [
        (), ("--reader", "tape"), ("--workers", "0"), ("--workers", "x"), ("--size", "plain"), ("--size", "plain=huge"),
        ("--size", "cat=1M"), ("--rounds", "0"), ("--seconds", "-1"), ("--turbo",), ("--config", "/nowhere/s.yaml"),
    ],
)  # fmt: skip
def test_wrong_usage(bench: Call, shards: list[str], words: tuple[str, ...]) -> None:
    done = bench("io", *words, *(shards if words else ()))
    assert (done.code, done.out) == (2, b"")
    assert done.err


def test_what_is_not_there(bench: Call, tmp_path: Path) -> None:
    done = bench("io", tmp_path / "none.tar")
    assert done.code == 1
    assert b"none.tar: no such file" in done.err
    done = bench("io", tmp_path)
    assert done.code == 1
    assert b"no .tar in this folder" in done.err
    done = bench("io", "pipe:cat x")
    assert done.code == 1


def test_a_notification_that_fails(bench: Call, shards: list[str]) -> None:
    done = bench("io", *FAST, "--reader", "cat", "--notify", "exit 3", *shards)
    assert done.code == 1
    assert b"exit 3" in done.err


def test_urls(bench: Call, shards: list[str], tmp_path: Path) -> None:
    (tmp_path / "nginx").mkdir()
    with nginx(tmp_path / "nginx") as server:
        for shard in shards:
            os.link(shard, server.root / os.path.basename(shard))
        url = f"http://127.0.0.1:{server.port}/s-{{000..002}}.tar"
        done = bench("io", *FAST, "--reader", "store,parts,curl,stream", "--size", "parts=256K", "--json", "-", url)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert {r["reader"] for r in found["results"]} == {"store", "parts", "curl", "stream"}
    assert url in found["line"]
