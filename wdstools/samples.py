"""Member names -> (key, field): webdataset 1.0.2's rules, from the C core that applies them to every stream."""

from __future__ import annotations

from typing import Any, TypeAlias

from wdstools import _core

Sample: TypeAlias = dict[str, Any]
"""A sample: `__key__`, `__url__`, for local shards `__local_path__`, and one entry per field."""


def split_name(name: str) -> tuple[str, str] | None:
    """Return (key, field) of a member name, or None where the member is no field of a sample.

    The key is the folders and the basename up to its first dot, the field the rest in lower case. Members without a
    dot, most hidden files and `__metadata__` have none. Source: webdataset 1.0.2, tariterators.base_plus_ext.
    """
    return _core.split_name(name)


def member_name(key: str, field: str) -> str:
    """Return the name of the member that holds a field. split_name() of it gives both back if the key is a good one."""
    return f"{key}.{field}"


def is_good_key(key: str) -> bool:
    """Say whether readers get this key back from a member name: no dot behind its last slash, no `__name__`, no NUL."""
    return "\0" not in key and _core.split_name(key + ".x") == (key, "x")


def hash_key(key: str) -> int:
    """Return the 64-bit hash by which the index finds a key: XXH64, seed 0, of its UTF-8."""
    return _core.hash_key(key.encode("utf-8", "surrogateescape"))
