"""The S3 face: what AWS's REST API answers to reading, path style. Objects themselves are in `objects`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import quote
from xml.sax.saxutils import escape

from wdstools.serve.buckets import Bucket, Entry
from wdstools.serve.listing import MOST, from_token, is_text, page, token
from wdstools.serve.request import Request
from wdstools.serve.response import Response, full

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
REGION = "us-east-1"

# Parameters that make a request one about something else than the object or the list of objects.
ELSEWHERE = {
    "accelerate", "acl", "analytics", "attributes", "cors", "encryption", "intelligent-tiering", "inventory",
    "legal-hold", "lifecycle", "logging", "metrics", "notification", "object-lock", "ownershipControls", "policy",
    "policyStatus", "publicAccessBlock", "replication", "requestPayment", "restore", "retention", "select", "tagging",
    "torrent", "uploadId", "uploads", "versions", "website",
}  # fmt: skip
LISTING = {
    "list-type", "prefix", "delimiter", "marker", "max-keys", "encoding-type", "continuation-token", "start-after",
    "fetch-owner", "location", "versioning",
}  # fmt: skip

CODES = {
    "AccessDenied": (403, "Access Denied"),
    "AuthorizationHeaderMalformed": (400, "The authorization header is malformed"),
    "AuthorizationQueryParametersError": (400, "The authorization query parameters are malformed"),
    "InternalError": (500, "We encountered an internal error. Please try again."),
    "InvalidAccessKeyId": (403, "The AWS Access Key Id you provided does not exist in our records."),
    "InvalidArgument": (400, "Invalid Argument"),
    "InvalidRange": (416, "The requested range is not satisfiable"),
    "InvalidURI": (400, "Couldn't parse the specified URI."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "NoSuchBucket": (404, "The specified bucket does not exist"),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NoSuchVersion": (404, "The specified version does not exist."),
    "NotImplemented": (501, "A header or query you provided implies functionality that is not implemented."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold"),
    "RequestTimeTooSkewed": (403, "The difference between the request time and the current time is too large."),
    "ServiceUnavailable": (503, "Please reduce your request rate."),
    "SignatureDoesNotMatch": (
        403,
        "The request signature we calculated does not match the signature you provided. Check your key and signing "
        "method.",
    ),
    "XAmzContentSHA256Mismatch": (400, "The provided 'x-amz-content-sha256' header does not match what was computed."),
}


def is_signed(request: Request) -> bool:
    return request.headers.get(b"authorization", b"").startswith(b"AWS4") or b"X-Amz-" in request.raw_query


def is_spoken(request: Request) -> bool:
    """Whether a client talks S3, as far as its headers tell: all SDKs of AWS do."""
    return is_signed(request) or any(name.startswith((b"x-amz-", b"amz-sdk-")) for name in request.headers)


def error(code: str, resource: str = "", headers: bytes = b"", message: str = "") -> Response:
    """An error as AWS writes it."""
    status, said = CODES[code]
    parts = [f"<Code>{code}</Code><Message>{_text(message or said)}</Message>"]
    if resource:
        bucket, _, key = resource.removeprefix("/").partition("/")
        if code == "NoSuchKey":
            parts.append(f"<Key>{_text(key)}</Key>")
        elif code == "NoSuchBucket":
            parts.append(f"<BucketName>{_text(bucket)}</BucketName>")
        parts.append(f"<Resource>{_text(resource)}</Resource>")
    return _xml("<Error>" + "".join(parts) + "<RequestId>0</RequestId></Error>", status, headers)


def list_buckets(buckets: list[Bucket]) -> Response:
    rows = "".join(
        f"<Bucket><Name>{_text(b.name)}</Name><CreationDate>2000-01-01T00:00:00.000Z</CreationDate></Bucket>"
        for b in buckets
    )
    owner = "<Owner><ID>wds</ID><DisplayName>wds</DisplayName></Owner>"
    return _xml(f"<ListAllMyBucketsResult {XMLNS}>{owner}<Buckets>{rows}</Buckets></ListAllMyBucketsResult>")


def bucket_answer(request: Request, bucket: Bucket) -> Response:
    """GET of a bucket: its list, location or versioning. May wait for the bucket. StoreError."""
    query = request.query
    if ELSEWHERE & query.keys():
        return error("NotImplemented", f"/{bucket.name}")
    if "location" in query:
        return _xml(f"<LocationConstraint {XMLNS}/>")  # us-east-1 is written as nothing
    if "versioning" in query:
        return _xml(f"<VersioningConfiguration {XMLNS}/>")
    try:
        return _list(bucket, query)
    except ValueError as wrong:
        return error("InvalidArgument", f"/{bucket.name}", message=str(wrong))


def _list(bucket: Bucket, query: dict[str, str]) -> Response:
    """Raises ValueError: an argument is wrong."""
    second = query.get("list-type") == "2"
    if query.get("list-type", "2") != "2":
        raise ValueError("list-type is 2 or not there")
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    encoded = query.get("encoding-type")
    if encoded not in (None, "url"):
        raise ValueError("Invalid Encoding Method specified in Request")
    given = query.get("max-keys", "") or str(MOST)
    if not re.fullmatch(r"[0-9]{1,10}", given) or int(given) > 2**31 - 1:
        raise ValueError("Argument maxKeys must be an integer between 0 and 2147483647")
    if not second:
        after = query.get("marker", "")
    elif "continuation-token" in query:
        after = from_token(query["continuation-token"])
    else:
        after = query.get("start-after", "")
    found = page(bucket, prefix, delimiter, after, min(int(given), MOST))

    def name(key: str) -> str:
        return quote(key, safe="/-_.~*!'()", errors="surrogateescape") if encoded else _text(key)

    def sent(key: str) -> bool:
        return encoded is not None or is_text(key)

    rows = [f"<Name>{_text(bucket.name)}</Name><Prefix>{name(prefix)}</Prefix>"]
    if second:
        count = len(found.objects) + len(found.prefixes)
        rows.append(f"<KeyCount>{count}</KeyCount>")
        if "continuation-token" in query:
            rows.append(f"<ContinuationToken>{_text(query['continuation-token'])}</ContinuationToken>")
        if "start-after" in query:
            rows.append(f"<StartAfter>{name(after)}</StartAfter>")
        if found.last is not None:
            rows.append(f"<NextContinuationToken>{token(found.last)}</NextContinuationToken>")
    else:
        rows.append(f"<Marker>{name(after)}</Marker>")
        if found.last is not None:
            rows.append(f"<NextMarker>{name(found.last)}</NextMarker>")
    rows.append(f"<MaxKeys>{given}</MaxKeys>")
    if delimiter:
        rows.append(f"<Delimiter>{name(delimiter)}</Delimiter>")
    if encoded:
        rows.append("<EncodingType>url</EncodingType>")
    rows.append(f"<IsTruncated>{'false' if found.last is None else 'true'}</IsTruncated>")
    rows += [_contents(name(entry.key), entry) for entry in found.objects if sent(entry.key)]
    rows += [f"<CommonPrefixes><Prefix>{name(p)}</Prefix></CommonPrefixes>" for p in found.prefixes if sent(p)]
    return _xml(f"<ListBucketResult {XMLNS}>" + "".join(rows) + "</ListBucketResult>")


def _contents(name: str, entry: Entry) -> str:
    return (
        f"<Contents><Key>{name}</Key><LastModified>{timestamp(entry.mtime_ns)}</LastModified>"
        f"<ETag>&quot;{_text(entry.etag or '')}&quot;</ETag><Size>{entry.nbytes}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def timestamp(mtime_ns: int | None) -> str:
    """A time as S3 and GCS write it in bodies: 2026-11-21T14:41:00.123Z."""
    when = datetime.fromtimestamp((mtime_ns or 0) // 10**6 / 1000, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.") + f"{when.microsecond // 1000:03d}Z"


def _text(value: str) -> str:
    return escape("".join(c if is_text(c) else "?" for c in value), {'"': "&quot;"})


def _xml(body: str, status: int = 200, headers: bytes = b"") -> Response:
    text = '<?xml version="1.0" encoding="UTF-8"?>\n' + body
    return full(status, "application/xml", text, headers)
