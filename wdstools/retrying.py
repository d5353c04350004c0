"""Trying again what a server may do better the next time: bounded, with pauses that grow and are drawn at random."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from wdstools.errors import StoreError

T = TypeVar("T")

_chance = random.SystemRandom()  # not the generator that the program around us seeds, nor the same draws in forks


class Transient(Exception):
    """An attempt failed that is worth repeating. `error`: what to raise when there is no next one; `after`: seconds
    that the server asked for; `contact`: whether a server was reached at all."""

    def __init__(self, error: StoreError, after: float = 0.0, contact: bool = True) -> None:
        super().__init__(str(error))
        self.error, self.after, self.contact = error, after, contact


@dataclass(frozen=True)
class Retries:
    """How long to go on. Times in seconds.

    `idle`: without a byte, a request is given up; `total`: for an operation with all its attempts, None: no bound;
    `attempts`: of one operation; `strangers`: attempts for a host that never answered, which is a typing error more
    often than an outage, and no new one once `idle` seconds are over; `first`, `most`: the pause after the first
    failure, which doubles up to `most`.
    """

    idle: float = 30.0
    total: float | None = None
    attempts: int = 7
    strangers: int = 3
    first: float = 0.1
    most: float = 5.0

    @property
    def patience(self) -> float:
        """Seconds without a byte after which a request is given up: no more than the whole operation may take."""
        return self.idle if self.total is None else min(self.idle, self.total)

    def call(self, attempt: Callable[[], T], known: bool = True) -> T:
        """Call until it does not raise Transient. `known`: the host has answered before. Raises Transient's error."""
        began = time.monotonic()
        deadline = None if self.total is None else began + self.total
        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except Transient as failed:
                pause = self.pause(number, failed.after)
                spent = deadline is not None and time.monotonic() + pause > deadline
                hopeless = number >= self.strangers or time.monotonic() - began > self.idle
                strange = not known and not failed.contact and hopeless
                if number == self.attempts or spent or strange:
                    raise failed.error from failed.__cause__
                wait(pause)
        raise ValueError("attempts must be at least 1")

    def resume(self, begin: Callable[[str], Iterator[tuple[str, T]]]) -> Iterator[tuple[str, T]]:
        """Yield what `begin(last)` does of what lies behind `last`, a path, in order; where it raises Transient, begin
        behind the last that came. Raises the error of as many attempts as there may be that brought nothing."""
        last, failed = "", 0
        while True:
            try:
                for path, found in begin(last):
                    last, failed = path, 0
                    yield path, found
                return
            except Transient as broken:
                failed += 1
                if failed >= self.attempts:
                    raise broken.error from broken.__cause__
                wait(self.pause(failed, broken.after))

    def pause(self, number: int, asked: float = 0.0) -> float:
        """Seconds after failure `number`, counted from 1; no less than the server asked for, within 30."""
        longest = min(self.most, self.first * 2 ** (number - 1))
        return max(_chance.uniform(longest / 2, longest), min(asked, 30.0))


def wait(seconds: float) -> None:
    """Let time pass; an Event that nobody sets ends at once on an interrupt, in any thread that gets it."""
    threading.Event().wait(seconds)
