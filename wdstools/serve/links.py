"""What to paste into training code: the brace patterns of what is served, plain and behind curl."""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from wdstools.braces import collapse
from wdstools.errors import StoreError
from wdstools.serve.settings import Settings
from wdstools.serve.tree import Tree

_SHARD = re.compile(r"\.(?:tar(?:\.(?:gz|zst|bz2|xz))?|tgz|tzst|tbz2?|txz)$", re.IGNORECASE)


def base_url(settings: Settings, port: int) -> str:
    """Where clients reach a server. One that listens everywhere is called by the name of this machine."""
    host = socket.gethostname() if settings.host in ("", "0.0.0.0", "::") else settings.host
    return f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def links(tree: Tree, settings: Settings, port: int) -> dict[str, Any]:
    """The URL of a server, and for every source its name, its patterns, and these as `pipe:` commands. A source that
    cannot be listed has `error` instead. May wait for remote sources."""
    base = base_url(settings, port)
    sources = []
    for bucket in tree.buckets.values():
        start = f"{base}/" if bucket is tree.single else f"{base}/{quote(bucket.name)}/"
        about: dict[str, Any] = {"name": bucket.name, "source": bucket.source}
        sources.append(about)
        try:
            keys = [key for key in bucket.all_keys() if _SHARD.search(key)]
        except StoreError as error:
            about["error"] = str(error)
            continue
        shards = [start + quote(key, errors="surrogateescape") for key in keys]
        patterns = collapse(shards)
        about |= {"shards": len(shards), "patterns": patterns, "pipes": list(pipes(patterns, settings))}
    return {"url": base, "sources": sources}


def pipes(patterns: Iterable[str], settings: Settings) -> Iterable[str]:
    """As `pipe:` commands. A token comes from the environment of the shell: it is not printed."""
    header = ' -H "Authorization: Bearer $WDS_TOKEN"' if settings.token is not None else ""
    for pattern in patterns:
        safe = re.fullmatch(r"[A-Za-z0-9_@%+=:,./{}\[\]-]*", pattern) is not None
        yield f"pipe:curl -sSfL{header} {pattern if safe else shlex.quote(pattern)}"
