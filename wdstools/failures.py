"""What servers and foreign libraries say went wrong, translated into our errors: the one place where that is done.

Every function returns the exception to raise: Transient where trying again may help.
"""

from __future__ import annotations

import re

from wdstools.errors import AccessError, ChangedError, NotFoundError, PastEndError, StoreError, UnreachableError
from wdstools.retrying import Transient

TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 509}
MOST_SAID = 300  # characters of what a server says in the message

_EXPIRED = re.compile(r"ExpiredToken|TokenRefreshRequired|expired|Signature not valid in the specified time", re.I)
_CREDENTIALS = re.compile(
    r"credential|InvalidAccessKeyId|SignatureDoesNotMatch|AuthenticationFailed|AuthorizationHeaderMalformed|"
    r"InvalidToken|invalid_grant|RequestTimeTooSkewed|unauthenticated|anonymous caller",
    re.I,
)
_NO_SERVER = re.compile(
    r"kind: Connect\b|Connection refused|Name or service not known|nodename nor servname|getaddrinfo|dns error|"
    r"No route to host|Network is unreachable|Cannot connect to host|Could not connect to the endpoint|"
    r"Temporary failure in name resolution",
    re.I,
)
_DROPPED = re.compile(
    r"kind: (?:Timeout|Request|Interrupted|Decode|Unknown)|timed? ?out|Connection reset|connection closed|incomplete|"
    r"IncompleteRead|Response payload|Server disconnected|broken pipe|end of file before|Connection was closed|"
    r"SlowDown|ServiceUnavailable|InternalError",
    re.I,
)
_MACHINE = re.compile(
    r"169\.254\.\d+\.\d+|metadata\.google\.internal|computeMetadata|/latest/meta-data|/latest/api/token"
)
_SECRET = re.compile(
    r"([?&;](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|sig|signature|(?:[\w-]*[_-])?(?:token|key))=)[^&;\s]+",
    re.I,
)
_NOTHING_THERE = re.compile(r"NoSuchKey|NoSuchBucket|ContainerNotFound|BlobNotFound|bucket does not exist", re.I)


def hide(url: str) -> str:
    """A URL, or text with URLs in it, without passwords, signatures and tokens, for messages."""
    return _SECRET.sub(r"\1...", re.sub(r"//[^/\s:@]*:[^/\s@]*@", "//", url))


class NoRangesError(StoreError):
    """The server answers a request for a range with the whole object."""


def of_status(url: str, status: int, said: str = "", after: str | None = None) -> StoreError | Transient:
    """From an HTTP status. `said`: the reason and the body, as far as known; `after`: the Retry-After header."""
    said = (
        " ".join(re.sub(r"<\?xml[^>]*\?>|<[^>]*>", " ", said).split()).removeprefix(str(status)).strip(" :")[:MOST_SAID]
    )
    what = f"{url}: HTTP {status}" + (f": {said}" if said else "")
    if _EXPIRED.search(said) and 400 <= status < 500:
        return AccessError(f"{what}; the credentials have expired: get new ones")
    if status in TRANSIENT:
        return Transient(UnreachableError(f"{what}, after all retries"), _seconds(after))
    if status in (404, 410):
        return NotFoundError(what)
    if status in (401, 403, 407) or (status == 400 and _CREDENTIALS.search(said)):
        return AccessError(f"{what}; the credentials are lacking, wrong or do not allow this")
    if status == 412:
        return ChangedError(f"{what}: the object was replaced while it was being read")
    if status == 416:
        return PastEndError(f"{what}: the range is past the end")
    if status in (301, 302, 307, 308):
        return StoreError(f"{what}: the server sends us elsewhere; is the region or endpoint right?")
    return StoreError(what)


def of_page(url: str, kind: str | None, head: bytes) -> StoreError | None:
    """An HTML page in place of data, by its Content-Type and first bytes; None where it is none."""
    if "html" in (kind or "").lower() and head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        title = re.search(rb"<title[^>]*>([^<]{1,100})", head, re.I)
        named = f" ({title[1].decode('utf-8', 'replace').strip()!r})" if title else ""
        return AccessError(
            f"{url}: a web page{named} came in place of data: is a login needed, or is the URL a viewer's?"
        )
    return None


def short(url: str, have: int, wanted: int) -> Transient:
    """A body that ends too early."""
    return Transient(UnreachableError(f"{url}: the server sent {have} bytes of {wanted}, after all retries"))


def of_text(url: str, text: str) -> StoreError | Transient:
    """From what a foreign library says: by the status in it, else by words that are known."""
    said = hide(text.partition("Debug source:")[0].strip())[: 2 * MOST_SAID]
    if _MACHINE.search(text):  # the last place to look for credentials, where there are no others
        return AccessError(
            f"{url}: no credentials found: set those of the cloud's own tools, or storage_options ({said})"
        )
    status = re.search(r"status: (\d{3})\b|status code:? (\d{3})\b|HTTP Error (\d{3})\b", text)
    if status and (code := int(next(filter(None, status.groups())))) >= 300:
        return of_status(url, code, _said(text))
    if _NO_SERVER.search(text):
        why = re.search(r"Connection refused|dns error[^\n\"]*|No route to host|Network is unreachable", text)
        return Transient(UnreachableError(f"{url}: no server answers: {why[0] if why else said}"), contact=False)
    if _NOTHING_THERE.search(text):
        return NotFoundError(f"{url}: {said}")
    if _EXPIRED.search(text):
        return AccessError(f"{url}: {said}; the credentials have expired: get new ones")
    if _CREDENTIALS.search(text):
        return AccessError(f"{url}: {said}; the credentials are lacking or wrong")
    if _DROPPED.search(text):
        return Transient(UnreachableError(f"{url}: {said}"), contact="kind: Timeout" not in text)
    return StoreError(f"{url}: {said}")


def of_obstore(url: str, error: Exception) -> StoreError | Transient:
    """From an exception of obstore, whose errors are told apart by class, then by what they hold as text."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, FileNotFoundError):
        return of_status(url, 404, _said(text))
    if name in ("PermissionDeniedError", "UnauthenticatedError"):
        return of_status(url, 403 if name == "PermissionDeniedError" else 401, _said(text))
    if name == "PreconditionError":
        return of_status(url, 412)
    if re.search(r"Header missing from response", text) and not url.startswith("http"):
        return AccessError(
            f"{url}: what answers is no object store ({_said(text).strip()}): "
            "is the endpoint right, or does a login page stand before it?"
        )
    if (name == "NotSupportedError" and "Range" in text) or "non-partial response" in text:
        return NoRangesError(f"{url}: the server answers a request for a range with something else (HTTP 200)")
    if "InvalidRangeRequest" in text:
        return PastEndError(f"{url}: the range is past the end: {_said(text)}")
    if "UnexpectedRange" in text:
        return StoreError(f"{url}: the server sent another range than it was asked for: {_said(text)}")
    return of_text(url, text)


def of_exception(url: str, error: Exception) -> StoreError | Transient:
    """From any other exception: OSError with its errno, http.client, fsspec and the libraries behind it."""
    if isinstance(error, StoreError | Transient):
        return error
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return NotFoundError(f"{url}: {error}" if str(error) not in ("", url) else f"{url}: nothing is there")
    if isinstance(error, PermissionError):
        return of_status(url, 403, str(error))
    if isinstance(error, ImportError):
        return StoreError(f"{url}: {error}")
    code = getattr(error, "status", None) or getattr(error, "code", None) or getattr(error, "status_code", None)
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    if isinstance(code, int) and 300 <= code < 600:
        return of_status(url, code, str(error))
    if _NO_SERVER.search(text) or isinstance(error, ConnectionRefusedError):
        return Transient(UnreachableError(f"{url}: no server answers: {text[:MOST_SAID]}"), contact=False)
    if isinstance(error, ConnectionError | TimeoutError | EOFError):
        return Transient(UnreachableError(f"{url}: {text[:MOST_SAID]}"), contact=not isinstance(error, TimeoutError))
    return of_text(url, text)


def _said(text: str) -> str:
    """What the server itself said, out of an error of obstore."""
    text = hide(text.partition("Debug source:")[0])
    return text.partition("status code: ")[2] or text


def _seconds(after: str | None) -> float:
    return float(after) if after and after.isdecimal() else 0.0
