"""The journal of a sweep: one JSON line a measurement, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from wdstools.cli.bench.sweep import Cell, Sweep, Variant
from wdstools.errors import DestinationError, StateError

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """A cell, measured in a round (from 0). `outcome`: bytes, seconds, slowest and cpu, or error."""

    cell: Cell
    number: int
    outcome: dict[str, Any]

    @property
    def rate(self) -> float | None:
        """Bytes/s of all workers together; None: it failed."""
        return None if "error" in self.outcome else self.outcome["bytes"] / self.outcome["seconds"]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self.cell.variant), "workers": self.cell.workers, "round": self.number, **self.outcome}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Result:
        rest = dict(found)
        variant = Variant(rest.pop("reader"), rest.pop("size"), tuple(rest.pop("flags")))
        return cls(Cell(variant, rest.pop("workers")), rest.pop("round"), rest)


class Journal:
    """Results in memory, and in a file if there is one.

    Raises StateError: the file is of another sweep, or no journal; DestinationError: it is a folder.
    """

    def __init__(self, sweep: Sweep, path: str | None = None) -> None:
        self.sweep, self.path = sweep, path
        self.rate: float | None = None  # bytes/s of one reader, found out first
        self.results: list[Result] = []
        if path is not None and os.path.isdir(path):
            raise DestinationError(f"{path}: a folder; the journal is a file")
        if path is not None and os.path.exists(path):
            self._load(path)

    @property
    def resumed(self) -> bool:
        return self.rate is not None

    def _load(self, path: str) -> None:
        with open(path, "rb") as file:
            data = file.read()
        whole, _, torn = data.rpartition(b"\n")  # the last line may be a half one
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if not lines:
                return
            mine = json.loads(json.dumps(self.sweep.to_json()))
            if lines[0]["wds-bench"] != FORMAT or lines[0]["sweep"] != mine:
                raise StateError(
                    f"{path}: the journal of a sweep with other options or shards; repeat its options to go on "
                    f"with it, or remove it to begin again"
                )
            self.rate = float(lines[0]["rate"])
            self.results = [Result.from_json(line) for line in lines[1:]]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"{path}: no journal of wds-bench io ({error})") from None
        if torn:
            os.truncate(path, len(data) - len(torn))

    def begin(self, rate: float) -> None:
        self.rate = rate
        self._write({"wds-bench": FORMAT, "sweep": self.sweep.to_json(), "rate": rate})

    def add(self, result: Result) -> None:
        self.results.append(result)
        self._write(result.to_json())

    def has(self, cell: Cell, number: int) -> bool:
        return any(result.cell == cell and result.number == number for result in self.results)

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def remove(self) -> None:
        if self.path is not None and os.path.exists(self.path):
            os.unlink(self.path)
