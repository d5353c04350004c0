"""The GCS face: the JSON API, reading. The XML API is what the S3 face answers; objects themselves are in `objects`."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from wdstools.serve.blobs import Blob
from wdstools.serve.buckets import Bucket
from wdstools.serve.listing import MOST, from_token, is_text, page, token
from wdstools.serve.request import Request
from wdstools.serve.response import Response, as_json
from wdstools.serve.s3 import timestamp

_PATH = re.compile(rb"(?:/(download|upload))?/storage/v1/b(?:/([^/]*)(?:/o(?:/(.*))?)?)?(/?)")


def split(raw_path: bytes) -> tuple[bool, bytes, bytes | None, bool] | None:
    """(whether it is a download, bucket, object, whether it is about objects) of a path, still encoded; None: it is no
    path of this API. No bucket: b""; no object: None."""
    match = _PATH.fullmatch(raw_path)
    if match is None or match[1] == b"upload":
        return None
    about_objects = re.search(rb"/b/[^/]*/o", raw_path) is not None
    return match[1] is not None, match[2] or b"", match[3] or None, about_objects


def error(status: int, reason: str, message: str) -> Response:
    detail = {"domain": "global", "reason": reason, "message": message}
    return as_json({"error": {"code": status, "message": message, "errors": [detail]}}, status)


def not_found(what: str) -> Response:
    return error(404, "notFound", f"No such {what}")


def list_buckets(request: Request, buckets: list[Bucket]) -> Response:
    return as_json({"kind": "storage#buckets", "items": [_bucket(request, bucket) for bucket in buckets]})


def about_bucket(request: Request, bucket: Bucket) -> Response:
    return as_json(_bucket(request, bucket))


def _bucket(request: Request, bucket: Bucket) -> dict[str, Any]:
    return {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{request.base}/storage/v1/b/{quote(bucket.name, safe='')}",
        "location": "US",
        "locationType": "region",
        "storageClass": "STANDARD",
        "timeCreated": timestamp(0),
        "updated": timestamp(0),
    }


def about_object(request: Request, bucket: str, key: str, blob: Blob) -> Response:
    return as_json(_object(request, bucket, key, blob.nbytes, blob.version.strip('"'), blob.mtime_ns))


def list_objects(request: Request, bucket: Bucket) -> Response:
    """A page of a bucket. May wait for it. StoreError."""
    query = request.query
    given = query.get("maxResults", "") or str(MOST)
    try:
        if not re.fullmatch(r"[0-9]{1,9}", given) or int(given) < 1:
            raise ValueError("maxResults is a number from 1")
        after = from_token(query["pageToken"]) if query.get("pageToken") else ""
    except ValueError as wrong:
        return error(400, "invalid", str(wrong))
    start = query.get("startOffset", "")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if start and not after:
        after = _before(start)
    found = page(bucket, prefix, delimiter, after, min(int(given), MOST))
    answer: dict[str, Any] = {"kind": "storage#objects"}
    if found.objects:
        answer["items"] = [
            _object(request, bucket.name, e.key, e.nbytes, e.etag or "", e.mtime_ns)
            for e in found.objects
            if is_text(e.key)
        ]
    if found.prefixes:
        answer["prefixes"] = [p for p in found.prefixes if is_text(p)]
    if found.last is not None:
        answer["nextPageToken"] = token(found.last)
    return as_json(answer)


def _before(key: str) -> str:
    """The last text before a key, near enough: startOffset includes what it names, `after` does not."""
    return key[:-1] + chr(ord(key[-1]) - 1) + "\U0010ffff" if ord(key[-1]) else key[:-1]


def _object(request: Request, bucket: str, key: str, nbytes: int, etag: str, mtime_ns: int | None) -> dict[str, Any]:
    path = f"/storage/v1/b/{quote(bucket, safe='')}/o/{quote(key, safe='', errors='surrogateescape')}"
    when = timestamp(mtime_ns)
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{key}/{mtime_ns or 0}",
        "name": key,
        "bucket": bucket,
        "generation": str((mtime_ns or 0) // 1000),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
        "size": str(nbytes),
        "etag": etag,
        "timeCreated": when,
        "updated": when,
        "selfLink": request.base + path,
        "mediaLink": f"{request.base}/download{path}?alt=media",
    }
