"""One job on one destination: the lock, what it was asked to do, and what an earlier run has left to go on from.

While a job runs, `.<stem>.wdsjob` lies beside the shards: JSON {"version", "fingerprint", "options", "source",
"patterns", "plan"} (of the last see saved.py). It is written before the first shard and removed after the last index;
the first four are then in the metadata of every index, under `wds.job`. A shard of ours appears after its part (its own
index, `.<shard>.part`), and the parts are removed after the indexes are there: so a shard without a part is ours only
if there is an index of this job. When files of the source were changed is not written down: a file that is younger than
the journal, or than a finished index, has been changed since.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from wdstools import writer
from wdstools.convert import destination, place
from wdstools.convert.description import difference
from wdstools.convert.destination import Target
from wdstools.convert.filelock import FileLock
from wdstools.convert.finished import Finished, check_shards, strangers
from wdstools.convert.options import Skipped
from wdstools.convert.shards import JOB
from wdstools.errors import DestinationError, IndexFileError, NotFoundError
from wdstools.shardnames import check_pattern

if TYPE_CHECKING:
    from wdstools.convert.lock import Lock
    from wdstools.convert.saved import Saved
    from wdstools.index import Index

_FETCHES = 16  # parts that come from a bucket at once
SKIPPED = "wds.skipped"
COVERS = "wds.covers"  # of a part whose samples were computed: the digest of what is planned for its shard


class Job:
    """A destination, locked. `state` after open(): "fresh", "resume", or "complete" (nothing is left to do)."""

    def __init__(
        self,
        found: Sequence[Target],
        description: dict[str, Any],
        overwrite: bool,
        newest: tuple[int, str] = (0, ""),
        saved: Saved | None = None,
    ) -> None:
        """`newest`: when a file of the source was changed last, in ns since 1970, and which; `saved`: the plan of the
        shards, where there is one."""
        self.saved = saved
        self.targets, self.description, self.overwrite, self.newest = list(found), description, overwrite, newest
        self.folder = found[0].folder
        stem = os.path.basename(found[0].index_path).removesuffix(".wdsindex")
        if found[0].split:
            stem = "+".join(os.path.basename(t.index_path).removesuffix(".wdsindex") for t in found)
        self.stem = stem
        self.path = os.path.join(self.folder, f".{stem}{JOB}")
        self.state = "fresh"
        self._file: FileLock | None = None  # of a local folder
        self._held: Lock | None = None  # of a bucket
        self._finished = Finished()

    def open(self, dry: bool = False) -> Job:
        """Look at the destination, and unless `dry` lock it and make it ready for writing.

        Raises DestinationError where something else lies there, or another job is at work.
        """
        if not dry and place.is_remote(self.folder):
            from wdstools.convert.lock import Lock

            self._held = Lock(self.path.removesuffix(JOB) + ".wdslock", self.overwrite)
        elif not dry:
            os.makedirs(self.folder, exist_ok=True)
            self._file = FileLock(self.path)
        try:
            self._settle(dry)
        except BaseException:
            self.close()
            raise
        return self

    def close(self, *, remove: bool = False) -> None:
        """Unlock; with `remove` the journal goes first."""
        if self._held is not None:
            held, self._held = self._held, None
            try:
                if remove:
                    held.check()
                    place.remove(self.path)
            finally:
                held.close()
        if self._file is not None:
            file, self._file = self._file, None
            file.close(remove=remove)

    @property
    def owner(self) -> tuple[str, str]:
        """What check_owner takes; empty for a local folder."""
        return self._held.owner if self._held is not None else ("", "")

    def check(self) -> None:
        """Ask whether this destination is still ours. Raises DestinationError."""
        if self._held is not None:
            self._held.check()

    def _settle(self, dry: bool) -> None:
        old = self._read()
        mine = old is not None and old.get("fingerprint") == self.description["fingerprint"]
        if mine and old is not None and self._changed_since_began(old):
            mine = False
        if old is not None and not mine and not self.overwrite:
            raise DestinationError(
                f"{self.path}: an unfinished job is there, and this is another: {self._why(old)}. "
                "Run that one again to finish it, or give --overwrite to remove its shards"
            )
        if mine and old is not None and (other := self._other_plan(old)):
            if not self.overwrite:
                raise DestinationError(
                    f"{self.path}: an unfinished job is there that packs its shards otherwise: {other}. Finish it with "
                    "the version that began it, or give --overwrite to remove its shards"
                )
            mine = False
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

    def _other_plan(self, old: dict[str, Any]) -> str:
        return self.saved.against(old["plan"]) if self.saved is not None and old.get("plan") else ""

    def _why(self, old: dict[str, Any], target: Target | None = None) -> str:
        """What differs between an old job and this one, with the first shard or sample where the source differs.
        `target`: of a finished job."""
        told = difference(old, self.description)
        if self.saved is None or old.get("options") != self.description.get("options"):
            return told
        if target is None:
            more = self._other_plan(old)
        else:
            more = self.saved.against_index(self.targets.index(target), place.load_index(target.index_path))
        return told + (more and "; " + more)

    def _changed_since_began(self, old: dict[str, Any]) -> bool:
        """Say whether the source was changed since the job began: by its own times in a bucket, whose clock may be
        another, and by those of the files here. Raises as _changed()."""
        if "newest" in old:
            return self.newest[0] > int(old["newest"]) and self._changed("this job began")
        return self._changed_since(self.path, "this job began")

    def _changed_since(self, path: str, when: str) -> bool:
        return self.newest[0] > os.stat(path).st_mtime_ns and self._changed(when)

    def _changed(self, when: str) -> bool:
        """True where all is to be made anew anyway. Raises DestinationError."""
        if not self.overwrite:
            raise DestinationError(
                f"{self.newest[1]}: was changed after {when}, so that old and new would be mixed. "
                "Give --overwrite to make all shards anew"
            )
        return True

    def _read(self) -> dict[str, Any] | None:
        """The journal; None where there is none, or it was cut short, and then before any shard was written."""
        try:
            old = json.loads(place.read(self.path) or b"")
        except ValueError:
            return None
        return old if isinstance(old, dict) else None

    def _write(self) -> None:
        names = [os.path.basename(target.pattern) for target in self.targets]
        journal = {**self.description, "patterns": names}
        if self.saved is not None:
            journal["plan"] = self.saved.to_json()
        if self._file is None:
            place.write(self.path, json.dumps({**journal, "newest": self.newest[0]}).encode())
        else:
            self._file.write(json.dumps(journal).encode())

    @property
    def text(self) -> str:
        """The job as the indexes keep it."""
        return json.dumps(self.description, sort_keys=True)

    def _is_done(self, target: Target) -> bool:
        return bool((self._finished.job_of(target) or {}).get("fingerprint") == self.description["fingerprint"])

    def _check_complete(self) -> None:
        for target in self.targets:
            if not place.is_remote(self.folder):
                self._changed_since(target.index_path, "its shards were written")
            check_shards(target)

    def _check_empty(self) -> None:
        for target in self.targets:
            job = self._finished.job_of(target)
            if job:
                raise DestinationError(
                    f"{target.index_path}: a finished job is there, and this is another: "
                    f"{self._why(job, target)}. Write elsewhere, or give --overwrite to remove its shards"
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
            for path in strangers(target):
                if not self.overwrite:
                    raise DestinationError(f"{path}: this job did not write it. Remove it, or give --overwrite")
                if not dry:
                    place.remove(path)

    def clear(self, old: dict[str, Any] | None = None) -> None:
        """Remove the shards and the indexes that the targets name, and those of an unfinished job that was here."""
        found = list(self.targets)
        for name in (old or {}).get("patterns", []):
            if isinstance(name, str) and os.path.basename(name) == name:
                with contextlib.suppress(DestinationError):
                    check_pattern(name)
                    found.append(Target("", os.path.join(self.folder, name)))
        for target in found:
            for path in [target.index_path, *(path for _, path in target.existing())]:
                place.remove(path)
        self._finished.forget()
        destination.sweep(found, parts=True)


class Written(NamedTuple):
    """A finished shard, whose index is its part: bytes of the tar, what was left out of it, and, where its samples were
    computed, the digest of the ShardPlan that they were computed for."""

    path: str
    nsamples: int
    nbytes: int
    skipped: list[Skipped]
    covers: str = ""

    def load(self) -> Index:
        """Return its index."""
        return place.load_index(writer.part_name(self.path))


def load_part(path: str, lenient: bool, there: Mapping[str, int]) -> Written | None:
    """Return a finished shard of this job; None where it must be written anew (also, unless `lenient`, where samples
    were left out). `there`: what lies in its folder, with sizes."""
    name, part = os.path.basename(path), writer.part_name(path)
    if name not in there or os.path.basename(part) not in there:
        return None
    try:
        index = place.load_index(part)
        index.validate()
        skipped = [Skipped(*item) for item in json.loads(index.metadata.get(SKIPPED, "[]"))]
        nbytes = there[name]
    except (NotFoundError, IndexFileError, FileNotFoundError, ValueError, TypeError):
        return None
    mine = index.shards.url == [place.full(path)] and index.shards.nbytes == [nbytes]
    if not mine or (skipped and not lenient):
        return None
    return Written(path, len(index), nbytes, skipped, index.metadata.get(COVERS, ""))


def merge_parts(shards: Sequence[str], path: str, metadata: dict[str, str]) -> None:
    """Put the parts of shards together into the index `path`. Raises SourceError where two have one key, which no
    shard alone can show: there is no index then."""
    from wdstools.merge import merge_files  # with Arrow, which was not needed before the first shard was whole

    if not place.is_remote(path):
        merge_files([writer.part_name(shard) for shard in shards], path, metadata, trusted=True, unique=True)
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_FETCHES) as pool:

        def fetch(shard: str) -> str:
            part = writer.part_name(shard)
            data = place.read(part)
            if data is None:
                raise NotFoundError(f"{part}: is gone: another process has removed it. Run the same command again")
            local = os.path.join(folder, os.path.basename(part))
            with open(local, "wb") as file:
                file.write(data)
            return local

        merged = os.path.join(folder, os.path.basename(path))  # names in it are relative, so it may be moved
        merge_files(list(pool.map(fetch, shards)), merged, metadata, trusted=True, unique=True)
        place.send(merged, path)
