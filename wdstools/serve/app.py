"""From a request to its answer: who may ask, which face it speaks, what it is about.

Objects of local buckets are answered at once; what may wait for a disk or a network is answered by a coroutine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from wdstools.errors import StoreError, WdsError
from wdstools.serve import front, gcs, pages, s3
from wdstools.serve.access import Guard
from wdstools.serve.aistore import NAMES, Archives
from wdstools.serve.asking import Wrong, failed, guarded
from wdstools.serve.blobs import Blob
from wdstools.serve.buckets import Bucket
from wdstools.serve.objects import OutOfRange, Unmet, answer
from wdstools.serve.remotes import Flights
from wdstools.serve.request import BadPath, Request, decode_path
from wdstools.serve.response import Response, redirect, text
from wdstools.serve.sampleapi import SampleApi
from wdstools.serve.settings import Settings
from wdstools.serve.tree import Tree
from wdstools.serve.virtual import Streams

T = TypeVar("T")
Answer: TypeAlias = Response | Coroutine[Any, Any, Response]
Route: TypeAlias = Callable[[Request], Response | Awaitable[Response]]

log = logging.getLogger("wdstools")

THREADS = 32  # for listings, and for asking remote stores
READS = ("GET", "HEAD")
ALLOW = b"Allow: GET, HEAD, OPTIONS\r\n"


class App:
    """The answers of one process. `routes`: what stands under /-/, by its first name; `front`: the page of GET / for
    browsers, where there is one."""

    def __init__(self, settings: Settings) -> None:
        self.tree = Tree(settings.sources, settings.storage_options, settings.cache)
        self.flights = Flights()
        self.routes: dict[str, Route] = {}
        self.front: Route | None = None
        self.archive: Callable[[Request, Blob], Response] | None = None  # answers about a part of a shard, in a thread
        self.samples: SampleApi | None = None
        if settings.samples:
            self._serve_samples(settings)
        self._open = {"health"}  # routes for everybody
        self._guard = Guard(settings) if settings.guarded else None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="wds-serve-list")
        self._hot: dict[bytes, tuple[Bucket, str]] = {}  # targets that named an object, and nothing else

    def _serve_samples(self, settings: Settings) -> None:
        self.samples = SampleApi(self.tree, settings)
        self.routes |= self.samples.routes() | Streams(self.samples).routes()
        self.archive = Archives().answer
        self.front, self.routes["gallery"] = front.page, front.static

    def close(self) -> None:
        if self.samples is not None:
            self.samples.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.flights.close()

    def handle(self, request: Request) -> Answer:
        """The answer, or a coroutine that returns it. Raises nothing."""
        try:
            if self._guard is not None and (refusal := self._check(request)) is not None:
                return refusal
            hot = self._hot.get(request.target)
            if hot is not None and request.method in READS:
                blob = hot[0].find(hot[1])
                if blob is not None:
                    return answer(request, blob, self.flights)
                del self._hot[request.target]
            found = self._route(request)
        except Exception as error:  # noqa: BLE001 - one request must not take the connections of the others along
            return self._failed(request, error)
        return found if isinstance(found, Response) else self._later(request, found)

    async def _later(self, request: Request, found: Awaitable[Response]) -> Response:
        try:
            return await found
        except Exception as error:  # noqa: BLE001 - as in handle()
            return self._failed(request, error)

    def _failed(self, request: Request, error: Exception) -> Response:
        if isinstance(error, OutOfRange):
            lines = b"Content-Range: bytes */%d\r\n" % error.nbytes
            return s3.error("InvalidRange", _shown(request), lines)
        if isinstance(error, Unmet):
            return s3.error("PreconditionFailed", _shown(request))
        if isinstance(error, BadPath):
            return s3.error("InvalidURI") if s3.is_spoken(request) else text(400, str(error))
        log.error("%s %s: %s: %s", request.method, _shown(request), type(error).__name__, error, exc_info=_bug(error))
        if s3.is_spoken(request):
            return s3.error("ServiceUnavailable" if isinstance(error, WdsError | OSError) else "InternalError")
        if isinstance(error, WdsError | OSError):  # what is in the message may be nobody's business
            return text(502 if isinstance(error, StoreError) else 503, "what is served cannot be read now")
        return text(500, "an error in wds-serve; its log has more")

    def _check(self, request: Request) -> Response | None:
        """The answer to who may not ask."""
        if self._guard is None or request.method == "OPTIONS":
            return None
        if any(request.raw_path == f"/-/{name}".encode() for name in self._open):
            return None
        if self.front is not None and front.is_public(request):
            return None
        refusal = self._guard.refusal(request)
        if refusal is not None and refusal.status == 401 and request.raw_path.startswith(b"/-/"):
            return failed(401, "a token is needed", b'WWW-Authenticate: Bearer realm="wds-serve"\r\n')
        return refusal

    def _route(self, request: Request) -> Response | Awaitable[Response]:
        raw = request.raw_path
        if request.method == "OPTIONS":
            return Response(204, ALLOW)
        if raw.startswith(b"/-/"):
            name = raw[3:].partition(b"/")[0].decode("latin-1")
            route = self.routes.get(name)
            return route(request) if route is not None else text(404, f"nothing is at /-/{name[:100]}")
        if request.method not in READS:
            if s3.is_spoken(request):
                return s3.error("MethodNotAllowed", _shown(request), ALLOW)
            return text(405, "only reading is possible here", ALLOW)
        api = gcs.split(raw)
        if api is not None:
            return self._gcs(request, *api)
        path = decode_path(raw)
        if path == "/":
            return self._top(request)
        bare = self.tree.buckets.get(path[1:].removesuffix("/"))
        if bare is not None:
            listing = s3.is_spoken(request) or bool((s3.LISTING | s3.ELSEWHERE) & request.query.keys())
            if listing or request.method == "HEAD":
                return self._bucket(request, bare)
        return self._path(request, path)

    def _top(self, request: Request) -> Response | Awaitable[Response]:
        buckets = list(self.tree.buckets.values())
        if s3.is_spoken(request):
            return s3.list_buckets(buckets)
        if self.front is not None and front.is_for(request):
            return self.front(request)
        if self.tree.single is not None:
            return self._folder(self.tree.single, "", "/", request)
        return pages.names("/", [(bucket.name + "/", None) for bucket in buckets])

    def _bucket(self, request: Request, bucket: Bucket) -> Response | Awaitable[Response]:
        if request.method == "HEAD":
            return Response(200, b"Content-Type: application/xml\r\nx-amz-bucket-region: us-east-1\r\n")
        return self.wait(s3.bucket_answer, request, bucket)

    def _path(self, request: Request, path: str) -> Response | Awaitable[Response]:
        """What a path without an API of its own means: an object, a folder, or nothing."""
        places = self.tree.places(path)
        if self.archive is not None and b"arch" in request.raw_query and NAMES & request.query.keys():
            return guarded(lambda request: self._in_archive(request, places))(request)
        if any(bucket.slow for bucket, _ in places):
            return self._search(request, path, places)
        for bucket, key in places:
            blob = bucket.find(key)
            if blob is not None:
                return self._object(request, blob, bucket, key)
        return self._missing(request, path, places)

    async def _search(self, request: Request, path: str, places: list[tuple[Bucket, str]]) -> Response:
        for bucket, key in places:
            blob = await self.wait(bucket.find, key)
            if blob is not None:
                return self._object(request, blob, bucket, key)
        found = self._missing(request, path, places)
        return found if isinstance(found, Response) else await found

    async def _in_archive(self, request: Request, places: list[tuple[Bucket, str]]) -> Response:
        for bucket, key in places:
            blob = await self.wait(bucket.find, key)
            if blob is not None and self.archive is not None:
                return await self.wait(self.archive, request, blob)
        raise Wrong(404, "nothing is here")

    def _object(self, request: Request, blob: Blob, bucket: Bucket, key: str) -> Response:
        query = request.raw_query
        if query:
            other = request.query.keys() & s3.ELSEWHERE
            if other:
                return s3.error("NotImplemented", _shown(request))
            if request.query.get("versionId", "null") not in ("null", ""):
                return s3.error("NoSuchVersion", _shown(request))
        elif not bucket.slow:
            if len(self._hot) > 10_000:
                self._hot.clear()
            self._hot[request.target] = bucket, key
        return answer(request, blob, self.flights)

    def _missing(self, request: Request, path: str, places: list[tuple[Bucket, str]]) -> Response | Awaitable[Response]:
        """A folder, or nothing."""
        named = path[1:].partition("/")[0] in self.tree.buckets
        if s3.is_spoken(request) or (named and not path.endswith("/") and path.count("/") > 1):
            return s3.error("NoSuchKey" if named else "NoSuchBucket", _shown(request))
        return self._folders(request, path, places)

    async def _folders(self, request: Request, path: str, places: list[tuple[Bucket, str]]) -> Response:
        if path[1:] in self.tree.buckets:
            return redirect(f"./{request.raw_path[1:].decode('latin-1')}/")
        if path.endswith("/"):
            for bucket, key in places:
                found = await self.wait(pages.folder, bucket, key, path)
                if found is not None:
                    return found
        return text(404, "nothing is here")

    def _folder(self, bucket: Bucket, prefix: str, title: str, request: Request) -> Awaitable[Response]:
        async def make() -> Response:
            return await self.wait(pages.folder, bucket, prefix, title) or text(404, "nothing is here")

        return make()

    def _gcs(
        self, request: Request, download: bool, name: bytes, key: bytes | None, objects: bool
    ) -> Response | Awaitable[Response]:
        if not name:
            return gcs.list_buckets(request, list(self.tree.buckets.values()))
        bucket = self.tree.buckets.get(decode_path(name))
        if bucket is None:
            return gcs.not_found(f"bucket: {name.decode('latin-1')[:200]}")
        if key is None:
            return self.wait(gcs.list_objects, request, bucket) if objects else gcs.about_bucket(request, bucket)
        return self._gcs_object(request, download, bucket, decode_path(key))

    async def _gcs_object(self, request: Request, download: bool, bucket: Bucket, key: str) -> Response:
        blob = await self.wait(bucket.find, key) if bucket.slow else bucket.find(key)
        if blob is None:
            return gcs.not_found(f"object: {bucket.name}/{key[:500]}")
        if not download and request.query.get("alt") != "media":
            return gcs.about_object(request, bucket.name, key, blob)
        return answer(request, blob, self.flights)

    def wait(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call something that blocks, in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *args)


def _shown(request: Request) -> str:
    """The path of a request for messages: without its query, where a token may be."""
    return request.raw_path.decode("latin-1")[:1000]


def _bug(error: Exception) -> bool:
    return not isinstance(error, WdsError | OSError)
