"""One job on one destination: the lock, what it was asked to do, and what an earlier run has left to go on from.

While a job runs, `.<stem>.wdsjob` lies beside the shards: JSON {"version", "fingerprint", "options", "source",
"patterns"}. It is written before the first shard and removed after the last index; the same text is then in the
metadata of every index, under `wds.job`. A shard of ours appears after its part (its own index, `.<shard>.part`), and the
parts are removed after the indexes are there: so a shard without a part is ours only if there is an index of this job.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from wdstools import urls, writer
from wdstools.convert import destination
from wdstools.convert.destination import Target
from wdstools.convert.options import Options, Skipped
from wdstools.convert.sources import Listing
from wdstools.errors import DestinationError, IndexFileError, NotFoundError
from wdstools.index import Index

METADATA = "wds.job"
SKIPPED = "wds.skipped"
VERSION = 1


def describe(listing: Listing, options: Options, lift: Sequence[str] | None, shuffle: bool) -> dict[str, Any]:
    """Return what makes the bytes of the output: the options that matter, and a digest of the source."""
    used: dict[str, Any] = {"maxcount": options.maxcount, "maxsize": options.maxsize, "shuffle": shuffle}
    used |= {"keys": options.keys, "lift": None if lift is None else list(lift)}
    if shuffle or options.splits:
        used["seed"] = options.seed
    if options.splits:
        used |= {"split": [list(pair) for pair in options.splits], "by": options.by}
    if options.resize is not None:
        from PIL import __version__ as pillow

        used |= {"resize": options.resize, "quality": options.quality, "pillow": pillow}
        used["resize-fields"] = sorted(options.resize_fields)
    if listing.stream is not None:
        used |= {"rename": [list(pair) for pair in options.rename]}
        used |= {"drop": sorted(options.drop), "keep": sorted(options.keep)}
    state = hashlib.blake2b(digest_size=16)
    state.update(repr((listing.kind, listing.identity, listing.classes)).encode("utf-8", "surrogateescape"))
    nbytes = 0
    for key, group, parts in listing.entries:
        state.update(repr((key, group, parts)).encode("utf-8", "surrogateescape"))
        nbytes += sum(parts[2::3])
    source = {"samples": len(listing.entries), "nbytes": nbytes, "digest": state.hexdigest()}
    job = {"version": VERSION, "options": used, "source": source}
    text = json.dumps(job, sort_keys=True).encode()
    return {"fingerprint": hashlib.blake2b(text, digest_size=16).hexdigest(), **job}


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say what differs between two jobs."""
    if old.get("version") != new["version"]:
        return f"it was made by another version (job format {old.get('version')!r})"
    before, now = old.get("options", {}), new["options"]
    changed = [
        f"--{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    a, b = old.get("source", {}), new["source"]
    if a != b:
        counts = [(d.get("samples"), d.get("nbytes")) for d in (a, b)]
        changed.append(
            f"the source had {counts[0][0]} samples of {counts[0][1]} bytes and has {counts[1][0]} of {counts[1][1]}"
            if counts[0] != counts[1]
            else "names or sizes in the source are not what they were"
        )
    return "; ".join(changed) or "its record is damaged"


class Job:
    """A destination, locked. `state` after open(): "fresh", "resume", or "complete" (nothing is left to do)."""

    def __init__(self, found: Sequence[Target], description: dict[str, Any], overwrite: bool) -> None:
        self.targets, self.description, self.overwrite = list(found), description, overwrite
        self.folder = os.path.dirname(found[0].pattern) or "."
        stem = os.path.basename(found[0].index).removesuffix(".wdsindex")
        if found[0].split:
            stem = "+".join(os.path.basename(t.index).removesuffix(".wdsindex") for t in found)
        self.path = os.path.join(self.folder, f".{stem}.wdsjob")
        self.state = "fresh"
        self._fd = -1

    def open(self, dry: bool = False) -> Job:
        """Look at the destination, and unless `dry` lock it and make it ready for writing.

        Raises DestinationError where something else lies there, or another job is at work.
        """
        if not dry:
            os.makedirs(self.folder, exist_ok=True)
            self._lock()
        try:
            self._settle(dry)
        except BaseException:
            self.close()
            raise
        return self

    def close(self, *, remove: bool = False) -> None:
        """Unlock; with `remove` the journal goes first."""
        if self._fd >= 0:
            if remove or os.fstat(self._fd).st_size == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> None:
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                self._fd = -1
                raise DestinationError(f"{self.path}: another wds-shard is at work on this destination") from None
            except OSError:
                return  # a file system without locks
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                    return
            os.close(self._fd)  # the job that held it has just removed it

    def _settle(self, dry: bool) -> None:
        old = self._read()
        mine = old is not None and old.get("fingerprint") == self.description["fingerprint"]
        if old is not None and not mine and not self.overwrite:
            raise DestinationError(
                f"{self.path}: an unfinished job is there, and this is another: {difference(old, self.description)}. "
                "Run that one again to finish it, or give --overwrite to remove its shards"
            )
        done = [self._is_done(target) for target in self.targets]
        if mine:
            self.state = "complete" if all(done) else "resume"
            if self.state == "resume":
                self._check_strangers(dry)
        elif all(done) and not self.overwrite:
            self.state = "complete"
            self._check_complete()
        elif self.overwrite:
            if not dry:
                self._clear(old)
        else:
            self._check_empty()
        if not dry and self.state != "complete":
            self._write()
            destination.sweep(self.targets, parts=self.state == "fresh")

    def _read(self) -> dict[str, Any] | None:
        """The journal; None where there is none, or it was cut short, and then before any shard was written."""
        try:
            with open(self.path, "rb") as file:
                old = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return old if isinstance(old, dict) else None

    def _write(self) -> None:
        names = [os.path.basename(target.pattern) for target in self.targets]
        data = json.dumps({**self.description, "patterns": names}).encode()
        os.ftruncate(self._fd, 0)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._fd, view, len(data) - len(view)) :]
        os.fsync(self._fd)

    @property
    def text(self) -> str:
        """The job as the indexes keep it."""
        return json.dumps(self.description, sort_keys=True)

    def _job_of(self, target: Target) -> dict[str, Any] | None:
        """The job that wrote the index of a target: None without an index, {} for one that says nothing."""
        try:
            return dict(json.loads(Index.load(target.index).metadata.get(METADATA, "{}")))
        except NotFoundError:
            return None
        except (IndexFileError, ValueError):
            return {}

    def _is_done(self, target: Target) -> bool:
        return (self._job_of(target) or {}).get("fingerprint") == self.description["fingerprint"]

    def _check_complete(self) -> None:
        for target in self.targets:
            shards = Index.load(target.index).shards
            for url, nbytes in zip(shards.url, shards.nbytes, strict=True):
                path = urls.local_path(url) or url
                if not os.path.exists(path) or os.path.getsize(path) != nbytes:
                    raise DestinationError(
                        f"{path}: was changed or removed after it was written; --overwrite makes all anew"
                    )
            for _, path in target.existing():
                if os.path.abspath(path) not in shards.url:
                    raise DestinationError(f"{path}: is not one of the shards of {target.index}: remove it")

    def _check_empty(self) -> None:
        for target in self.targets:
            job = self._job_of(target)
            if job:
                raise DestinationError(
                    f"{target.index}: a finished job is there, and this is another: {difference(job, self.description)}. "
                    "Write elsewhere, or give --overwrite to remove its shards"
                )
            found = [path for _, path in target.existing()] + ([target.index] if job is not None else [])
            if found:
                raise DestinationError(
                    f"{found[0]}: is there already, and this job did not write it. "
                    "Write elsewhere, or give --overwrite to remove everything of that name"
                )

    def _check_strangers(self, dry: bool) -> None:
        for target in self.targets:
            if self._is_done(target):
                continue
            for _, path in target.existing():
                if os.path.exists(writer.part_name(path)):
                    continue
                if not self.overwrite:
                    raise DestinationError(f"{path}: this job did not write it. Remove it, or give --overwrite")
                if not dry:
                    os.unlink(path)

    def _clear(self, old: dict[str, Any] | None) -> None:
        found = list(self.targets)
        for name in (old or {}).get("patterns", []):
            if isinstance(name, str) and os.path.basename(name) == name:
                with contextlib.suppress(DestinationError):
                    writer.check_pattern(name)
                    found.append(Target("", os.path.join(self.folder, name)))
        for target in found:
            for path in [target.index, *(path for _, path in target.existing())]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        destination.sweep(found, parts=True)


def load_part(path: str, lenient: bool) -> tuple[Index, list[Skipped]] | None:
    """Return the index of a finished shard of this job, and what was left out of it; None where it must be written anew
    (also, unless `lenient`, where samples were left out)."""
    try:
        index = Index.load(writer.part_name(path))
        skipped = [Skipped(*item) for item in json.loads(index.metadata.get(SKIPPED, "[]"))]
        nbytes = os.path.getsize(path)
    except (NotFoundError, IndexFileError, FileNotFoundError, ValueError, TypeError):
        return None
    if index.shards.nbytes != [nbytes] or (skipped and not lenient):
        return None
    return index, skipped


def put_file(path: str, data: bytes) -> None:
    """Write a small file, whole or not at all."""
    temporary = destination.hidden(path, ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
