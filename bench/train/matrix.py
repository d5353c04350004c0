"""What a comparison measures and in which order, its journal, and the medians of what was measured."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wdstools.errors import StateError

FORMAT = 1
NOWHERE = "-"  # the source of the synthetic loader
MODES = ("train", "load")  # with the model, and the loader alone


@dataclass(frozen=True)
class Cell:
    """One thing to measure."""

    loader: str
    source: str
    mode: str

    @property
    def label(self) -> str:
        where = "" if self.source == NOWHERE else f" from {self.source}"
        return f"{self.loader}{where}{', loader alone' if self.mode == 'load' else ''}"


@dataclass(frozen=True)
class Matrix:
    """A comparison. `overrides`: settings that all cells share; `batches`, `seconds`: the least that is measured in a
    cell; `machine`: what has to be the same in all rounds."""

    loaders: tuple[str, ...]
    sources: tuple[str, ...]
    overrides: tuple[str, ...]
    rounds: int
    batches: int
    seconds: float
    quick: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        found = [Cell("synthetic", NOWHERE, "train")] if "synthetic" in self.loaders else []
        real = [loader for loader in self.loaders if loader != "synthetic"]
        return found + [Cell(loader, source, mode) for source in self.sources for loader in real for mode in MODES]

    def turns(self) -> Iterator[tuple[int, Cell]]:
        """Every cell in every round, each round beginning at another one, so that none always follows the same."""
        cells = self.cells()
        for number in range(self.rounds):
            first = number * len(cells) // self.rounds
            yield from ((number, cell) for cell in cells[first:] + cells[:first])

    def to_json(self) -> dict[str, Any]:
        """What identifies a comparison: the journal of another one is not continued."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


@dataclass(frozen=True)
class Result:
    """A cell, measured in a round (from 0). `outcome`: what cell.py tells, `error`, or `left_out`, both with a text."""

    cell: Cell
    number: int
    outcome: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.cell), "round": self.number, "outcome": self.outcome}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        cell = Cell(found["loader"], found["source"], found["mode"])
        return cls(cell, int(found["round"]), dict(found["outcome"]))


class Journal:
    """Results, one JSON line each, so that a comparison that was killed goes on where it was.

    Raises StateError: the file is of another comparison, or no journal.
    """

    def __init__(self, matrix: Matrix, path: Path) -> None:
        self.matrix, self.path = matrix, path
        self.results: list[Result] = []
        if path.exists():
            self._load()
        if not path.exists() or not path.stat().st_size:
            self._write({"compare": FORMAT, "matrix": matrix.to_json()})

    def _load(self) -> None:
        data = self.path.read_bytes()
        whole, _, torn = data.rpartition(b"\n")  # the last line may be a half one
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                self._same(lines[0])
            self.results = [Result.from_json(line) for line in lines[1:]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"{self.path}: no journal of a comparison ({error})") from None
        if torn:
            os.truncate(self.path, len(data) - len(torn))

    def _same(self, head: dict[str, Any]) -> None:
        theirs, mine = head["matrix"], self.matrix.to_json()
        if head["compare"] == FORMAT and theirs == mine:
            return
        differs = [name for name in mine if theirs.get(name) != mine[name]]
        raise StateError(
            f"{self.path}: the journal of another comparison ({', '.join(differs)} differ): repeat its options on the "
            f"same commit to go on with it, or remove it to begin again"
        )

    def add(self, result: Result) -> None:
        self.results.append(result)
        self._write(result.to_json())

    def has(self, cell: Cell, number: int) -> bool:
        """Whether a cell needs no measuring in a round: it was measured, or has once said that it cannot be."""
        mine = [result for result in self.results if result.cell == cell]
        return any(result.number == number or "left_out" in result.outcome for result in mine)

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Row:
    """A cell over its rounds, medians; `low` and `high`: the slowest and the fastest round. `rate`: samples/s, None
    where no round gave one, then `reason` says why. `share`: of the time that the loop waited for data; `wait` and
    `p99`: seconds of a step; `gpu`: share of the time in which the GPU was busy; `cpu`: seconds of all processes for
    1,000 samples. `failed`: rounds that ended in an error."""

    cell: Cell
    rounds: int
    failed: int
    reason: str = ""
    left_out: bool = False
    rate: float | None = None
    low: float = 0.0
    high: float = 0.0
    share: float = 0.0
    wait: float = 0.0
    p99: float = 0.0
    cpu: float = 0.0
    gpu: float | None = None


def rows(matrix: Matrix, results: Iterable[Result]) -> list[Row]:
    """A row for every cell, in the order of the matrix."""
    groups: dict[Cell, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result.cell, []).append(result.outcome)
    return [_row(cell, groups.get(cell, [])) for cell in matrix.cells()]


def _row(cell: Cell, outcomes: list[dict[str, Any]]) -> Row:
    good = [outcome for outcome in outcomes if "rate" in outcome]
    left_out = next((str(outcome["left_out"]) for outcome in outcomes if "left_out" in outcome), None)
    errors = [str(outcome["error"]) for outcome in outcomes if "error" in outcome]
    if not good:
        reason = left_out or (errors[0] if errors else "not measured")
        return Row(cell, 0, len(errors), reason, left_out is not None)
    rates = [outcome["rate"] for outcome in good]
    told = [outcome["gpu"] for outcome in good if outcome.get("gpu") is not None]

    def median(name: str) -> float:
        return float(statistics.median(outcome[name] for outcome in good))

    return Row(
        cell, len(good), len(errors), errors[0] if errors else "", False,
        median("rate"), min(rates), max(rates), median("share"), median("wait"), median("p99"), median("cpu"),
        statistics.median(told) if told else None,
    )  # fmt: skip


def ratio(table: Iterable[Row], row: Row, loader: str) -> float | None:
    """The rate of a row over that of another loader from the same source (of "synthetic" there is one); None: one of
    them has no rate, or they are the same."""
    for other in table:
        same = other.cell.source == row.cell.source or loader == "synthetic"
        if other.cell.loader == loader and same and other.cell.mode == row.cell.mode and other.cell != row.cell:
            return row.rate / other.rate if row.rate and other.rate else None
    return None
