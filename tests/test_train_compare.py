"""The comparison of loaders: order, journal, medians, page; sources as they are started; a small run that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wdstools
from bench.train import cell as cells
from bench.train import compare, comparison, matrix, page, places
from bench.train import settings as conf
from bench.train.matrix import Cell, Journal, Matrix, Result
from bench.train.sources import locate
from tests.conftest import wait_until
from tests.freading import program
from wdstools.errors import StateError

NASTY = "<script>alert('1')</script>&amp;\"|\n"
LOADERS = ["indexed", "stream", "webdataset", "imagefolder", "litdata", "synthetic"]
VOID = {"meta", "br", "img"}


def small(**given: Any) -> Matrix:
    options: dict[str, Any] = {
        "loaders": ("indexed", "webdataset", "synthetic"), "sources": ("folder", "nginx"), "overrides": ("model=tiny",),
        "rounds": 5, "batches": 300, "seconds": 30.0,
    }  # fmt: skip
    return Matrix(**{**options, **given})


def outcome(rate: float, **more: Any) -> dict[str, Any]:
    return {"rate": rate, "share": 0.1, "wait": 0.01, "p99": 0.02, "cpu": 3.0, **more}


class Tags(HTMLParser):
    """Whether every element that begins ends, in order; what is fetched; the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(
    st.lists(st.sampled_from(LOADERS), min_size=1, unique=True),
    st.lists(st.sampled_from(places.SOURCES), min_size=1, unique=True),
    st.integers(1, 7),
)
def test_every_cell_is_in_every_round_and_the_first_changes(
    loaders: list[str], sources: list[str], rounds: int
) -> None:
    task = small(loaders=tuple(loaders), sources=tuple(sources), rounds=rounds)
    turns = list(task.turns())
    assert len(turns) == len(set(turns)) == rounds * len(task.cells())
    assert [number for number, _ in turns] == sorted(number for number, _ in turns)
    firsts = [next(cell for number, cell in turns if number == i) for i in range(rounds)]
    assert len(set(firsts)) == min(rounds, len(task.cells()))
    real = len(loaders) - ("synthetic" in loaders)
    assert len(task.cells()) == 2 * real * len(sources) + ("synthetic" in loaders)


def test_a_journal_goes_on_after_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = small().cells()[:2]
    journal = Journal(small(), path)
    journal.add(Result(first, 0, outcome(5.0)))
    whole = path.read_bytes()
    journal.add(Result(second, 0, outcome(7.0)))
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal(small(), path)
    assert path.read_bytes() == whole
    assert again.results == [Result(first, 0, outcome(5.0))]
    assert again.has(first, 0)
    assert not again.has(first, 1)
    assert not again.has(second, 0)
    again.add(Result(second, 0, {"left_out": "no"}))
    assert Journal(small(), path).has(second, 4)  # it will not come to be there


def test_the_first_line_may_be_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(small(), path)
    head = path.read_bytes()
    path.write_bytes(head[:20])
    assert Journal(small(), path).results == []
    assert path.read_bytes() == head


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello\n", "no journal"), (b"[1]\n", "no journal"), (b'{"compare": 1}\n', "no journal"),
        (b'{"compare": 1, "matrix": []}\n', "no journal"), (b"\xff\xfe\n", "no journal"),
        (json.dumps({"compare": 1, "matrix": small(rounds=6).to_json()}).encode() + b"\n", r"\(rounds differ\)"),
        (json.dumps({"compare": 1, "matrix": small(machine={"git": "x"}).to_json()}).encode() + b"\n", "machine"),
        (json.dumps({"compare": 1, "matrix": small().to_json()}).encode() + b'\n{"round": 1}\n', "no journal"),
    ],
)  # fmt: skip
def test_what_is_no_journal_of_it_is_an_error_and_stays(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(StateError, match=reason):
        Journal(small(), path)
    assert path.read_bytes() == content


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=9), st.integers(0, 3))
def test_rows_are_medians_of_what_worked(rates: list[float], failed: int) -> None:
    task = small(loaders=("indexed",), sources=("folder",))
    first, second = task.cells()
    results = [Result(first, i, outcome(rate, share=rate / 1e6)) for i, rate in enumerate(rates)]
    results += [Result(first, 20 + i, {"error": "it broke"}) for i in range(failed)]
    row, other = matrix.rows(task, results)
    assert (row.rate, row.low, row.high) == (statistics.median(rates), min(rates), max(rates))
    assert row.share == statistics.median(rate / 1e6 for rate in rates)
    assert (row.rounds, row.failed, row.reason) == (len(rates), failed, "it broke" if failed else "")
    assert row.gpu is None
    assert (other.cell, other.rate, other.reason) == (second, None, "not measured")


def test_only_what_can_be_read_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = small(loaders=("imagefolder", "stream"), sources=("folder", "nginx", "s3"), rounds=2)
    asked: list[Cell] = []

    def measure(cell: Cell, task: Matrix, place: places.Place) -> dict[str, Any]:
        asked.append(cell)
        return {"error": "it broke"} if cell.loader == "stream" else outcome(1.0)

    monkeypatch.setattr(compare, "measure", measure)
    journal, here = Journal(task, tmp_path / "journal"), places.Place([])
    compare.run(task, journal, {"folder": here, "nginx": here}, lambda text: None)
    assert {(cell.loader, cell.source) for cell in asked} == {
        ("imagefolder", "folder"), ("stream", "folder"), ("stream", "nginx"),
    }  # fmt: skip
    assert len(asked) == 2 * 2 * 3
    table = [compare.told_missing(row, {"s3": "no moto"}) for row in matrix.rows(task, journal.results)]
    found = {(row.cell.loader, row.cell.source): (row.rate, row.failed, row.left_out, row.reason) for row in table}
    assert found["imagefolder", "folder"] == (1.0, 0, False, "")
    assert found["imagefolder", "nginx"][2:] == (True, "it reads a copy on a local disk: see source folder")
    assert found["stream", "nginx"] == (None, 2, False, "it broke")
    assert found["stream", "s3"] == (None, 0, True, "no moto")
    compare.run(task, journal, {"folder": here, "nginx": here}, lambda text: None)
    assert len(asked) == 2 * 2 * 3  # nothing is measured again


def test_ratios_are_to_the_same_source_and_mode() -> None:
    task = small(loaders=("synthetic", "webdataset", "indexed"), sources=("folder", "nginx"))
    rates = {cell: 10.0 * (i + 1) for i, cell in enumerate(task.cells())}
    table = matrix.rows(task, [Result(cell, 0, outcome(rate)) for cell, rate in rates.items()])
    rows = {row.cell: row for row in table}
    for source in task.sources:
        for mode in matrix.MODES:
            mine, theirs = Cell("indexed", source, mode), Cell("webdataset", source, mode)
            assert matrix.ratio(table, rows[mine], "webdataset") == rates[mine] / rates[theirs]
            assert matrix.ratio(table, rows[theirs], "webdataset") is None
        train = Cell("indexed", source, "train")
        assert matrix.ratio(table, rows[train], "synthetic") == rates[train] / rates[Cell("synthetic", "-", "train")]
        assert matrix.ratio(table, rows[Cell("indexed", source, "load")], "synthetic") is None


def told(task: Matrix, **more: Any) -> dict[str, Any]:
    settings = {"model": NASTY, "data": {"size": 28}, "batch_size": 8, "workers": 2, "decoder": "x", "precision": "32"}
    found = {"matrix": task.to_json(), "settings": settings, "versions": {}, "gpus": [NASTY], "git": {}, "left_out": {}}
    where = {"cpu": NASTY, "cores": 2, "kernel": "x", "date": "now"}
    return {**found, "seconds": 1.0, "record": where, **more}


def test_the_page_is_well_formed_and_says_what_is_missing() -> None:
    task = small(quick=True)
    results = [Result(cell, 0, outcome(10.0 + i, gpu=0.5)) for i, cell in enumerate(task.cells()[:4])]
    results += [Result(task.cells()[4], 0, {"left_out": "not here"}), Result(task.cells()[5], 0, {"error": NASTY})]
    results += [Result(cell, 0, {"left_out": "no nginx"}) for cell in task.cells()[7:]]
    table = matrix.rows(task, results)
    text = comparison.html(task, table, told(task))
    found = Tags(text)
    assert "script" not in found.seen
    assert found.fetched == []
    assert "A quick run, for trying out: no measurement." in found.text
    assert NASTY in found.text
    assert found.seen.count("svg") == 3
    printed, _, rest = comparison.markdown(table).partition("\n\nFailed:\n\n")
    broken, _, missing = rest.partition("\n\nLeft out:\n\n")
    lines = printed.splitlines()
    assert len(lines) == 2 + 1 + 3
    bars = {line.replace("\\|", "").count("|") for line in lines}
    assert len(bars) == 1
    assert "GPU busy" in lines[0]
    assert "| failed |" in lines[-1]
    assert broken.splitlines() == [
        f"* indexed from nginx, 1 of 1 rounds: {' '.join(NASTY.split())}",
        "* indexed from nginx, loader alone, 0 of 0 rounds: not measured",
    ]
    assert missing == "* webdataset from folder: not here\n* webdataset from nginx: no nginx\n"
    assert "A quick run" not in comparison.html(small(), table, told(small()))


@pytest.mark.parametrize("value", [None, 0.0, 1e9])
def test_charts_are_xml_and_stay_inside(value: float | None) -> None:
    bars = {NASTY: [page.Bar(NASTY * 3, value, NASTY, value, value), page.Bar("x", 5.0, "5" * 60, 1.0, 9.0, 2)], "": []}
    svg = page.standalone(page.bars(NASTY, bars))
    root = ET.fromstring(svg)
    for one in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(one.attrib["x"]) + float(one.attrib["width"]) <= page.WIDTH
    series = [
        page.Line(NASTY, [0, 1], [0, value or 1]),
        page.Line("b" * 200, [0.5], [0.2], dashed=True),
        page.Line("", [], []),
    ]
    root = ET.fromstring(page.standalone(page.lines(NASTY, NASTY, NASTY, series)))
    height = float(root.attrib["viewBox"].split()[3])
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 3
    for one in lines:
        for point in one.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert page.LEFT <= x <= page.WIDTH - page.RIGHT
            assert 0 <= y <= height - page.BOTTOM


@given(st.floats(1e-6, 1e12))
def test_ticks_are_few_and_cover(top: float) -> None:
    found = page.ticks(top)
    assert found[0] == 0
    assert found[-1] >= top * (1 - 1e-9)
    assert found[-2] < top
    assert 4 <= len(found) <= 8
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--rounds", "4"], "--rounds 4: 5 or more"), (["--batches", "299"], "--batches 299"),
        (["--seconds", "29"], "--seconds 29"), (["--loaders", "indexed,dali"], "--loaders dali"),
        (["--sources", "ftp"], "--sources ftp"), (["--quick", "--rounds", "0"], "--rounds 0"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"), (["batch_size=none"], "batch_size"),
    ],
)  # fmt: skip
def test_wrong_usage(options: list[str], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare.main([*options, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["/a/b-{000000..000003}.tar", "it's", "a\\", "${x}", "a,b=c d"])
def test_quoted_values_come_as_they_are(text: str) -> None:
    assert conf.load(["data=shards", f"data.train={compare.quoted(text)}"]).data.train == text


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    settings = conf.load(["data=pictures", "data.size=16", "data.count=64", f"data.train={folder}/made"])
    compare.digits.prepare(settings)
    return folder / "made"


@pytest.mark.filterwarnings("ignore:Unclosed:ResourceWarning")
@pytest.mark.parametrize("source", places.SOURCES)
def test_sources_give_the_same_samples(
    source: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [(sample["__key__"], sample["jpg"]) for sample in wdstools.open(str(shards))]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/fread").symlink_to(program())
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    try:
        with places.started(source, shards, tmp_path) as place:
            for name, value in place.environment.items():
                monkeypatch.setenv(name, value)
            settings = conf.load(["data=pictures", f"data.train={shards}", *place.overrides])
            where = locate(settings, "train")
            found = wdstools.stream(where.shards, storage_options=where.storage_options)
            assert [(sample["__key__"], sample["jpg"]) for sample in found] == expected
            if where.index is not None:
                dataset = wdstools.open(where.index, storage_options=where.storage_options)
                assert dataset[len(expected) - 1]["jpg"] == expected[-1][1]
    except places.NotHereError as reason:
        pytest.skip(str(reason))


def test_what_is_not_installed_is_told(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with compare.sources(["folder", "pipe-fread", "pipe-curl"], shards) as (found, lacking):
        assert sorted(found) == ["-", "folder"]
        assert compare.unreadable(Cell("webdataset", "s3", "load")) == "wds-cat, by which it reads: not on the PATH"
        assert compare.unreadable(Cell("webdataset", "folder", "load")) is None
        assert lacking == {"pipe-fread": "fread: not installed", "pipe-curl": "curl: not installed"}


def test_a_cell_in_this_process(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # this process is not the cell's alone
    given = ["data=pictures", f"data.train={shards}", f"data.val={shards}", "data.size=16", "batch_size=16"]
    task = {"mode": "train", "batches": 30, "seconds": 0.0}
    found = cells.measure({**task, "overrides": [*given, "workers=0", "model=tiny"]})
    assert (found["samples"], found["batches"]) == (480, 30)
    assert found["epochs"] >= 480 // 64
    assert found["rate"] == found["samples"] / found["seconds"]
    assert 0 < found["share"] < 1
    assert 0 < found["wait"] <= found["p99"] < found["seconds"]
    where = ["source=pipe-curl", "source.endpoint=http://127.0.0.1:1"]
    with pytest.raises(cells.LeftOutError, match="needs random access"):
        cells.measure({**task, "overrides": [*given, "loader=indexed", *where]})


def test_the_error_of_a_cell_is_its_end(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tracebacks that torch makes part of the text; with the note that names sample and shard."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    given = ["data=pictures", f"data.train={shards}", f"data.val={shards}", "data.size=16", "batch_size=16"]
    task = {"mode": "load", "batches": 1, "seconds": 0.0}
    with pytest.raises(ValueError, match="DataLoader worker process 0") as caught:
        cells.measure({**task, "overrides": [*given, "workers=1", "model=tiny", "data.image=tiff"]})
    told = cells.last_line(f"{caught.type.__name__}: {caught.value}")
    wanted = r"ValueError: no field 'tiff' in sample .*: set data.image\nin transform, of sample .*\.tar\s*"
    assert re.fullmatch(wanted, told)
    assert cells.last_line("OSError: [Errno 5] I/O") == "OSError: [Errno 5] I/O"


@pytest.mark.timeout(300)
def test_a_killed_run_goes_on(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--quick", "--rounds", "1", "--batches", "2", "--seconds", "0.1", "--loaders", "synthetic,indexed"]
    options += ["--data", str(shards), "--batch-size", "8", "--workers", "1", "--out", str(out)]
    options += ["data.size=16", "data.classes=10"]
    command = [sys.executable, "-m", "bench.train.compare", *options]
    journal, log = out / "journal.jsonl", tmp_path / "stderr"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stderr=file, start_new_session=True)
    try:
        wait_until(
            lambda: process.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") > 1), 100
        )
        assert process.poll() is None, log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert 1 <= len(kept) < 3
    compare.main(options)
    found = json.loads((out / "compare.json").read_text())
    assert found["results"][: len(kept)] == kept
    assert [(one["loader"], one["mode"]) for one in found["results"]] == [
        ("synthetic", "train"), ("indexed", "train"), ("indexed", "load"),
    ]  # fmt: skip
    assert all(one["rate"] > 0 for one in found["rows"])
    assert not journal.exists()
    said = capsys.readouterr()
    assert f"going on after {len(kept)} measurements" in said.err
    assert said.out.splitlines()[2].startswith("| synthetic | - |")
    assert Tags((out / "compare.html").read_text()).fetched == []
