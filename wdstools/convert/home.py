"""Samples computed in another process, maybe on another machine, as they would be in the one that planned the job."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from wdstools.convert import description
from wdstools.convert.options import Options
from wdstools.errors import SourceError


class Home(NamedTuple):
    """What the process that planned a job has: its current folder, where it finds modules, and description.tools()."""

    folder: str
    paths: tuple[str, ...]
    tools: dict[str, str]


def of_this_process(described: dict[str, Any]) -> Home:
    """Return that of this one, by the description of the job."""
    folder, used = os.getcwd(), described["options"]
    tools = {name: used[name] for name in description.TOOLS if name in used}
    return Home(folder, tuple(os.path.join(folder, path) for path in sys.path), tools)


@contextlib.contextmanager
def as_at(home: Home, options: Options) -> Iterator[None]:
    """Be in the folder of another process and find its modules, where this machine has them.

    Raises SourceError where samples would be computed with something else here.
    """
    folder, paths = os.getcwd(), list(sys.path)
    sys.path += [path for path in home.paths if path not in paths]
    try:
        if os.path.isdir(home.folder):
            os.chdir(home.folder)
        _compare(home.tools, _tools(options))
        yield
    finally:
        sys.path[:] = paths
        os.chdir(folder)


def _tools(options: Options) -> dict[str, str]:
    try:
        return description.tools(options)
    except SourceError as error:
        raise SourceError(f"{error} (on {socket.gethostname()}, where --engine ray computes samples)") from error


def _compare(there: dict[str, str], here: dict[str, str]) -> None:
    for name, wanted in there.items():
        if here[name] != wanted:
            versions = f": {here[name]} and {wanted}" if name == description.TOOLS[0] else ""
            raise SourceError(
                f"{name} is another on {socket.gethostname()} than where the job was planned{versions}. Other bytes "
                "would come out: have the same on every machine, and leave it alone while the job runs"
            )
