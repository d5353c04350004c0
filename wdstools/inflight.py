"""Requests that are under way together: the threads of this process that make them, and their results by group."""

from __future__ import annotations

import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from wdstools.errors import StoreError
from wdstools.ranges import Range, plan

A = TypeVar("A")
T = TypeVar("T")

REQUESTS = 64  # at once, of all stores of a process


class Process:
    """The threads of this process, which a forked child does not have. What runs in them waits for no other of them."""

    pool: ThreadPoolExecutor | None = None
    lock = threading.Lock()
    inherited: list[object] = []  # noqa: RUF012 - kept for ever: to close a parent's connections would harm it

    @classmethod
    def after_fork(cls) -> None:
        cls.inherited.append(cls.pool)
        cls.pool, cls.lock = None, threading.Lock()

    @classmethod
    def submit(cls, function: Callable[..., T], *args: Any) -> Future[T]:
        with cls.lock:
            if cls.pool is None:
                cls.pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="wdstools-store")
            return cls.pool.submit(function, *args)


os.register_at_fork(after_in_child=Process.after_fork)


@dataclass
class Job:
    """One object of a batch: the ranges that are wanted, and the reads that bring them."""

    path: str
    ranges: list[Range]
    reads: list[Range] = field(init=False)
    left: int = field(init=False)  # reads that have not ended
    lock: threading.Lock = field(default_factory=threading.Lock)
    error: StoreError | None = None

    def __post_init__(self) -> None:
        self.reads = plan(self.ranges)
        self.left = len(self.reads)

    def is_last(self) -> bool:
        """Note that a read has ended; whether it was the last one."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class Calls(Generic[T]):
    """Calls under way in the threads of the process, in numbered groups. For one thread, which adds and collects."""

    def __init__(self) -> None:
        self._groups: defaultdict[int, list[Future[T]]] = defaultdict(list)
        self._left: defaultdict[int, int] = defaultdict(int)
        self._failed: dict[int, BaseException] = {}
        self._ended: SimpleQueue[tuple[int, Future[T]]] = SimpleQueue()

    def add(self, group: int, function: Callable[..., T], *args: Any) -> None:
        future = Process.submit(function, *args)
        self._groups[group].append(future)
        self._left[group] += 1
        future.add_done_callback(lambda ended: self._ended.put((group, ended)))

    def results(self, group: int) -> list[T]:
        """Wait for a group and return what its calls returned, in the order in which they were added; it is kept no
        longer. Raises the first error of a call in it, at once, and gives the others of the group up."""
        while self._left[group] and group not in self._failed:
            number, future = self._ended.get()
            self._left[number] -= 1
            if not future.cancelled() and (error := future.exception()) is not None:
                self._failed.setdefault(number, error)
        futures = self._groups.pop(group, [])
        if error := self._failed.get(group):
            _cancel(futures)
            raise error
        return [future.result() for future in futures]

    def outcomes(self, groups: Iterable[int]) -> Generator[T | StoreError, None, None]:
        """Yield for each group, of one call, what it returned, or its StoreError. Closed, it gives up the others."""
        try:
            for group in groups:
                try:
                    found: T | StoreError = self.results(group)[0]
                except StoreError as error:
                    found = error
                yield found
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what has not begun."""
        for futures in self._groups.values():
            _cancel(futures)


def ahead(call: Callable[[A], T], items: Iterable[A], count: int) -> Generator[T, None, None]:
    """Yield what a call returns for each item, in order; `count` of them are under way while one is consumed."""
    under_way: deque[Future[T]] = deque()
    try:
        for item in items:
            under_way.append(Process.submit(call, item))
            if len(under_way) > count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _cancel(futures: list[Future[T]]) -> None:
    for future in futures:
        future.cancel()
