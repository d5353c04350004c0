"""RemoteStore: objects behind a network, read in many requests at once, each repeated until it is right or hopeless.

Which client does what is in `clients`; of http, what the pages of the server show is listed (`httpfolders`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, TypeVar

from wdstools import httpfolders
from wdstools.clients import Client, Clients
from wdstools.errors import AccessError, PastEndError, StoreError
from wdstools.failures import NoRangesError
from wdstools.httpclient import HttpClient
from wdstools.inflight import Calls, Job, ahead
from wdstools.obstores import Obstore
from wdstools.ranges import Buffer, Range, scatter
from wdstools.retrying import Retries, Transient
from wdstools.retrying import wait as pause
from wdstools.storebase import Answer, Counted, Stat, Store, as_file, beyond

T = TypeVar("T")

FIRST = 256 * 1024  # bytes of the first request of a stream, which also tells the size
PART = 8 * 1024 * 1024  # bytes of the others
AT_ONCE = 4096  # files of a page whose sizes are asked for before the next
PUT = 64 * 1024 * 1024  # bytes of an object that is written in one request
AHEAD = 3  # parts of a stream that are under way while one is consumed


class RemoteStore(Store):
    """One bucket, container, host or other root of a URL. `scheme`: s3, gs, az, http, or one of fsspec's.

    `options`: storage_options as s3fs, gcsfs, adlfs or fsspec take them; what the environment says comes after them.
    """

    def __init__(self, scheme: str, root: str, options: Mapping[str, Any], retries: Retries) -> None:
        super().__init__()
        self.root = root
        self._scheme, self._options, self._retries = scheme, dict(options), retries
        self._clients = Clients(scheme, root, self._options, retries)
        self._known = False  # whether the other side has ever answered
        self._ranges = True  # whether it knows ranges, as far as known

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._scheme, self.root, self._options, self._retries)

    def read_ranges(self, path: str, ranges: Iterable[Range]) -> list[Buffer]:
        (found,) = self.read_many([(path, ranges)])
        if isinstance(found, StoreError):
            raise found
        return found

    def read_many(self, wanted: Iterable[tuple[str, Iterable[Range]]]) -> Iterator[list[Buffer] | StoreError]:
        jobs = [Job(path, list(ranges)) for path, ranges in wanted]
        self._after_fork()
        calls: Calls[Buffer] = Calls()
        clients = [self._prepare(job) for job in jobs]
        self._know(job for job, client in zip(jobs, clients, strict=True) if client and not client.verifies)
        alone = sum(len(job.reads) for job in jobs) == 1
        for number, (job, client) in enumerate(zip(jobs, clients, strict=True)):
            if client is not None and job.error is None and not alone:
                for start, end in job.reads:
                    calls.add(number, self._part, client, job, start, end)
        return self._answers(calls, jobs, clients if alone else None)

    def sizes(self, paths: Iterable[str]) -> Iterator[Stat | StoreError]:
        calls: Calls[Stat] = Calls()
        count = 0
        for count, path in enumerate(paths, 1):
            calls.add(count, self.size, path)
        return calls.outcomes(range(1, count + 1))

    def _prepare(self, job: Job) -> Client | None:
        """The client that reads an object; None: nothing is to be read."""
        if not job.reads:
            return None
        try:
            if (pinned := self._pins.get(job.path)) and job.reads[-1][1] > pinned.nbytes:
                raise beyond(self.url(job.path), job.reads[-1][1], pinned.nbytes)
            return self._clients.reader(job.path)
        except StoreError as error:
            job.error = error
            return None

    def _know(self, jobs: Iterable[Job]) -> None:
        """Pin objects before their first byte, where it does not bring the version along."""
        unknown = [job for job in jobs if job.path not in self._pins]
        for job, found in zip(unknown, self.sizes([job.path for job in unknown]), strict=True):
            job.error = found if isinstance(found, StoreError) else None

    def _part(self, client: Client, job: Job, start: int, end: int) -> Buffer:
        data = self._get(client, job.path, start, end).data
        if job.is_last():
            self._verify(client, job.path)
        return data

    def _answers(
        self, calls: Calls[Buffer], jobs: list[Job], alone: list[Client | None] | None
    ) -> Generator[list[Buffer] | StoreError, None, None]:
        """The ranges of each object; `alone`: the clients, where the one read there is needs no thread."""
        try:
            for number, job in enumerate(jobs):
                found: list[Buffer] | StoreError
                try:
                    if job.error is not None:
                        raise job.error
                    client = alone[number] if alone else None
                    bodies = [self._part(client, job, *job.reads[0])] if client else calls.results(number)
                    found = scatter(job.ranges, job.reads, bodies)
                    del bodies
                except StoreError as error:
                    found = error
                yield found
        finally:
            calls.cancel()

    def open(self, path: str) -> BinaryIO:
        self._after_fork()
        if not self._ranges:
            return as_file(self._whole(path), FIRST)
        client = self._clients.reader(path)
        try:
            try:
                first = self._get(client, path, 0, FIRST, True)
            except PastEndError:  # also the first byte, where there is none
                stat = self.size(path)
                if stat.nbytes:
                    raise
                first = Answer(b"", stat)
        except NoRangesError:
            if self._scheme != "http":
                raise
            self._ranges = False
            return as_file(self._whole(path), FIRST)
        return as_file(self._parts(client, path, first), FIRST)

    def put(self, path: str, data: Buffer) -> None:
        self._after_fork()
        files = self._clients.writer(path) if memoryview(data).nbytes <= PUT else self._clients.files("written to")
        self.forget(path)
        self._repeat(lambda: files.put(path, data))
        self.forget(path)

    def list(self, prefix: str = "", recursive: bool = False) -> list[str]:
        self._after_fork()
        files = self._clients.files("listed")
        return self._repeat(lambda: files.list(prefix, recursive))

    def listing(self, prefix: str = "", delimited: bool = False) -> Iterator[tuple[str, Stat | None]]:
        """Yield (path, Stat) of everything that begins with `prefix`, in no order; `delimited`: not below its next
        slash, but (path with a slash, None) for what is there. Paths of http are as URLs spell them."""
        if self._scheme == "http":
            yield from self._shown(prefix, delimited)
            return
        self._after_fork()
        client = self._clients.lister()
        if isinstance(client, Obstore) and not delimited:
            yield from self._retries.resume(lambda last: client.listing(prefix, after=last))
        else:
            yield from self._repeat(lambda: [*client.listing(prefix, delimited)])

    def _shown(self, prefix: str, delimited: bool) -> Iterator[tuple[str, Stat | None]]:
        """As listing, of folders that the server shows as pages; sizes and versions are asked for by HEAD."""
        self._after_fork()
        client = self._clients.plain()

        def ask(folder: str) -> tuple[list[str], list[str]]:
            stat, pieces = client.stream(folder, page=True)
            return httpfolders.names(self.url(folder), pieces, stat is not None)

        def page(folder: str) -> tuple[list[str], list[str]]:
            return self._repeat(partial(ask, folder))

        for folders, files in httpfolders.walk(self.root, prefix, delimited, page):
            yield from ((path, None) for path in folders)
            for start in range(0, len(files), AT_ONCE):
                paths = files[start : start + AT_ONCE]
                for path, found in zip(paths, self.sizes(paths), strict=True):
                    if isinstance(found, StoreError):
                        raise found
                    self.forget(path)
                    yield path, found

    def create(self, path: str, data: bytes) -> bool:
        """Write an object where there is none; false where there is one, which may be of a lost answer."""
        self._after_fork()
        files = self._clients.writer(path)
        self.forget(path)
        return self._repeat(lambda: files.create(path, data))

    def replace(self, path: str, data: bytes, was: Stat) -> bool | None:
        """Write an object over the version that was read, and over no other: false where it is another by now, also by
        a lost answer, or gone. None, and nothing is written: this store does not know such a condition."""
        self._after_fork()
        files = self._clients.writer(path)
        self.forget(path)
        etag = was.etag
        return None if etag is None else self._repeat(lambda: files.replace(path, data, etag))

    def remove(self, path: str) -> None:
        """Remove an object, or nothing where there is none."""
        self._after_fork()
        files = self._clients.writer(path)
        self.forget(path)
        self._repeat(lambda: files.remove(path))

    def upload(self, path: str, pieces: Iterator[Buffer], nbytes: int, at_once: int = 4) -> None:
        """Write an object that does not have to fit in memory, in parts of `nbytes`: it appears when all of it is
        there. Where something else than what was written may be under that name, remove it before: an upload whose
        last answer was lost is known by its size."""
        self._after_fork()
        files = self._clients.writer(path)
        self.forget(path)
        told = Counted(pieces)
        try:
            if isinstance(files, Obstore):
                files.upload(path, told, nbytes, at_once)
            else:
                files.upload(path, told, nbytes)
        except (StoreError, Transient) as failed:
            error = failed.error if isinstance(failed, Transient) else failed
            if told.error is not None:
                raise told.error from None
            if not told.ended or not self._has(path, told.nbytes):
                raise error from failed.__cause__
        self.forget(path)

    def _has(self, path: str, nbytes: int) -> bool:
        try:
            return self.size(path).nbytes == nbytes
        except StoreError:
            return False

    def abandon(self, prefix: str, mine: Callable[[str], bool]) -> int:
        """Abort the uploads to these paths that nobody completed; see Fsspec.abandon."""
        self._after_fork()
        files = self._clients.aborter()
        if files is None:
            return 0
        return self._repeat(lambda: files.abandon(prefix, mine))

    def _stat(self, path: str) -> Stat:
        self._after_fork()
        # An http server may refuse HEAD: our own client knows another way.
        client: Client = self._clients.plain() if self._scheme == "http" else self._clients.reader(path)
        try:
            return self._repeat(lambda: client.stat(path))
        except StoreError as error:
            if not client.verifies or type(error) not in (StoreError, AccessError):
                raise
            # no answer to HEAD has a body: that to a GET tells why, or HEAD alone is refused
            stat = self._repeat(lambda: client.get(path, 0, 1, True)).stat
            if stat is None:
                raise
            return stat

    def _get(self, client: Client, path: str, start: int, end: int, partly: bool = False) -> Answer:
        """One range, repeated until it is right, and of the object that was seen before."""
        try:
            answer = self._repeat(lambda: client.get(path, start, end, partly))
        except NoRangesError:
            if self._scheme != "http" or isinstance(client, HttpClient):
                raise
            plain = self._clients.plain()  # tells a web page from a server that knows no ranges
            answer = self._repeat(lambda: plain.get(path, start, end, partly))
        except StoreError as error:
            if type(error) in (StoreError, PastEndError) and path in self._pins:  # replaced by a shorter one?
                with contextlib.suppress(Transient):
                    self._pin(path, client.stat(path))
            raise
        if answer.stat is not None:
            self._pin(path, answer.stat)
        return answer

    def _parts(self, client: Client, path: str, first: Answer) -> Generator[Buffer, None, None]:
        """The answer with the FIRST bytes of an object, then the rest, read ahead."""
        yield first.data
        nbytes = first.stat.nbytes if first.stat is not None else self.size(path).nbytes
        spans = ((start, min(start + PART, nbytes)) for start in range(FIRST, nbytes, PART))
        with contextlib.closing(ahead(lambda span: self._get(client, path, *span), spans, AHEAD)) as answers:
            for answer in answers:
                yield answer.data
        self._verify(client, path)

    def _whole(self, path: str) -> Generator[Buffer, None, None]:
        """An object of a server that knows no ranges; after a break, from the start again up to where it broke."""
        client, have, failed = self._clients.plain(), 0, 0
        while True:
            try:
                stat, pieces = self._repeat(lambda: client.stream(path))
                if stat is not None:
                    self._pin(path, stat)
                skip = have
                for piece in pieces:
                    fresh = memoryview(piece)[skip:]
                    skip -= len(piece) - len(fresh)
                    if fresh:
                        have, failed = have + len(fresh), 0
                        yield fresh
                return
            except Transient as broken:
                failed += 1
                pinned = self._pins.get(path)
                proven = pinned is not None and (pinned.etag or pinned.mtime_ns)
                if failed >= self._retries.attempts or (have and not proven):
                    raise broken.error from broken.__cause__
                pause(self._retries.pause(failed, broken.after))

    def _verify(self, client: Client, path: str) -> None:
        """Where the bytes do not bring the ETag along, ask for it once they are there."""
        if not client.verifies:
            self._pin(path, self._stat(path))

    def _repeat(self, attempt: Callable[[], T]) -> T:
        def once() -> T:
            try:
                result = attempt()
            except Transient as failed:
                self._known = self._known or failed.contact
                raise
            self._known = True
            return result

        return self._retries.call(once, self._known)

    def _after_fork(self) -> bool:
        forked = super()._after_fork()
        if forked:
            self._clients.drop()
        return forked

    def http(self) -> HttpClient:
        """The plain client, for requests that are no reads of an object: each is one attempt."""
        self._after_fork()
        return self._clients.plain()
