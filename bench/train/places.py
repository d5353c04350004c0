"""The servers that a comparison reads from, started on 127.0.0.1 for its time, over shards of one local folder.

They are those of the tests: wds-serve, nginx, moto for S3, fake-gcs-server for GCS. The last two are made for tests and
have rates of their own. wds-serve and nginx read the folder itself; the buckets get copies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

SOURCES = ("folder", "wds-serve", "nginx", "s3", "gcs", "pipe-curl", "pipe-fread")
PREFIX = "data"  # where the files are, on the servers that have more than one folder
KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}


class NotHereError(Exception):
    """A source that this machine cannot give, and what to install."""


@dataclass(frozen=True)
class Place:
    """A source that can be read: `overrides` of the settings that name it, and what has to be in the environment."""

    overrides: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def programs(source: str) -> list[str]:
    """What has to be installed for a source and is not."""
    wanted = {"pipe-curl": ["curl"], "pipe-fread": ["fread"]}.get(source, [])
    return [program for program in wanted if shutil.which(program) is None]


@contextlib.contextmanager
def started(source: str, files: Path, scratch: Path) -> Iterator[Place]:
    """A source over the files of a folder, for as long as the context lasts. Raises NotHereError."""
    if missing := programs(source):
        raise NotHereError(f"{', '.join(missing)}: not installed")
    if source in ("folder", "pipe-fread"):
        yield Place([f"source={source}"])
        return
    if importlib.util.find_spec("pytest") is None:
        raise NotHereError("the servers are those of the tests, which need pytest: pip install pytest")
    import pytest

    folder = scratch / source
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as exits:
        try:
            place = _STARTS[source](files, folder, exits)
        except pytest.skip.Exception as reason:
            raise NotHereError(str(reason)) from None
        yield place


def _wds_serve(files: Path, folder: Path, exits: contextlib.ExitStack) -> Place:
    if importlib.util.find_spec("httptools") is None:
        raise NotHereError('wds-serve is not installed: pip install "wdstools[serve]"')
    from tests.serving import serving

    live = exits.enter_context(serving(folder, files))
    return Place(["source=wds-serve", f"source.endpoint={live.url}"])


def _nginx(source: str) -> Callable[[Path, Path, contextlib.ExitStack], Place]:
    def start(files: Path, folder: Path, exits: contextlib.ExitStack) -> Place:
        from tests.servers import nginx

        server = exits.enter_context(nginx(folder))
        (server.root / PREFIX).symlink_to(files)
        return Place([f"source={source}", f"source.endpoint={server.url}", f"source.prefix={PREFIX}"])

    return start


def _s3(files: Path, folder: Path, exits: contextlib.ExitStack) -> Place:
    from tests.servers import moto

    server = exits.enter_context(moto(folder))
    for path in _files(files):
        _send("PUT", f"{server.url}/bucket/{PREFIX}/{quote(path.name)}", path)
    given = ["source=s3", f"source.endpoint={server.url}", f"source.prefix=bucket/{PREFIX}"]
    return Place(given, KEYS | {"AWS_ENDPOINT_URL": server.url})


def _gcs(files: Path, folder: Path, exits: contextlib.ExitStack) -> Place:
    from tests.servers import gcs

    server = exits.enter_context(gcs(folder))
    for path in _files(files):
        name = quote(f"{PREFIX}/{path.name}", safe="")
        _send("POST", f"{server.url}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}", path)
    given = ["source=gcs", f"source.endpoint={server.url}", f"source.prefix=bucket/{PREFIX}"]
    return Place(given, {"STORAGE_EMULATOR_HOST": server.url})


_STARTS: Mapping[str, Callable[[Path, Path, contextlib.ExitStack], Place]] = {
    "wds-serve": _wds_serve, "nginx": _nginx("nginx"), "pipe-curl": _nginx("pipe-curl"), "s3": _s3, "gcs": _gcs,
}  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".tar", ".wdsindex"))


def _send(method: str, url: str, path: Path) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(os.path.getsize(path))}
    with open(path, "rb") as file:
        request = urllib.request.Request(url, data=file, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=300) as response:
            response.read()
