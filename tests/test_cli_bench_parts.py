"""What `wds-bench io` is made of: sizes, the plan, the choice of the best, the worker, the record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wdstools.cli.bench import html, runner, summary
from wdstools.cli.bench.journal import Journal, Result
from wdstools.cli.bench.record import device, record
from wdstools.cli.bench.sweep import Cell, Sweep, Variant, available, parse_size, short, variants
from wdstools.errors import StoreError

M = 1 << 20
PATHS = tuple(f"/data/train-{i:03d}.tar" for i in range(8))


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("64K", 65536), ("64kB", 64000), ("32M", 32 * M), ("32MiB", 32 * M), ("1MB", 10**6), ("1G", 1 << 30), ("7", 7),
     ("1.5M", 3 << 19), ("512B", 512)],
)  # fmt: skip
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "M", "-1", "0", "1X", "1 2", "0x10", "inf"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.integers(1, 1 << 50))
def test_a_short_size_is_the_size(nbytes: int) -> None:
    assert parse_size(short(nbytes)) == nbytes


@given(st.integers(1, 6), st.integers(1, 12), st.sampled_from([(1,), (1, 8), (1, 2, 4)]))
def test_every_round_has_every_cell_once(rounds: int, count: int, workers: tuple[int, ...]) -> None:
    ways = tuple(Variant("plain", size) for size in range(1, count + 1))
    sweep = Sweep(PATHS, ways, workers, rounds=rounds)
    turns = list(sweep.turns())
    assert len(turns) == rounds * len(sweep.cells())
    for number in range(rounds):
        assert sorted((c.name for n, c in turns if n == number)) == sorted(cell.name for cell in sweep.cells())


def test_the_variants_of_a_reader() -> None:
    assert [v.label for v in variants(["plain"], {"plain": ["1M", "8K"]}, quick=False)] == ["plain 1M", "plain 8K"]
    assert [v.label for v in variants(["fread"], {"fread": ["16M"]}, quick=True)] == [
        "fread 16M", "fread 16M --lock always",
    ]  # fmt: skip
    assert [v.label for v in variants(["cat"], {}, quick=False)] == ["cat"]
    with pytest.raises(ValueError, match="cat has no size"):
        variants(["cat"], {"cat": ["1M"]}, quick=False)


def test_programs_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert available([Variant("plain", 1), Variant("fread", 1), Variant("fread", 2), Variant("stream")]) == (
        [Variant("plain", 1), Variant("stream")],
        ["fread"],
    )


def results(rates: dict[tuple[Variant, int], list[float]]) -> list[Result]:
    """A sweep with known rates, in MB/s."""
    return [
        Result(Cell(variant, workers), i, {"bytes": 10**9, "seconds": 1000 / rate, "slowest": 1.0, "cpu": 0.5})
        for (variant, workers), given in rates.items()
        for i, rate in enumerate(given)
    ]


SMALL, BIG, CAT, FREAD = Variant("plain", 8192), Variant("plain", M), Variant("cat"), Variant("fread", 32 * M)
LOCKED, STREAM = Variant("fread", 32 * M, ("--lock", "always")), Variant("stream")


def chosen(rates: dict[tuple[Variant, int], list[float]]) -> str | None:
    row = summary.best(summary.rows(results(rates)))
    return None if row is None else summary.line(row, PATHS)


def test_the_line_is_of_the_best_median_at_the_most_workers() -> None:
    disk = {
        (SMALL, 1): [190.0, 190, 190], (FREAD, 1): [180.0, 180, 180],
        (SMALL, 8): [30.0, 31, 500], (BIG, 8): [33.0, 30, 31], (CAT, 8): [60.0, 58, 61],
        (FREAD, 8): [189.0, 190, 20], (LOCKED, 8): [188.0, 190, 189], (STREAM, 8): [999.0] * 3,
    }  # fmt: skip
    assert chosen(disk) == "url='pipe:fread --chunk 32M /data/train-{000..007}.tar'"
    disk[LOCKED, 8] = [250.0, 250, 250]
    assert chosen(disk) == "url='pipe:fread --chunk 32M --lock always /data/train-{000..007}.tar'"
    ssd = {(SMALL, 8): [1500.0] * 3, (BIG, 8): [2000.0] * 3, (CAT, 8): [2050.0] * 3, (FREAD, 8): [2020.0] * 3}
    assert chosen(ssd) == f"export GOPEN_BUFFER={M}; url='/data/train-{{000..007}}.tar'"
    ssd[SMALL, 8] = [1980.0] * 3
    assert chosen(ssd) == "export GOPEN_BUFFER=8192; url='/data/train-{000..007}.tar'"  # as good, and simpler


def test_what_failed_is_never_chosen() -> None:
    found = results({(CAT, 8): [10.0, 10], (FREAD, 8): [99.0]})
    found.append(Result(Cell(FREAD, 8), 1, {"error": "exit 1"}))
    table = summary.rows(found)
    row = summary.best(table)
    assert row is not None
    assert row.cell.variant == CAT
    assert [(r.rounds, r.error) for r in table] == [(2, None), (1, "exit 1")]
    assert summary.best(summary.rows(found[-1:])) is None
    assert summary.best([]) is None
    assert "failed: exit 1" in html.page(summary.rows(found[-1:]), None, None, {})


def test_html_escapes() -> None:
    table = summary.rows(results({(Variant("dd", M, ("<script>",)), 1): [1.0]}))
    text = html.page(table, table[0], "url='<b>&'", {"arguments": ["</pre><script>"]})
    assert "<script>" not in text
    assert "url=&#x27;&lt;b&gt;&amp;&#x27;" in text


def test_a_journal_keeps_results(tmp_path: Path) -> None:
    sweep = Sweep(PATHS, (CAT, FREAD, LOCKED), (1, 8))
    journal = Journal(sweep, str(tmp_path / "j"))
    assert not journal.resumed
    journal.begin(2e8)
    for result in results({(LOCKED, 8): [1.0, 2.0], (CAT, 1): [3.0]}):
        journal.add(result)
    again = Journal(sweep, str(tmp_path / "j"))
    assert (again.rate, again.results) == (2e8, journal.results)
    assert again.has(Cell(LOCKED, 8), 1)
    assert not again.has(Cell(CAT, 1), 1)


def task(path: Path, reader: str, **more: Any) -> subprocess.Popen[str]:
    told = {"reader": reader, "size": None, "flags": [], "paths": [str(path)], "bytes": M, "limit": 5, "cold": True}
    command = [sys.executable, "-m", "wdstools.cli.bench.worker", json.dumps(told | more)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_worker_reads_its_shards_again_until_it_has_enough(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    for reader in ("plain", "cat"):
        shown, _ = task(tmp_path / "a", reader).communicate("go\n", timeout=30)
        found = json.loads(shown.splitlines()[1])
        assert M <= found["bytes"] < M + 100_000
        assert found["begin"] < found["end"]


def test_a_worker_stops_in_time_and_ends_its_command(tmp_path: Path) -> None:
    """A command that never ends writes slowly: it is gone with the worker."""
    os.mkfifo(tmp_path / "f")
    stopped = threading.Event()

    def feed() -> None:
        with open(tmp_path / "f", "wb", buffering=0) as file:
            try:
                while not stopped.wait(0.01):
                    file.write(bytes(10240))
            except BrokenPipeError:
                stopped.set()

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        shown, _ = task(tmp_path / "f", "cat", bytes=1 << 40, limit=0.2, cold=False).communicate("go\n", timeout=30)
        found = json.loads(shown.splitlines()[1])
        assert 0.2 <= found["end"] - found["begin"] < 5
        assert stopped.wait(10)  # nobody reads any more
    finally:
        stopped.set()
        feeder.join()


def test_a_worker_that_nobody_waits_for_does_nothing(tmp_path: Path) -> None:
    shown, _ = task(tmp_path / "nothing", "plain").communicate(timeout=30)
    assert shown == "ready\n"


def test_a_failed_command_is_told_with_what_it_said(tmp_path: Path) -> None:
    shown, _ = task(tmp_path / "gone", "cat").communicate("go\n", timeout=30)
    assert "No such file" in json.loads(shown.splitlines()[1])["error"]


def test_a_sweep_that_cannot_begin(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    sweep = Sweep((str(tmp_path / "a.tar"),), (CAT,), (1,), seconds=0.1)
    with pytest.raises(StoreError, match="nothing to read"):
        runner.run(sweep, Journal(sweep), lambda *_: None)


def test_cooling_drops_what_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(os.urandom(8 * M))
        os.fsync(file.fileno())
    assert path.read_bytes()
    assert runner._cached(str(path))
    kept = runner.cool([str(path)])
    assert kept == ([str(path)] if (device(str(path))["file_system"] or "").startswith("tmpfs") else [])
    held = os.memfd_create("shards")  # memory is what it lies in: it cannot be dropped
    try:
        os.write(held, bytes(M))
        assert runner.cool([f"/proc/self/fd/{held}"]) == [f"/proc/self/fd/{held}"]
    finally:
        os.close(held)


def test_the_record_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    found = record((str(tmp_path / "none"), str(tmp_path / "a")))
    assert found["device"] == device(str(tmp_path / "a"))
    assert json.loads(json.dumps(found)) == found
    assert device("/proc/self/status")["file_system"].startswith("proc on")
