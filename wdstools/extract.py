"""A sample -> files in a folder, and nowhere else, whatever its key says."""

from __future__ import annotations

import os

from wdstools.errors import DestinationError, UrlError
from wdstools.samples import Sample, member_name

NOT_FIELDS = ("__key__", "__url__", "__local_path__")
"""What a sample has beside its fields."""


def extract(sample: Sample, folder: str, *, overwrite: bool = False) -> list[str]:
    """Write the fields of a sample as files KEY.FIELD in a folder, which is made. Returns their paths.

    Nothing is written where one of them is there already (DestinationError, unless `overwrite`), or would lie outside
    of the folder, by its name or through a symbolic link (UrlError). Each appears whole or not at all.
    """
    key = sample["__key__"]
    names = {field: member_name(key, field) for field in sample if field not in NOT_FIELDS}
    for name in names.values():
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise UrlError(f"{name!r} leads out of the folder; take its fields one by one")
    paths = {field: os.path.join(folder, name) for field, name in names.items()}
    root = os.path.realpath(folder)
    for path in paths.values():
        parent = os.path.realpath(os.path.dirname(path))
        if os.path.commonpath([root, parent]) != root:
            raise UrlError(f"{path}: a symbolic link leads out of {folder}")
        if os.path.isdir(path) or (os.path.lexists(path) and not overwrite):
            raise DestinationError(f"{path}: is there already; --overwrite replaces it")
    for field, path in paths.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _put(path, sample[field])
    return list(paths.values())


def _put(path: str, data: bytes) -> None:
    """A file that is whole or not there; a symbolic link of its name is replaced, not followed."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
