"""One job on one destination: the lock, what it was asked to do, and what an earlier run has left to go on from.

While a job runs, `.<stem>.wdsjob` lies beside the shards: JSON {"version", "fingerprint", "options", "source",
"patterns"}. It is written before the first shard and removed after the last index; the same text is then in the
metadata of every index, under `wds.job`. A shard of ours appears after its part (its own index, `.<shard>.part`), and
the parts are removed after the indexes are there: so a shard without a part is ours only if there is an index of this
job. When files of the source were changed is not written down: a file that is younger than the journal, or than a
finished index, has been changed since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from wdstools import urls, writer
from wdstools.convert import destination
from wdstools.convert.description import difference
from wdstools.convert.destination import Target
from wdstools.convert.options import Skipped
from wdstools.convert.shards import JOB
from wdstools.errors import DestinationError, IndexFileError, NotFoundError

if TYPE_CHECKING:
    from wdstools.index import Index

METADATA = "wds.job"
SKIPPED = "wds.skipped"


class Job:
    """A destination, locked. `state` after open(): "fresh", "resume", or "complete" (nothing is left to do)."""

    def __init__(
        self, found: Sequence[Target], description: dict[str, Any], overwrite: bool, newest: tuple[int, str] = (0, "")
    ) -> None:
        """`newest`: when a file of the source was changed last, in ns since 1970, and which."""
        self.targets, self.description, self.overwrite, self.newest = list(found), description, overwrite, newest
        self.folder = found[0].folder
        stem = os.path.basename(found[0].index_path).removesuffix(".wdsindex")
        if found[0].split:
            stem = "+".join(os.path.basename(t.index_path).removesuffix(".wdsindex") for t in found)
        self.stem = stem
        self.path = os.path.join(self.folder, f".{stem}{JOB}")
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
        if mine and self._changed_since(self.path, "this job began"):
            mine = False
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
                self.clear(old)
        else:
            self._check_empty()
        if not dry and self.state != "complete":
            destination.sweep(self.targets, parts=self.state == "fresh")
            if self.state == "fresh":  # else it is there, and a moment without it could lose what is done
                self._write()

    def _changed_since(self, path: str, when: str) -> bool:
        """Say whether a file of the source is younger than a file of ours. Raises DestinationError for it, unless all
        is to be made anew anyway."""
        changed, file = self.newest
        if changed <= os.stat(path).st_mtime_ns:
            return False
        if not self.overwrite:
            raise DestinationError(
                f"{file}: was changed after {when}, so that old and new would be mixed. "
                "Give --overwrite to make all shards anew"
            )
        return True

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
            return dict(json.loads(_load(target.index_path).metadata.get(METADATA, "{}")))
        except NotFoundError:
            return None
        except (IndexFileError, ValueError):
            return {}

    def _is_done(self, target: Target) -> bool:
        return bool((self._job_of(target) or {}).get("fingerprint") == self.description["fingerprint"])

    def _check_complete(self) -> None:
        for target in self.targets:
            self._changed_since(target.index_path, "its shards were written")
            shards = _load(target.index_path).shards
            for url, nbytes in zip(shards.url, shards.nbytes, strict=True):
                path = urls.local_path(url) or url
                if not os.path.exists(path) or os.path.getsize(path) != nbytes:
                    raise DestinationError(
                        f"{path}: was changed or removed after it was written; --overwrite makes all anew"
                    )
            for _, path in target.existing():
                if os.path.abspath(path) not in shards.url:
                    raise DestinationError(f"{path}: is not one of the shards of {target.index_path}: remove it")

    def _check_empty(self) -> None:
        for target in self.targets:
            job = self._job_of(target)
            if job:
                raise DestinationError(
                    f"{target.index_path}: a finished job is there, and this is another: "
                    f"{difference(job, self.description)}. Write elsewhere, or give --overwrite to remove its shards"
                )
            found = [path for _, path in target.existing()] + ([target.index_path] if job is not None else [])
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

    def clear(self, old: dict[str, Any] | None = None) -> None:
        """Remove the shards and the indexes that the targets name, and those of an unfinished job that was here."""
        found = list(self.targets)
        for name in (old or {}).get("patterns", []):
            if isinstance(name, str) and os.path.basename(name) == name:
                with contextlib.suppress(DestinationError):
                    writer.check_pattern(name)
                    found.append(Target("", os.path.join(self.folder, name)))
        for target in found:
            for path in [target.index_path, *(path for _, path in target.existing())]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        destination.sweep(found, parts=True)

    def put_skipped(self, skipped: Sequence[Skipped]) -> None:
        """Write skipped.jsonl, anew for this set of shards; lines of other sets in the folder stay."""
        path = os.path.join(self.folder, "skipped.jsonl")
        try:
            with open(path, "rb") as file:
                old = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            old = []
        lines = [line for line in old if not self._is_mine(line)]
        lines += [json.dumps({**item._asdict(), "set": self.stem}).encode() + b"\n" for item in skipped]
        if lines and lines != old:
            put_file(path, b"".join(lines))
        elif old and not lines:
            os.unlink(path)

    def _is_mine(self, line: bytes) -> bool:
        try:
            return bool(json.loads(line)["set"] == self.stem)
        except (ValueError, LookupError, TypeError):
            return False


def _load(path: str) -> Index:
    """Index.load, which loads Arrow: not before there is an index to read."""
    if not os.path.exists(path):
        raise NotFoundError(f"{path}: no such index")
    from wdstools.index import Index

    return Index.load(path)


class Written(NamedTuple):
    """A finished shard, whose index is its part: bytes of the tar, and what was left out of it."""

    path: str
    nsamples: int
    nbytes: int
    skipped: list[Skipped]

    def load(self) -> Index:
        """Return its index."""
        return _load(writer.part_name(self.path))


def load_part(path: str, lenient: bool) -> Written | None:
    """Return a finished shard of this job; None where it must be written anew (also, unless `lenient`, where samples
    were left out)."""
    try:
        index = _load(writer.part_name(path))
        index.validate()
        skipped = [Skipped(*item) for item in json.loads(index.metadata.get(SKIPPED, "[]"))]
        nbytes = os.path.getsize(path)
    except (NotFoundError, IndexFileError, FileNotFoundError, ValueError, TypeError):
        return None
    mine = index.shards.url == [os.path.abspath(path)] and index.shards.nbytes == [nbytes]
    if not mine or (skipped and not lenient):
        return None
    return Written(path, len(index), nbytes, skipped)


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
