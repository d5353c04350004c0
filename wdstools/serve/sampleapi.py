"""Samples over HTTP: lists, single ones with their fields, thumbnails, counts. What stands under /-/ beside streams.

Everything that may wait or compute is done in threads, of which each kind of work has its own, so that a slow query
holds up no picture.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wdstools.columns import take_fields
from wdstools.errors import WdsError
from wdstools.serve import payloads, thumbnails
from wdstools.serve.asking import Wrong, guarded, number, selection, tagged
from wdstools.serve.fieldkinds import class_column, column_type, is_image, kind_of
from wdstools.serve.ranges import precondition
from wdstools.serve.request import Request
from wdstools.serve.response import Response, as_json, full
from wdstools.serve.samplesets import SampleSet, SampleSets, plain
from wdstools.serve.selecting import Selections, neighbours
from wdstools.serve.settings import Settings
from wdstools.serve.tree import Tree

T = TypeVar("T")

log = logging.getLogger("wdstools")

PAGE = 1000  # samples of a list
COUNTS = 1000  # values that are counted
TEXT, HEX = 64 << 10, 4 << 10  # bytes of a field that are shown
QUEUE = 1000  # thumbnails that wait for their turn


class SampleApi:
    """The routes of one process. `sets`: what is served; `wait`: calls what reads shards, in a thread."""

    def __init__(self, tree: Tree, settings: Settings) -> None:
        self.sets = SampleSets(tree, settings)
        self.selections = Selections(settings.query_seconds)
        self._thumbnails = thumbnails.Thumbnails(settings.thumbnails)
        self._queries = ThreadPoolExecutor(4, thread_name_prefix="wds-serve-query")
        self._reads = ThreadPoolExecutor(8, thread_name_prefix="wds-serve-read")
        self._draws = ThreadPoolExecutor(2, thread_name_prefix="wds-serve-draw")
        self._drawing = 0
        if settings.annotations:  # to join a million takes a second: before somebody asks; who asks is told of errors
            self._queries.submit(self._all)

    def routes(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """The routes by their first name."""
        return {
            "sets": guarded(self._sets),
            "info": guarded(self._info),
            "samples": guarded(self._samples),
            "thumbnails": guarded(self._thumbnail),
            "counts": guarded(self._counts),
            "index": guarded(self._index),
        }

    def close(self) -> None:
        for pool in (self._queries, self._reads, self._draws):
            pool.shutdown(wait=False, cancel_futures=True)

    def compute(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call what looks at indexes, in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._queries, call, *args)

    def read(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call what reads shards, in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._reads, call, *args)

    def the_set(self, name: str | None) -> SampleSet:
        """Raises Wrong."""
        found = self.sets.get(name)
        if found is None:
            raise Wrong(404, f"there is no set {name!r}" if name else "there are no samples here")
        return found

    async def _sets(self, request: Request) -> Response:
        return as_json({"sets": await self.compute(self._all)})

    def _all(self) -> list[dict[str, Any]]:
        found = []
        for one in self.sets.all().values():
            try:
                found.append(about(one))
            except (WdsError, OSError) as error:  # the others are as good as before
                log.error("%s: %s", one.name, error)
        return found

    async def _info(self, request: Request) -> Response:
        def find() -> Response:
            samples = self.the_set(request.query.get("set"))
            return tagged(request, samples, lambda: as_json(_info(samples)))

        return await self.compute(find)

    async def _index(self, request: Request) -> Response:
        def find() -> Response:
            samples = self.the_set(request.query.get("set"))
            if not request.base:
                raise Wrong(400, "no Host")
            kind = "application/vnd.apache.arrow.file"
            return tagged(request, samples, lambda: full(200, kind, samples.dumps(request.base)))

        return await self.compute(find)

    async def _samples(self, request: Request) -> Response:
        raw = request.raw_path.removeprefix(b"/-/samples").removeprefix(b"/")
        if not raw:
            return await self.compute(self._list, request)
        names = [unquote_to_bytes(part).decode("utf-8", "surrogateescape") for part in raw.split(b"/")]
        return await self.read(self._one, request, names)

    def _list(self, request: Request) -> Response:
        samples = self.the_set(request.query.get("set"))
        offset, limit = number(request, "offset", 0), number(request, "limit", 60, most=PAGE)
        wanted = selection(request)

        def find() -> Response:
            rows = self.selections.rows(samples, wanted)
            page = [int(row) for row in rows[offset : offset + limit]]
            found = {"total": len(rows), "offset": offset, "limit": limit, "samples": describe(samples, page)}
            return as_json(found)

        return tagged(request, samples, find)

    def _one(self, request: Request, names: list[str]) -> Response:
        samples = self.the_set(request.query.get("set"))
        by_key = request.query.get("by") == "key"
        row, field = samples.row("/".join(names), by_key), ""
        if row is None and len(names) > 1:
            row, field = samples.row("/".join(names[:-1]), by_key), names[-1]
        if row is None:
            raise Wrong(404, f"there is no sample {'/'.join(names)[:500]!r}")
        if not field:
            return tagged(request, samples, lambda: as_json(self._page(request, samples, row)))
        found = payloads.find_field(samples, row, field)
        if found is None:
            raise Wrong(404, f"the sample has no field {field[:200]!r}")
        return payloads.prepare(samples, row, found, request, self.read)

    def _page(self, request: Request, samples: SampleSet, row: int) -> dict[str, Any]:
        """All about one sample."""
        (found,) = describe(samples, [row])
        shown = []
        for field in samples.index.fields(row):
            kind = kind_of(field.ext)
            line: dict[str, Any] = {"field": field.ext, "type": kind.type, "kind": kind.kind, "nbytes": field.nbytes}
            if kind.kind in ("json", "text", "number"):
                data = payloads.read_field(samples, row, field, TEXT)
                line["text"] = bytes(data).decode("utf-8", "replace")
            elif kind.kind == "hex":
                line["text"] = bytes(payloads.read_field(samples, row, field, HEX)).hex()
            shown.append(line)
        rows = self.selections.rows(samples, selection(request))
        position, before, after = neighbours(rows, row)
        return found | {"members": shown, "position": position, "previous": before, "next": after}

    async def _counts(self, request: Request) -> Response:
        def find() -> Response:
            samples = self.the_set(request.query.get("set"))
            return tagged(request, samples, lambda: as_json(self._count(request, samples)))

        return await self.compute(find)

    def _count(self, request: Request, samples: SampleSet) -> dict[str, Any]:
        name = request.query.get("column", "")
        table = samples.table
        if name not in table.column_names:
            raise Wrong(400, f"there is no column {name[:200]!r}; columns: {', '.join(table.column_names)}")
        rows = self.selections.rows(samples, selection(request))
        values = table.column(name)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if not (isinstance(rows, range) and len(rows) == len(table)):
            values = values.take(pa.array(np.asarray(rows)))
        try:
            counts = pc.value_counts(values)
        except pa.ArrowException as error:
            raise Wrong(400, f"column {name} is {values.type}, which cannot be counted") from error
        numbers = counts.field("counts").to_numpy()
        order = np.argsort(-numbers, kind="stable")[:COUNTS]
        shown = zip(counts.field("values").take(pa.array(order)).to_pylist(), numbers[order].tolist(), strict=True)
        lines = [{"value": plain(value), "count": count} for value, count in shown]
        return {"column": name, "counts": lines, "more": len(numbers) > COUNTS}

    async def _thumbnail(self, request: Request) -> Response:
        asked = _text(request.raw_path.removeprefix(b"/-/thumbnails").removeprefix(b"/"))
        name, field = request.query.get("set"), request.query.get("field")
        size = number(request, "size", 160, SIZES.start, SIZES.stop - 1)
        by_key = request.query.get("by") == "key"
        samples, row, etag = await self.compute(self._find_image, name, asked, by_key, field, size)
        tag = f'"{hashlib.sha256(etag.encode("utf-8", "surrogateescape")).hexdigest()[:24]}"'.encode()
        fixed = request.query.get("v") == samples.version
        headers = b"ETag: %b\r\nCache-Control: private, %b\r\n" % (
            tag, b"max-age=31536000, immutable" if fixed else b"no-cache",
        )  # fmt: skip
        if precondition(request.headers, tag, None) == 304:
            return Response(304, headers)
        found = self._thumbnails.get(etag)
        if found is None:
            if self._drawing >= QUEUE:
                raise Wrong(503, "too many thumbnails at once")
            self._drawing += 1
            try:
                future = asyncio.get_running_loop().run_in_executor(
                    self._draws, self._draw, samples, row, etag.rpartition("\n")[2], size, etag
                )
                found = await future
            finally:
                self._drawing -= 1
        return full(200, found.kind, found.data, headers)

    def _find_image(
        self, name: str | None, asked: str, by_key: bool, field: str | None, size: int
    ) -> tuple[SampleSet, int, str]:
        """(set, row, what names the thumbnail). Raises Wrong."""
        samples = self.the_set(name)
        row = samples.row(asked, by_key)
        if row is None:
            raise Wrong(404, f"there is no sample {asked[:500]!r}")
        if field is None:
            field = next((one.ext for one in samples.index.fields(row) if is_image(one.ext)), None)
            if field is None:
                raise Wrong(415, "the sample has no image")
        return samples, row, f"{samples.name}\n{samples.version}\n{row}\n{size}\n{field}"

    def _draw(self, samples: SampleSet, row: int, name: str, size: int, etag: str) -> thumbnails.Thumbnail:
        found = self._thumbnails.get(etag) or self._thumbnails.load(etag)
        if found is not None:
            return found
        field = payloads.find_field(samples, row, name)
        if field is None:
            raise Wrong(404, f"the sample has no field {name[:200]!r}")
        if not is_image(name):
            raise Wrong(415, f"{name[:200]} is no image")
        if field.nbytes > thumbnails.NBYTES:
            raise Wrong(415, f"{field.nbytes} bytes are more than {thumbnails.NBYTES}")
        data = payloads.read_field(samples, row, field)
        try:
            return self._thumbnails.put(etag, thumbnails.make(data, size))
        except thumbnails.NoPicture as error:
            raise Wrong(415, str(error)) from error
        except ModuleNotFoundError as error:
            raise Wrong(415, 'pillow is not installed: pip install "wdstools[images]"') from error


SIZES = thumbnails.SIZES


def about(samples: SampleSet) -> dict[str, Any]:
    index = samples.index
    return {
        "name": samples.name,
        "samples": len(samples.dataset),
        "shards": len(index.shards),
        "nbytes": samples.nbytes,
        "version": samples.version,
    }


def _info(samples: SampleSet) -> dict[str, Any]:
    table = samples.table
    types = {name: column_type(table.schema.field(name).type) for name in samples.columns}
    columns = [{"name": name, "type": kind, "joined": name in samples.joined} for name, kind in types.items()]
    fields = samples.kept("fields", lambda: _fields(table))
    images = [name for name in fields if is_image(name)]
    return about(samples) | {
        "fields": fields, "columns": columns, "class_column": class_column(types), "images": images,
    }  # fmt: skip


def _fields(table: pa.Table) -> dict[str, int]:
    """How many samples have each field, the most frequent first."""
    found: dict[str, int] = {}
    for chunk in take_fields(table):
        for ext, count in zip(chunk.exts, np.bincount(chunk.codes, minlength=len(chunk.exts)).tolist(), strict=True):
            if count:
                found[ext] = found.get(ext, 0) + count
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def describe(samples: SampleSet, rows: list[int]) -> list[dict[str, Any]]:
    """A line for each row."""
    index, found = samples.index, []
    names = samples.columns
    values = samples.table.select(names).take(pa.array(rows, pa.int64())).to_pylist() if names and rows else []
    for i, row in enumerate(rows):
        key, shard, start, end = index.locate(row)
        fields = [field.ext for field in index.fields(row)]
        found.append({
            "n": row,
            "key": key,
            "shard": index.shards.url[shard].rpartition("/")[2],
            "nbytes": end - start,
            "fields": fields,
            "image": next(filter(is_image, fields), None),
            "columns": {name: plain(value) for name, value in values[i].items()} if names else {},
        })  # fmt: skip
    return found


def _text(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "surrogateescape")
