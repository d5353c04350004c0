"""Sets of shards that are there already: which job made them, and whether they are as it left them."""

from __future__ import annotations

import json
import os
from typing import Any

from wdstools import urls, writer
from wdstools.convert import place
from wdstools.convert.destination import Target
from wdstools.errors import DestinationError, IndexFileError, NotFoundError

METADATA = "wds.job"  # where an index has the job that made it


class Finished:
    """What the indexes of targets say. Each is read once."""

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Any] | None] = {}

    def job_of(self, target: Target) -> dict[str, Any] | None:
        """Return the job that wrote the index of a target: None without an index, {} for one that says nothing."""
        if target.index_path not in self._jobs:
            self._jobs[target.index_path] = _read_job(target)
        return self._jobs[target.index_path]

    def forget(self) -> None:
        """Read the indexes anew when they are asked for."""
        self._jobs.clear()


def _read_job(target: Target) -> dict[str, Any] | None:
    try:
        return dict(json.loads(place.load_index(target.index_path).metadata.get(METADATA, "{}")))
    except NotFoundError:
        return None
    except (IndexFileError, ValueError):
        return {}


def check_shards(target: Target) -> None:
    """Compare the shards of a target with its index. Raises DestinationError for one that is missing, has another size,
    or is none of them."""
    shards = place.load_index(target.index_path).shards
    there = place.names(target.folder)
    for url, nbytes in zip(shards.url, shards.nbytes, strict=True):
        path = urls.local_path(url) or url
        if there.get(os.path.basename(path)) != nbytes:
            raise DestinationError(f"{path}: was changed or removed after it was written; --overwrite makes all anew")
    for _, path in target.existing():
        if place.full(path) not in shards.url:
            raise DestinationError(f"{path}: is not one of the shards of {target.index_path}: remove it")


def strangers(target: Target) -> list[str]:
    """Return the shards of a target that have no part, as those of an unfinished job have."""
    there = place.names(target.folder)
    return [path for _, path in target.existing() if os.path.basename(writer.part_name(path)) not in there]
