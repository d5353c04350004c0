"""`--verify`: shards that are read back from the disk and compared with the checksums of what was to be written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from wdstools import writer
from wdstools.convert import place
from wdstools.convert.destination import Target
from wdstools.convert.journal import Written
from wdstools.convert.options import Options
from wdstools.errors import ChecksumError, WdsError


def prove_parts(done: Sequence[Sequence[Written]], options: Options) -> None:
    """Compare the shards of a run, which have their parts still. Those that are wrong are removed, so that the same
    command makes them anew. Raises the first error, mostly a ChecksumError."""
    from wdstools.checksums import verify_checksums  # with Arrow

    def one(written: Written) -> list[WdsError]:
        found = verify_checksums(written.load(), workers=1, from_disk=True)
        if found:
            for path in (written.path, writer.part_name(written.path)):
                place.remove(path)
        return found

    with ThreadPoolExecutor(options.workers or os.cpu_count() or 1, "wds-verify") as pool:
        errors = [error for found in pool.map(one, [w for part in done for w in part]) for error in found]
    _raise(errors, "They are removed: the same command makes them anew")


def prove(targets: Sequence[Target], options: Options) -> None:
    """Compare the shards of a job that was done before. Raises the first error, mostly a ChecksumError."""
    from wdstools.checksums import verify_checksums

    errors: list[WdsError] = []
    for target in targets:
        errors += verify_checksums(place.load_index(target.index_path), workers=options.workers, from_disk=True)
    _raise(errors, "--overwrite makes all anew")


def _raise(errors: Sequence[WdsError], advice: str) -> None:
    if not errors:
        return
    error = errors[0]
    more = f" ({len(errors) - 1} more like it)" if len(errors) > 1 else ""
    if isinstance(error, ChecksumError):
        raise ChecksumError(f"{error.reason}{more}. {advice}", error.url) from error
    raise error
