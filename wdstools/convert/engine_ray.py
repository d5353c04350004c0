"""Shards whose samples are known beforehand, each a task of Ray: the only file that imports ray.

A task is idempotent: it reads its samples, computes them where they are to be computed, and writes its shard and the
part of its index whole or not at all, under temporary names of its own, so that Ray may repeat it when a worker or a
node is lost. What it has to know comes with it; nothing of the plan is kept on the cluster. The driver holds the lock,
merges the parts and writes the rest, as without Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from wdstools.convert import counted, home, place, planned, transform
from wdstools.convert.destination import ShardPlan
from wdstools.convert.entries import Entries, Entry
from wdstools.convert.journal import Written
from wdstools.convert.options import Options, Summary
from wdstools.convert.plan import Plan
from wdstools.convert.planned import Progress, Stopped, entries_of, what_is_left
from wdstools.convert.sources import Listing
from wdstools.errors import SourceError, StoreError, WdsError

RETRIES = 16  # of a task whose worker or node is lost
_WAIT = 1.0  # seconds
_LOOK = 0.2  # seconds between two looks of a task whether it is to stop
_PATIENCE = 30.0  # seconds until tasks that do not stop are killed
_KV = "ray.experimental.internal_kv"


def write_on_ray(ready: Plan, options: Options, progress: Progress, summary: Summary) -> list[list[Written]]:
    """Write the shards of a plan on the cluster at options.address; return them, by target. Without an address one is
    started on this machine. Raises StoreError without a cluster. make_plan has refused what has no plan of shards."""
    done, todo = what_is_left(ready, options, progress, summary)
    if todo:
        with _Cluster(options) as cluster:
            listing = cluster.put(_portable(ready.listing))
            tasks = (
                (t, s, _Task(shard, [tuple(entry) for entry in entries_of(ready, t, shard)])) for t, s, shard in todo
            )
            about = _About(ready.lift, options, ready.owner, f"wds-shard-stop-{secrets.token_hex(8)}".encode())
            if ready.counted:
                about = about._replace(home=home.of_this_process(ready.description))
            for t, s, result in cluster.run(tasks, listing, about):
                if isinstance(result, BaseException):
                    raise result
                done[t][s] = result
                summary.skipped += result.skipped
                shard = (ready.shards or [])[t][s]
                progress(shard.stop - shard.start, result.nbytes)
    return [[written for written in found if written is not None] for found in done]


def _portable(listing: Listing) -> Listing:
    """What a task needs to read samples, whatever its current folder is."""
    root, moved = listing.root, listing.moved
    if not place.is_remote(root) and not root.startswith("/"):
        root = os.path.join(os.path.abspath(root), "")
        moved = (root, listing.root)
    return dataclasses.replace(listing, root=root, moved=moved, entries=Entries(), stream=None)


class _Task(NamedTuple):
    """A shard to write, of these entries."""

    shard: ShardPlan
    entries: list[tuple[Any, ...]]


class _About(NamedTuple):
    """What is the same for all tasks. `stop`: a key that is put on the cluster where they are to stop; `home`: None
    where samples are copied."""

    lift: tuple[str, ...] | None
    options: Options
    owner: tuple[str, str]
    stop: bytes
    home: home.Home | None = None


def _look_for(stop: bytes) -> planned.Progress:
    """Return a function that raises Stopped, now and then looking whether the key is there."""
    kv = importlib.import_module(_KV)
    looked = 0.0

    def tell(samples: int, nbytes: int) -> None:
        nonlocal looked
        now = time.monotonic()
        if now - looked >= _LOOK:
            looked = now
            if kv._internal_kv_exists(stop):
                raise Stopped

    return tell


def _write(listing: Listing, task: _Task, about: _About) -> Written | BaseException:
    """The task. What is wrong with source or destination comes back as a value: only a lost worker is a failure."""
    path, options = task.shard.path, about.options

    def check() -> None:
        if about.owner[0]:
            from wdstools.convert.lock import check_owner

            check_owner(*about.owner)

    tell = _look_for(about.stop)
    try:
        tell(0, 0)
        if not place.is_remote(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        check()
        entries = (Entry(*entry) for entry in task.entries)
        if about.home is None:
            return planned.write_shard(listing, entries, path, about.lift or (), options, check, tell)
        with contextlib.ExitStack() as stack:
            stack.enter_context(home.as_at(about.home, options))
            groups = transform.here(stack, options)(transform.read(listing, entries))
            return counted.write_shard(listing, groups, task.shard, about.lift, options, check, tell)
    except (WdsError, OSError, Stopped) as error:
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
        self, tasks: Iterator[tuple[int, int, _Task]], listing: Any, about: _About
    ) -> Iterator[tuple[int, int, Written | BaseException]]:
        """Yield (target, number, result) as they come. No more tasks are under way than the cluster has room for, twice
        over."""
        ray = self._ray
        asked: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        if about.options.map is not None and not self._mine:  # or it could meet modules as an earlier job found them
            asked["runtime_env"] = {"env_vars": {"WDS_SHARD_RUN": secrets.token_hex(8)}}
        write = ray.remote(_write).options(**asked)
        pending: dict[Any, tuple[int, int, str]] = {}
        more = True
        try:
            while more or pending:
                room = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
                while more and len(pending) < room:
                    given = next(tasks, None)
                    if given is None:
                        more = False
                        break
                    t, s, task = given
                    path = place.full(task.shard.path)
                    future = write.remote(listing, task._replace(shard=task.shard._replace(path=path)), about)
                    pending[future] = (t, s, path)
                finished, _ = ray.wait(list(pending), num_returns=1, timeout=_WAIT) if pending else ([], [])
                for future in finished:
                    t, s, path = pending.pop(future)
                    yield t, s, self._result(future, path, about.options)
        finally:
            self._stop(list(pending), about.stop)

    def _stop(self, pending: list[Any], stop: bytes) -> None:
        """Let tasks end. ray.cancel() is for those that do not: where a task that waits begins at the same moment, Ray
        2.60 aborts this process ("Tried to complete task that was not pending")."""
        if not pending:
            return
        kv = importlib.import_module(_KV)
        kv._internal_kv_put(stop, b"1")
        _, left = self._ray.wait(pending, num_returns=len(pending), timeout=_PATIENCE)
        for future in left:
            self._ray.cancel(future, force=True)
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=_PATIENCE)
        kv._internal_kv_del(stop)

    def _result(self, future: Any, path: str, options: Options) -> Written | BaseException:
        exceptions = self._ray.exceptions
        try:
            found: Written | BaseException = self._ray.get(future)
        except exceptions.RayTaskError as error:
            found = error.cause if isinstance(error.cause, BaseException) else error
        except exceptions.RayError as error:
            why = "" if options.map is None else f", or --map {options.map} ends its process"
            return StoreError(
                f"{path}: ray lost its task {RETRIES + 1} times{why}: {error}. The same command again goes on from here"
            )
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
