"""Where shards go: names for them from DEST, what lies there already, and how samples are packed into them."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wdstools import tar, urls, writer
from wdstools.convert import place
from wdstools.convert.entries import Entries
from wdstools.convert.options import Options
from wdstools.convert.order import Numbers
from wdstools.errors import DestinationError
from wdstools.shardnames import check_pattern

_NUMBER = re.compile(r"%[0-9]*d")
_GOOD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,60}")


class Target(NamedTuple):
    """A set of shards: one split, or all there is (split is "")."""

    split: str
    pattern: str

    @property
    def folder(self) -> str:
        """Where the shards go."""
        return os.path.dirname(self.pattern % 0) or "."

    @property
    def index_path(self) -> str:
        """Where the index goes: where readers look for that of several shards."""
        return urls.index_name([urls.escape(self.pattern % number) for number in (0, 1)])

    def existing(self) -> Iterator[tuple[int, str]]:
        """Yield (number, path) of the files that the pattern names, of any width, in order."""
        return iter(sorted(_matching(self.pattern)))


def _matching(pattern: str) -> list[tuple[int, str]]:
    folder, name = os.path.dirname(pattern % 0), os.path.basename(pattern)
    number = _NUMBER.search(name)
    if number is None:
        return []
    head, tail = name[: number.start()], name[number.end() :]
    form = re.compile(re.escape(head % ()) + "([0-9]+)" + re.escape(tail % ()))
    found = ((form.fullmatch(item), item) for item in place.names(folder))
    return [(int(match[1]), os.path.join(folder, item)) for match, item in found if match]


def targets(dest: str, name: str, splits: Sequence[tuple[str, float]]) -> list[Target]:
    """Return the sets of shards that DEST stands for. Raises DestinationError where it names none."""
    remote = place.is_remote(dest)
    if remote:
        place.bucket(dest)
    path = dest if remote else urls.local_path(dest) or ""
    folder, base = os.path.split(path)
    if remote and folder.endswith(":/"):
        folder, base = path, ""
    folder = folder.replace("%", "%%")  # the number stands in the last part
    names = [split for split, _ in splits]
    if "%" not in base:
        if base.lower().endswith((".tar", ".tgz", ".gz", ".zst")):
            stem = re.sub(r"[-_.]*(\{[^}]*\}|[0-9]+)?$", "", base.partition(".")[0]) or "shards"
            raise DestinationError(
                f"{dest}: is one shard; name many, as in {os.path.join(os.path.dirname(path), stem)}-%06d.tar"
            )
        stem = name if _GOOD_NAME.fullmatch(name) else "shards"
        folder = os.path.join(folder, base)
        found = [Target(name, os.path.join(folder, f"{name or stem}-%06d.tar")) for name in names or [""]]
    elif names:
        found = [Target(name, os.path.join(folder, _with_split(base, name))) for name in names]
    else:
        found = [Target("", os.path.join(folder, base))]
    for target in found:
        check_pattern(target.pattern.partition("://")[2] if remote else target.pattern)
        if not (target.pattern % 0).endswith(".tar"):
            raise DestinationError(f"{target.pattern!r}: shards are plain tars, so the name must end with .tar")
    if len({target.index_path for target in found}) < len(found):
        raise DestinationError(
            f"{dest}: several splits would have the index {found[0].index_path}; put %s where the split goes"
        )
    return found


def _with_split(name: str, split: str) -> str:
    if "%s" in name:
        return name.replace("%s", split, 1)
    number = _NUMBER.search(name)
    if number is None:
        return name  # check_pattern says what is wrong
    head, tail = name[: number.start()], name[number.start() :]
    joint = "" if not head or head[-1] in "-_." else "-"
    return f"{head}{joint}{split}-{tail}"


class ShardPlan(NamedTuple):
    """A shard to be: it holds the samples order[start:stop] of its target. `nbytes`: of the tar, or of
    its samples as they are listed where they are still to be computed; `digest`: of what is known of its samples, as
    text."""

    path: str
    start: int
    stop: int
    nbytes: int
    digest: str = ""


digester = functools.partial(hashlib.blake2b, digest_size=8)


def pack(entries: Entries, order: Numbers, target: Target, options: Options) -> list[ShardPlan]:
    """Say which samples go into which shard."""
    maxcount, maxsize = options.limits
    packer = writer.Packer(maxcount, None if options.by_count else maxsize)
    plans: list[ShardPlan] = []
    start, state = 0, digester()
    member_nbytes = tar.member_nbytes
    for position, i in enumerate(order):
        key, _, parts = entries[i]
        nbytes = 0
        short = 99 - len(key) if key.isascii() else -1
        for k in range(0, len(parts), 3):
            ext, size = parts[k], parts[k + 2]
            if len(ext) <= short and size < 1 << 33 and ext.isascii():
                nbytes += 512 + (size + 511 & -512)
            else:
                nbytes += member_nbytes(f"{key}.{ext}", size)
        before = packer.nbytes
        if packer.add(nbytes):
            plans.append(ShardPlan(target.pattern % len(plans), start, position, before, state.hexdigest()))
            start, state = position, digester()
        state.update(repr((key, parts)).encode("utf-8", "surrogateescape"))
    if order:
        plans.append(ShardPlan(target.pattern % len(plans), start, len(order), packer.nbytes, state.hexdigest()))
    return plans


def sweep(found: Sequence[Target], *, parts: bool) -> None:
    """Remove temporary files of shards, parts and indexes; with `parts`, the parts too."""
    for target in found:
        folder, name = target.folder, os.path.basename(target.pattern)
        number = _NUMBER.search(name)
        if number is None:
            continue
        shard = re.escape(name[: number.start()] % ()) + "[0-9]+" + re.escape(name[number.end() :] % ())
        index = re.escape(os.path.basename(target.index_path))
        forms = [rf"\.{shard}(\.[0-9a-f]+)?\.tmp", rf"\.(\.{shard}\.part|{index})(\.[0-9]+-[0-9a-f]+)?\.tmp"]
        forms.append(r"\.(classes\.json|skipped\.jsonl)\.tmp")
        form = re.compile("|".join(forms + ([rf"\.{shard}\.part"] if parts else [])))
        for item in place.names(folder):
            if item[0] == "." and form.fullmatch(item):
                place.remove(os.path.join(folder, item))
        if place.is_remote(folder):
            store, prefix = place.bucket(folder + "/")
            sent = re.compile(re.escape(prefix) + f"({shard}|{index})")
            store.abandon(prefix, lambda path, sent=sent: sent.fullmatch(path) is not None)  # type: ignore[misc]
