"""Shards whose contents are known beforehand, each a task of Ray: the only file that imports ray.

A task is idempotent: it writes its shard and the part of its index whole or not at all, under temporary names of its
own, so that Ray may repeat it when a worker or a node is lost. What it has to know comes with it; nothing of the plan
is kept on the cluster. The driver holds the lock, merges the parts and writes the rest, as without Ray.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from wdstools.convert import place
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.journal import Written
from wdstools.convert.options import Options, Summary
from wdstools.convert.plan import Plan
from wdstools.convert.planned import Progress, entries_of, what_is_left, write_shard
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError, StoreError, WdsError

RETRIES = 16  # of a task whose worker or node is lost
_WAIT = 1.0  # seconds


def write_on_ray(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Written]]:
    """Write the shards of a plan on the cluster at options.address; return them, by target. Without an address one is
    started on this machine. Raises StoreError without a cluster. make_plan has refused what has no plan
    by sizes."""
    done, todo = what_is_left(ready, options, progress, summary)
    if todo:
        with _Cluster(options) as cluster:
            listing = cluster.put(_portable(ready.listing))
            tasks = (
                (t, s, shard.path, [tuple(entry) for entry in entries_of(ready, t, shard)]) for t, s, shard in todo
            )
            for t, s, result in cluster.run(tasks, listing, ready.lift or (), options, ready.owner):
                if isinstance(result, BaseException):
                    raise result
                done[t][s] = result
                summary.skipped += result.skipped
                progress(result.nsamples + len(result.skipped), result.nbytes)
    return [[written for written in found if written is not None] for found in done]


def _portable(listing: Listing) -> Listing:
    """What a task needs to read samples, whatever its current folder is."""
    root = listing.root
    if not place.is_remote(root) and not root.startswith("/"):
        root = os.path.join(os.path.abspath(root), "")
    return dataclasses.replace(listing, root=root, entries=Entries(), stream=None)


def _write(
    listing: Listing,
    path: str,
    entries: list[tuple[Any, ...]],
    lift: tuple[str, ...],
    options: Options,
    owner: tuple[str, str],
) -> Written | BaseException:
    """The task. What is wrong with source or destination comes back as a value: only a lost worker is a failure."""

    def check() -> None:
        if owner[0]:
            from wdstools.convert.lock import check_owner

            check_owner(*owner)

    try:
        if not place.is_remote(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        check()
        given = (Entry(*entry) for entry in entries)
        return write_shard(listing, given, path, lift, options, check, lambda samples, nbytes: None)
    except (WdsError, OSError) as error:
        return error


class _Cluster:
    """A connection to Ray; what was started here is stopped with it."""

    def __init__(self, options: Options) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise SourceError(f"--engine ray needs Ray: pip install ray ({error})") from error
        self._ray = ray
        self._mine = not ray.is_initialized()
        self._handler: Any = None
        if not self._mine:
            return
        self._handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
        address = options.address or os.environ.get("RAY_ADDRESS") or "local"
        more: dict[str, Any] = {}
        if address == "local":
            more = {"include_dashboard": False, "num_cpus": options.workers or os.cpu_count() or 1}
        try:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if host and port.isdigit():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), 10.0).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **more)
        except (OSError, ValueError, RuntimeError) as error:
            self._restore()
            raise StoreError(f"ray at {address}: cannot be reached or started: {error}") from error

    def put(self, value: object) -> Any:
        try:
            return self._ray.put(value)
        except TypeError as error:
            raise SourceError(f"this source cannot be sent to other machines: use --engine local ({error})") from error

    def run(
        self,
        tasks: Iterator[tuple[int, int, str, list[tuple[Any, ...]]]],
        listing: Any,
        lift: tuple[str, ...],
        options: Options,
        owner: tuple[str, str],
    ) -> Iterator[tuple[int, int, Written | BaseException]]:
        """Yield (target, number, result) as they come. No more tasks are under way than the cluster has room for, twice
        over."""
        ray = self._ray
        task = ray.remote(_write).options(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")
        pending: dict[Any, tuple[int, int]] = {}
        more = True
        try:
            while more or pending:
                room = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
                while more and len(pending) < room:
                    given = next(tasks, None)
                    if given is None:
                        more = False
                        break
                    t, s, path, entries = given
                    pending[task.remote(listing, place.full(path), entries, lift, options, owner)] = (t, s)
                finished, _ = ray.wait(list(pending), num_returns=1, timeout=_WAIT) if pending else ([], [])
                for future in finished:
                    t, s = pending.pop(future)
                    yield t, s, self._result(future)
        finally:
            for future in pending:
                ray.cancel(future, force=True)
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=30.0)

    def _result(self, future: Any) -> Written | BaseException:
        exceptions = self._ray.exceptions
        try:
            found: Written | BaseException = self._ray.get(future)
        except exceptions.RayTaskError as error:
            found = error.cause if isinstance(error.cause, BaseException) else error
        except exceptions.RayError as error:
            return StoreError(f"ray lost a task {RETRIES + 1} times: {error}. The same command again goes on from here")
        return found

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            self._ray.shutdown()
            self._restore()

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)
