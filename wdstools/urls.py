"""Shards are named by URLs: a plain path, `file:`, `http(s)://`, `s3://`, `gs://`, `az://`, `pipe:`. String work only.

A folder is a URL too, with or without a slash at its end; the current folder is the empty string. The query and
fragment of an http(s) URL are no part of its path; in every other URL, `?` and `#` are ordinary characters.
Brace patterns are in `wdstools.braces`, `pipe:` commands in `wdstools.pipes`; their public names are here as well.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Sequence

from wdstools.braces import MAX_NAMES, collapse, duplicates, escape, expand, missing
from wdstools.errors import UrlError
from wdstools.pipes import expand_template, pipe

__all__ = [
    "MAX_NAMES",
    "basename",
    "collapse",
    "dirname",
    "duplicates",
    "escape",
    "expand",
    "expand_template",
    "index_name",
    "is_absolute",
    "join",
    "local_path",
    "missing",
    "pipe",
    "relative",
    "scheme",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SHARD_SUFFIX = re.compile(r"\.(?:tar(?:\.(?:gz|zst|bz2|xz|lz4))?|tgz|tzst|tbz2?|txz)$", re.IGNORECASE)
# the number of a lone shard: after a separator, or padded, so that cifar10.tar keeps its 10
_NUMBER = re.compile(r"(?:(?<=[-_.])|^)[0-9]+(?:[-_.]?of[-_.]?[0-9]+)?$|(?<![0-9])0[0-9]+$")


def scheme(url: str) -> str:
    """The scheme in lower case: `file`, `http`, `https`, `s3`, `gs`, `az`, `pipe` or whatever stands before `://`.

    A plain path is `file`, also with a colon in it: only `pipe:` and `file:` go without `//`.
    """
    if match := _SCHEME.match(url):
        return match[1].lower()
    return "pipe" if url[:5].lower() == "pipe:" else "file"


def is_absolute(url: str) -> bool:
    """Whether `url` says where it lies without a base: anything but a relative path."""
    return url.startswith("/") or scheme(url) != "file" or _is_file_url(url)


def local_path(url: str) -> str | None:
    """The path that a plain path or a `file:` URL names, the latter percent-decoded; None for every other URL.

    UrlError: a `file:` URL on a host other than localhost, or with an encoded NUL.
    """
    if scheme(url) != "file":
        return None
    if not _is_file_url(url):
        return url
    path = url[5:]
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise UrlError(f"{url!r}: a file URL cannot name the host {host!r}; write file:///{host}/... for a path")
        path = slash + rest
    path = _unquote(path)
    if "\0" in path:
        raise UrlError(f"{url!r}: a path cannot contain NUL")
    return path


def join(base: str, name: str) -> str:
    """The URL of `name`, a relative name such as an index keeps, in the folder `base`.

    `name` is in the notation of `base` (percent-encoded in http and file URLs). The query of an http(s) base is
    dropped. UrlError, because names come out of files that others wrote: a name that is empty, absolute, a URL, has
    a NUL, or has a `..` component, plain or percent-encoded; a `pipe:` base.
    """
    while name.startswith("./"):
        name = name[2:]
    if not _stays_inside(base, name):
        raise UrlError(f"{name!r} does not name something inside the folder {base!r}")
    root, path = _split(base)
    if "://" in root and not path:
        return f"{root}/{name}"
    return root + posixpath.join(path, name)


def dirname(url: str) -> str:
    """The folder of `url`: without its last component, "" for a bare name; the root of a host or bucket is its own.

    UrlError: `pipe:`.
    """
    root, path = _split(url)
    folder = posixpath.dirname(path)
    bucket = "://" in root and not root.endswith("//")
    return root if bucket and folder == "/" else root + folder


def basename(url: str) -> str:
    """The last component of `url`; "" after a trailing slash or for the root of a host or bucket. UrlError: `pipe:`."""
    return posixpath.basename(_split(url)[1])


def relative(url: str, base: str) -> str:
    """`url` as a name in the folder `base`, so that `join(base, name)` is the same shard; `url` if it lies elsewhere.

    In paths, `.` and doubled slashes are dropped. UrlError: a relative path that does not lie under `base`, because
    it would mean another file when read from there; a `pipe:` base.
    """
    if scheme(base) == scheme(url) == "file" and not _is_file_url(base):
        path = local_path(url) or ""
        parts, above = _components(path), _components(base)
        inside = path.startswith("/") == base.startswith("/") and parts[: len(above)] == above
        name = "/".join(parts[len(above) :]) if inside else ""
    else:
        root, path = _split(base)
        head = root + path.rstrip("/") + "/"
        name = url[len(head) :] if url.startswith(head) else ""
    if name and _stays_inside(base, name):
        return name
    if not is_absolute(url):
        raise UrlError(f"{url!r} does not lie under the folder {base!r}; give its absolute path")
    return url


def index_name(urls: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> str:
    """The URL of the index file of a set of shards, given as `expand` takes them.

    It lies in the folder of the shards (the deepest common one) and has their stem, which is what all names share
    before the number that varies: `d/train-{000000..000146}.tar`, `d/train-000000.tar` and `d/train.tgz` all have
    `d/train.wdsindex`. Without a common stem (`d/{train,val}-0.tar`) it is `d/d.wdsindex`, or `shards.wdsindex` where
    the folder has no name. Shards behind `pipe:` have `shards.wdsindex` in the current folder. UrlError: no shards.
    """
    names = expand(urls)
    if not names:
        raise UrlError("no shards: there is no index to name")
    if any(scheme(name) == "pipe" for name in set(names)):
        return "shards.wdsindex"
    folder = _common_folder({dirname(name) for name in names})
    stem = _stem([_SHARD_SUFFIX.sub("", basename(name)) for name in names])
    if not stem:
        stem = basename(folder.rstrip("/"))
        stem = "shards" if stem in ("", ".", "..") else stem
    return join(folder, stem + ".wdsindex")


def _is_file_url(url: str) -> bool:
    return url[:5].lower() == "file:"


def _unquote(text: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote  # 8 ms that plain paths need not pay

    return unquote(text, errors="surrogateescape")


def _split(url: str) -> tuple[str, str]:
    """(scheme and host or bucket, path), the query of http dropped; the root is empty for a plain path."""
    kind = scheme(url)
    if kind == "pipe":
        raise UrlError(f"{url[:200]!r}: a command has no folder")
    if kind in ("http", "https"):
        url = re.split("[?#]", url, maxsplit=1)[0]
    if match := _SCHEME.match(url):
        host, slash, path = url[match.end() :].partition("/")
        return match[0] + host, slash + path
    return (url[:5], url[5:]) if _is_file_url(url) else ("", url)


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _stays_inside(base: str, name: str) -> bool:
    """Whether `name` is a relative name that cannot leave `base`, whoever decodes it."""
    if scheme(base) in ("http", "https"):
        name = re.split("[?#]", name, maxsplit=1)[0]
    for form in (name, _unquote(name)) if is_absolute(base) and not base.startswith("/") else (name,):
        if not form or is_absolute(form) or "\0" in form or ".." in form.split("/"):
            return False
    return True


def _common_folder(folders: set[str]) -> str:
    if len(folders) == 1:
        return folders.pop()
    split = [_split(folder) for folder in folders]
    root = split[0][0]
    if any(other != root for other, _ in split) or (not root and "" in folders):
        return ""
    paths = sorted(path.split("/") for _, path in split)
    path = "/".join(paths[0][: _shared(paths[0], paths[-1])])
    return root + (path or ("/" if paths[0][0] == paths[-1][0] else ""))


def _shared(low: Sequence[str], high: Sequence[str]) -> int:
    """How many leading items two sequences share; of the least and the greatest of many: how many all share."""
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _stem(names: list[str]) -> str:
    """What all names share before the number that varies, or "" if it is not a number that varies."""
    low, high = min(names), max(names)
    if low == high:
        return _NUMBER.sub("", low).rstrip("-_.")
    end = _shared(low, high)
    if not any("0" <= name[end : end + 1] <= "9" for name in names):
        return ""
    stem = low[:end].rstrip("0123456789")
    varies = all("0" <= name[len(stem) : len(stem) + 1] <= "9" for name in names)
    return stem.rstrip("-_.") if varies else ""
