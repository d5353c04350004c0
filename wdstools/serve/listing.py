"""One page of a listing: keys and common prefixes, as S3 and GCS page them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field

from wdstools.serve.buckets import Bucket, Entry

MOST = 1000  # entries in a page


@dataclass
class Page:
    """`objects` and `prefixes`, together at most the number that was asked for; `last`: the last of them, where more
    follow, else None."""

    objects: list[Entry] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    last: str | None = None


def page(bucket: Bucket, prefix: str, delimiter: str, after: str, most: int) -> Page:
    """The entries after `after`, which may be a common prefix: then all keys below it are passed over, too."""
    found = Page()
    if most <= 0:
        return found
    count, newest = 0, ""
    for entry in _rolled_up(bucket, prefix, delimiter, after):
        if count == most:
            found.last = newest
            break
        count, newest = count + 1, entry.key
        if entry.etag is None:
            found.prefixes.append(entry.key)
        else:
            found.objects.append(entry)
    return found


def _rolled_up(bucket: Bucket, prefix: str, delimiter: str, after: str) -> Iterator[Entry]:
    passed = after if delimiter and after.endswith(delimiter) and after.startswith(prefix) else None
    current = None
    for entry in bucket.entries(prefix, after, delimiter == "/"):
        if passed and entry.key.startswith(passed):
            continue
        at = entry.key.find(delimiter, len(prefix)) if delimiter else -1
        if at < 0:
            yield entry
            continue
        common = entry.key[: at + len(delimiter)]
        if common != current:
            current = common
            yield Entry(common)


def token(last: str) -> str:
    """A continuation token for what comes after `last`."""
    return base64.urlsafe_b64encode(last.encode("utf-8", "surrogateescape")).decode()


def from_token(text: str) -> str:
    """Raises ValueError: it is no token of ours."""
    try:
        return base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True).decode("utf-8", "surrogateescape")
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("no continuation token") from error


def is_text(key: str) -> bool:
    """Whether a key can stand in XML and JSON as it is: UTF-8 without control characters."""
    return not any(c < " " or "\ud800" <= c <= "\udfff" or c in "\x7f\ufffe\uffff" for c in key)
