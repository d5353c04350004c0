"""Calls under way together: results by group, the first error of a group at once, none that waits for another."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from tests.conftest import wait_until
from wdstools.errors import StoreError
from wdstools.inflight import REQUESTS, Calls, Process, ahead


def test_results_come_by_group_and_in_order() -> None:
    calls: Calls[int] = Calls()
    for i in range(300):
        calls.add(i % 3, lambda i=i: (time.sleep(0.001 * (i % 5)), i)[1])
    for group in (2, 0, 1):
        assert calls.results(group) == list(range(group, 300, 3))
    assert calls.results(7) == []


def test_the_first_error_of_a_group_comes_at_once_and_only_to_it() -> None:
    calls: Calls[Any] = Calls()
    hold = threading.Event()

    def fail() -> None:
        raise StoreError("x")

    calls.add(0, hold.wait, 20)
    calls.add(1, hold.wait, 20)
    calls.add(1, fail)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoreError, match="x"):
            calls.results(1)
    assert time.monotonic() - began < 10
    hold.set()
    assert calls.results(0) == [True]
    calls.add(2, fail)
    calls.add(3, int)
    (error, number) = calls.outcomes([2, 3])
    assert isinstance(error, StoreError)
    assert number == 0


def test_what_is_given_up_never_begins() -> None:
    calls: Calls[Any] = Calls()
    hold, began = threading.Event(), []
    for _ in range(REQUESTS):
        calls.add(0, hold.wait, 20)
    for i in range(50):
        calls.add(1, began.append, i)
    outcomes = calls.outcomes([0, 1])
    calls.cancel()
    hold.set()
    other: Calls[int] = Calls()
    other.add(0, int)
    assert other.results(0) == [0]
    assert began == []
    outcomes.close()


def test_a_child_has_threads_of_its_own() -> None:
    calls: Calls[int] = Calls()
    calls.add(0, int)
    assert calls.results(0) == [0]
    pid = os.fork()
    if not pid:
        status = 1
        try:
            assert Process.pool is None
            again: Calls[int] = Calls()
            again.add(0, int)
            status = 0 if again.results(0) == [0] else 1
        finally:
            os._exit(status)
    status = []
    assert wait_until(lambda: bool(status.append(os.waitpid(pid, os.WNOHANG)) or status[-1][0]), 20), "it hangs"
    assert status[-1][1] == 0


def test_ahead_is_in_order_and_never_far() -> None:
    begun: list[int] = []

    def call(i: int) -> int:
        begun.append(i)
        time.sleep(0.001 * (i % 3))
        return i

    for taken, i in enumerate(ahead(call, range(50), 3)):
        assert i == taken
        assert len(begun) <= taken + 4
    assert sorted(begun) == list(range(50))
    assert list(ahead(call, [], 3)) == []


def test_ahead_gives_up_what_nobody_takes() -> None:
    hold, begun = threading.Event(), []

    def call(i: int) -> int:
        begun.append(i)
        if i == 1:
            raise StoreError("x")
        hold.wait(20 * (i > 1))
        return i

    blocked = [Process.submit(hold.wait, 20) for _ in range(REQUESTS - 2)]
    answers = ahead(call, range(2 * REQUESTS), REQUESTS)
    assert next(answers) == 0
    with pytest.raises(StoreError, match="x"):
        next(answers)
    hold.set()
    assert all(future.result() for future in blocked)
    assert Process.submit(int).result() == 0  # behind all that was cancelled
    assert len(begun) <= 4
