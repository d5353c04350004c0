"""Calls under way together: results by group, the first error of a group at once, none that waits for another."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from tests.conftest import wait_until
from wdstools.errors import StoreError
from wdstools.inflight import REQUESTS, Calls, Process


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
