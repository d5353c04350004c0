"""Loaders side by side, from every source: samples/s of a training and of the loader alone, time waiting for data.

`python -m bench.train.compare [--loaders indexed,webdataset,...] [--sources folder,wds-serve,...] [KEY=VALUE ...]`

Every cell is measured in a process of its own, once a round, in an order that is rotated; medians of the rounds are
told. Servers are started for it on 127.0.0.1. KEY=VALUE are settings of bench.train that all cells share. Prints a
Markdown table, and writes compare.html and compare.json; where it is killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.train import digits, matrix, places
from bench.train import record as runs
from bench.train import settings as conf
from bench.train.comparison import html, markdown
from bench.train.matrix import Cell, Journal, Matrix, Result, Row
from wdstools import open as open_dataset
from wdstools.cli.bench.record import record
from wdstools.errors import WdsError

LEAST = {"rounds": 5, "batches": 300, "seconds": 30.0}
QUICK = {"rounds": 2, "batches": 20, "seconds": 1.0}
LOCAL = ("imagefolder", "litdata")  # what they read is a copy on a local disk, wherever the shards are
PATIENCE = 900  # seconds more for a cell: a peer's copy of the data is made in its first round


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(cell: Cell, task: Matrix, place: places.Place) -> dict[str, Any]:
    """Run a cell once, in a process of its own: what it tells, or `error`."""
    given = [*task.overrides, f"loader={cell.loader}", *place.overrides]
    asked = {"overrides": given, "mode": cell.mode, "batches": task.batches, "seconds": task.seconds}
    command = [sys.executable, "-m", "bench.train.cell", json.dumps(asked)]
    limit = PATIENCE + 10 * task.seconds
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True,
            env={**os.environ, **place.environment},
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=limit)
            return dict(json.loads(out))
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {limit:g} seconds"}
        except ValueError:
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-500:]
            return {"error": f"it ended with {process.returncode} and no answer: {last}"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with workers and commands that are left
            process.communicate()


def unreadable(cell: Cell) -> str | None:
    """Why a loader cannot be measured with a source, as far as that is known before."""
    if cell.loader in LOCAL and cell.source != "folder":
        return "it reads a copy on a local disk: see source folder"
    program = {"wds-serve": "curl", "nginx": "curl", "s3": "wds-cat", "gcs": "wds-cat"}.get(cell.source)
    if cell.loader == "webdataset" and program is not None and shutil.which(program) is None:
        return f"{program}, by which it reads: not on the PATH"
    return None


def run(
    task: Matrix, journal: Journal, found: Mapping[str, places.Place], tell: Callable[[str], object] = tell
) -> None:
    """Measure what the journal does not have yet. `found`: the sources that are there, by name."""
    turns = [(number, cell) for number, cell in task.turns() if cell.source in found]
    for done, (number, cell) in enumerate(turns, 1):
        if journal.has(cell, number):
            continue
        reason = unreadable(cell)
        outcome = {"left_out": reason} if reason else measure(cell, task, found[cell.source])
        journal.add(Result(cell, number, outcome))
        told = outcome.get("error") or outcome.get("left_out") or f"{outcome['rate']:,.0f} samples/s"
        tell(f"{done}/{len(turns)} round {number + 1}: {cell.label}: {told}")


@contextlib.contextmanager
def sources(names: Sequence[str], files: Path) -> Any:
    """(places by source, reasons by source that is not here), for as long as the context lasts."""
    found, lacking = {matrix.NOWHERE: places.Place([])}, {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as exits:
        Path(scratch).chmod(0o755)  # nginx may run as somebody else
        for name in names:
            try:
                found[name] = exits.enter_context(places.started(name, files, Path(scratch)))
            except places.NotHereError as reason:
                lacking[name] = str(reason)
                tell(f"source {name} is left out: {reason}")
        yield found, lacking


def shared(arguments: argparse.Namespace) -> tuple[list[str], Path]:
    """The overrides of all cells, and the folder of the shards, which are made where the data is one that is made, and
    have an index. Raises ValueError, WdsError."""
    groups = {path.stem for path in (conf.CONF / "data").glob("*.yaml")}
    data = [f"data={arguments.data}"]
    if arguments.data not in groups:
        data = ["data=shards", f"data.train={quoted(os.path.abspath(arguments.data))}"]
    given = [*data, f"model={arguments.model}", f"decoder={arguments.decoder}", f"batch_size={arguments.batch_size}"]
    given += [f"workers={arguments.workers}", "logger=none", *arguments.overrides]
    settings = conf.load(given)
    digits.prepare(settings)
    train = os.path.abspath(settings.data.train)
    count = len(open_dataset(train, save_index=True))
    if count < settings.batch_size:
        raise ValueError(f"{train}: {count} samples are no batch of {settings.batch_size}")
    # all samples are for training: no loader has to choose among them
    return [*given, f"data.train={quoted(train)}", f"data.val={quoted(train)}"], _folder(train)


def _folder(train: str) -> Path:
    return Path(train) if os.path.isdir(train) else Path(train).parent


def quoted(text: str) -> str:
    """A value of Hydra's command line that is taken as it is."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${") + "'"


def results(task: Matrix, journal: Journal, lacking: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Everything, for the JSON and the page."""
    table = [told_missing(row, lacking) for row in matrix.rows(task, journal.results)]
    return {
        "matrix": task.to_json(), "rows": [asdict(row) for row in table],
        "results": [result.to_json() for result in journal.results], "left_out": dict(lacking), "seconds": seconds,
        "settings": conf.plain(conf.load(list(task.overrides))), "versions": runs.versions(), "gpus": runs.gpus(),
        "git": runs.commit(Path(__file__).parent), "record": record(()),
    }  # fmt: skip


def told_missing(row: Row, lacking: Mapping[str, str]) -> Row:
    """The row, with the reason where its source is not there."""
    if row.cell.source not in lacking:
        return row
    return Row(row.cell, 0, 0, lacking[row.cell.source], left_out=True)


def _choices(name: str) -> str:
    return ", ".join(filter(None, conf.CHOICES[name]))


def arguments_of(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m bench.train.compare", description=first, epilog=rest.partition("\n\n")[2]
    )
    all_loaders = ",".join(filter(None, conf.CHOICES["loader"]))
    parser.add_argument("--loaders", default=all_loaders, help=f"[{all_loaders}]")
    parser.add_argument("--sources", default="folder", help=f"of {','.join(places.SOURCES)}, or all [folder]")
    parser.add_argument(
        "--data", default="pictures", help="digits, pictures, a folder or a pattern of shards [pictures]"
    )
    parser.add_argument("--decoder", default="pillow", help=f"{_choices('decoder')} [pillow]")
    parser.add_argument("--model", default="tiny", help=f"{_choices('model')} [tiny]")
    parser.add_argument("--batch-size", type=int, default=64, help="samples [64]")
    parser.add_argument("--workers", type=int, default=2, help="processes of each loader [2]")
    for name, least in LEAST.items():
        parser.add_argument(f"--{name}", type=type(least), help=f"of a cell, {least:g} or more [{least:g}]")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 20 batches and 1 s: for trying out")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the report [runs/compare]")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of bench.train, of all cells")
    arguments = parser.parse_args(argv)
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is None:
            setattr(arguments, name, QUICK[name] if arguments.quick else least)
        elif value <= 0 or (value < least and not arguments.quick):
            parser.error(f"--{name} {value:g}: {least:g} or more; less, but not 0, with --quick, which the report says")
    for name, known in (("loaders", conf.CHOICES["loader"]), ("sources", places.SOURCES)):
        chosen = getattr(arguments, name).split(",")
        if chosen == ["all"]:
            chosen = list(known)
        if strange := [one for one in chosen if one not in known]:
            parser.error(f"--{name} {strange[0]}: of {', '.join(map(str, known))}")
        setattr(arguments, name, tuple(dict.fromkeys(chosen)))
    return parser, arguments


def main(argv: Sequence[str] | None = None) -> None:
    parser, arguments = arguments_of(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers end with it
    started, out = time.monotonic(), arguments.out
    try:
        overrides, files = shared(arguments)
        versions = {**runs.versions(), "gpus": runs.gpus(), "git": runs.commit(Path(__file__).parent)}
        task = Matrix(
            arguments.loaders, arguments.sources, tuple(overrides), int(arguments.rounds), int(arguments.batches),
            float(arguments.seconds), arguments.quick, {"cpu": record(())["cpu"], "cores": os.cpu_count(), **versions},
        )  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        journal = Journal(task, out / "journal.jsonl")
    except (ValueError, WdsError) as error:
        parser.error(str(error))
    if journal.results:
        tell(f"{journal.path}: going on after {len(journal.results)} measurements")
    with sources(task.sources, files) as (found, lacking):
        run(task, journal, found)
    told = results(task, journal, lacking, time.monotonic() - started)
    table = [told_missing(row, lacking) for row in matrix.rows(task, journal.results)]
    (out / "compare.json").write_text(json.dumps(told, indent=1, default=str))
    (out / "compare.html").write_text(html(task, table, told))
    journal.remove()
    print(markdown(table), end="")
    tell(f"{out}/compare.html")
    if any(row.failed for row in table):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
