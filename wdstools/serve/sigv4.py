"""Signatures of AWS, version 4: of a request with an Authorization header, and of a presigned URL."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from calendar import timegm
from urllib.parse import quote

from wdstools.serve.request import Request, decode_path, pairs

SKEW = 15 * 60  # seconds between our clock and the client's
LONGEST = 7 * 24 * 3600  # seconds that a presigned URL may be good for
UNSIGNED = "UNSIGNED-PAYLOAD"
ALGORITHM = "AWS4-HMAC-SHA256"

_HEADER = re.compile(r"AWS4-HMAC-SHA256 +Credential=([^, ]+), *SignedHeaders=([a-z0-9;_-]+), *Signature=([0-9a-f]{64})")
_SCOPE = re.compile(r"(.+)/([0-9]{8})/([a-z0-9-]{1,40})/s3/aws4_request")
_PRESIGNED = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders",
              "X-Amz-Signature")  # fmt: skip


def verify(request: Request, access_key: str, secret_key: str, now: float | None = None) -> str | None:
    """None: the request is signed with this key. Otherwise the code of the error, as AWS has it."""
    now = time.time() if now is None else now
    given = request.header(b"authorization")
    if given:
        match = _HEADER.fullmatch(given.strip())
        if match is None:
            return "AuthorizationHeaderMalformed"
        credential, signed, signature = match.groups()
        moment, lifetime = request.header(b"x-amz-date"), SKEW
        query = pairs(request.raw_query)
    else:
        query = pairs(request.raw_query)
        found = dict(query)
        if any(name not in found for name in _PRESIGNED) or found["X-Amz-Algorithm"] != ALGORITHM:
            return "AuthorizationQueryParametersError"
        credential, signed, signature = (found["X-Amz-" + n] for n in ("Credential", "SignedHeaders", "Signature"))
        moment = found["X-Amz-Date"]
        if not re.fullmatch("[0-9]{1,6}", found["X-Amz-Expires"]) or int(found["X-Amz-Expires"]) > LONGEST:
            return "AuthorizationQueryParametersError"
        lifetime = int(found["X-Amz-Expires"])
        query = [(name, value) for name, value in query if name != "X-Amz-Signature"]
    scope = _SCOPE.fullmatch(credential)
    when = _when(moment)
    if scope is None or when is None or not moment.startswith(scope[2]):
        return "AuthorizationHeaderMalformed" if given else "AuthorizationQueryParametersError"
    if not same(scope[1], access_key):
        return "InvalidAccessKeyId"
    names = signed.split(";")
    if "host" not in names or any(
        name.startswith(b"x-amz-") and name.decode("latin-1") not in names for name in request.headers
    ):
        return "AccessDenied"  # headers that were not signed
    payload = request.header(b"x-amz-content-sha256") if given else UNSIGNED
    if payload != UNSIGNED and not same(payload, hashlib.sha256(request.body).hexdigest()):
        return "XAmzContentSHA256Mismatch"
    text = "\n".join((ALGORITHM, moment, credential[len(scope[1]) + 1 :], _canonical(request, query, names, payload)))
    expected = hmac.new(_key(secret_key, scope[2], scope[3]), text.encode(), hashlib.sha256).hexdigest()
    if not same(signature, expected):
        return "SignatureDoesNotMatch"
    if when - now > SKEW or (given and now - when > SKEW):
        return "RequestTimeTooSkewed"
    return "AccessDenied" if now - when > lifetime else None


def same(given: str, expected: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode("utf-8", "surrogateescape"))


def _canonical(request: Request, query: list[tuple[str, str]], names: list[str], payload: str) -> str:
    encoded = sorted((_quote(name), _quote(value)) for name, value in query)
    headers = "".join(f"{name}:{' '.join(_raw(request, name).split())}\n" for name in names)
    path = quote(decode_path(request.raw_path), safe="/-_.~", errors="surrogateescape")
    canonical = "\n".join(
        (request.method, path, "&".join(f"{n}={v}" for n, v in encoded), headers, ";".join(names), payload)
    )
    return hashlib.sha256(canonical.encode("latin-1")).hexdigest()


def _raw(request: Request, name: str) -> str:
    return request.headers.get(name.encode("latin-1"), b"").decode("latin-1")


def _quote(text: str) -> str:
    return quote(text, safe="-_.~", errors="surrogateescape")


def _when(moment: str) -> int | None:
    if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z", moment):
        return None
    try:
        return timegm(time.strptime(moment, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None


def _key(secret: str, date: str, region: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
