"""Shards that are damaged on purpose, at random places, and what must be found of it and saved after it.

python tests/damaging.py [SHARDS [SEED]]    makes so many damaged shards, and as many that are good
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wdstools import tar
from wdstools.doctor.checkup import Lot, Options, checkup
from wdstools.doctor.repair import repair
from wdstools.errors import ShardError
from wdstools.reader import stream
from wdstools.samples import split_name

Files = list[tuple[str, bytes]]
Samples = dict[str, dict[str, bytes]]


@dataclass
class Made:
    """A shard and what is in it. `spans`: per member [start, end) with its header group; `sample`: of each member."""

    data: bytes
    files: Files
    spans: list[tuple[int, int]]
    offsets: list[int]

    @property
    def samples(self) -> Samples:
        found: Samples = {}
        for name, payload in self.files:
            split = split_name(name)
            if split is not None:
                found.setdefault(split[0], {})[split[1]] = payload
        return found


def make(rng: random.Random, *, tars: bool = False, few: bool = False) -> Made:
    """A shard of any of the formats, of one set of fields. `tars`: one field is a tar itself."""
    fmt = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    exts = rng.sample(["cls", "json", "jpg", "txt", "seg.png", "npy"], rng.randint(2, 3) if not few else 2)
    folder = (
        rng.choice(["", "a/", "dir.x/", "w" * 110 + "/"]) if fmt != tarfile.USTAR_FORMAT else rng.choice(["", "a/"])
    )
    files: Files = []
    for i in range(rng.randint(4, 12)):
        for ext in exts:
            size = rng.choice([rng.randint(1, 400), rng.randint(600, 3000), rng.randint(5000, 9000), 512, 1024])
            payload = rng.randbytes(size)
            if tars and ext == exts[0]:
                payload = build([(f"in{i}/{k}.{e}", rng.randbytes(rng.randint(1, 900))) for k in range(3)
                                 for e in ("cls", "jpg")], tarfile.USTAR_FORMAT)[0]  # fmt: skip
            files.append((f"{folder}{i:04d}.{ext}", payload))
    data, spans, offsets = build(files, fmt, rng.choice([0, 0, 1.5]))
    return Made(data, files, spans, offsets)


def build(files: Files, fmt: int, mtime: float = 0) -> tuple[bytes, list[tuple[int, int]], list[int]]:
    out = io.BytesIO()
    spans, offsets = [], []
    with tarfile.open(fileobj=out, mode="w", format=fmt) as archive:
        for name, payload in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(payload), mtime
            start = archive.offset
            archive.addfile(info, io.BytesIO(payload))
            spans.append((start, archive.offset))
            offsets.append(archive.offset - -(-len(payload) // 512) * 512)
    return out.getvalue(), spans, offsets


@dataclass
class Damage:
    """`kinds`: one of these must be found; `touched`: bytes [from, to) of the original that are not as they were;
    `shift`: bytes that were put in (or lost, negative)."""

    data: bytes
    kinds: set[str]
    touched: tuple[int, int]
    shift: int = 0
    quiet: bool = False  # it may be in payloads only: nothing tells
    options: dict[str, Any] = field(default_factory=dict)  # of the repair


BAD = {"header", "missing-bytes", "truncated", "zeros", "trailing", "concatenated", "payload", "padding"}


def overwrite(made: Made, rng: random.Random) -> Damage:
    end = made.spans[-1][1]
    at = rng.randrange(end)
    n = min(rng.choice([rng.randint(1, 40), rng.randint(300, 1500), rng.randint(2000, 9000)]), end - at)
    data = made.data[:at] + bytes(rng.randrange(1, 256) for _ in range(n)) + made.data[at + n :]
    return Damage(data, BAD, (at, at + n), quiet=not hits_header(made, at, at + n))


def overwrite_header(made: Made, rng: random.Random) -> Damage:
    member = rng.randrange(len(made.spans))
    at = made.offsets[member] - 512 + rng.randrange(512 - 40)
    n = rng.randint(8, 40)
    data = made.data[:at] + bytes(rng.randrange(128, 256) for _ in range(n)) + made.data[at + n :]
    return Damage(data, BAD, (at, at + n))


def zero(made: Made, rng: random.Random) -> Damage:
    end = made.spans[-1][1]
    at = rng.randrange(end)
    n = min(rng.choice([512, 4096, rng.randint(1, 3000)]), end - at)
    return Damage(made.data[:at] + bytes(n) + made.data[at + n :], BAD, (at, at + n),
                  quiet=not hits_header(made, at, at + n) or at + n == end)  # fmt: skip


def hits_header(made: Made, at: int, to: int) -> bool:
    """Whether a header that counts is hit hard: by so many bytes that its checksum cannot stay the same by chance."""
    return any(
        min(to, offset) - max(at, offset - 512) >= 4 and made.data[max(at, offset - 512) : min(to, offset)].strip(b"\0")
        for offset in made.offsets
    )


def delete(made: Made, rng: random.Random) -> Damage:
    end = made.spans[-1][1]
    at = rng.randrange(end - 1)
    n = min(rng.choice([rng.randint(1, 600), 512, 1024, rng.randint(600, 5000)]), end - at)
    data = made.data[:at] + made.data[at + n :]
    # a payload that goes on in a later one, and ends where that ends: nothing in the headers tells
    return Damage(data, BAD | {"size", "fields"}, (at, at + n), -n, n % 512 == 0 and reads_well(data))


def reads_well(data: bytes) -> bool:
    try:
        for _ in tar.walk(io.BytesIO(data)):
            pass
    except ShardError:
        return False
    return True


def insert(made: Made, rng: random.Random) -> Damage:
    at = rng.randrange(made.spans[-1][1])
    n = rng.choice([rng.randint(1, 600), 512, 1024, rng.randint(600, 5000)])
    junk = bytes(rng.randrange(1, 256) for _ in range(n))
    return Damage(made.data[:at] + junk + made.data[at:], BAD, (at, at), n)


def truncate(made: Made, rng: random.Random) -> Damage:
    at = rng.randrange(made.spans[-1][1] + 512)
    return Damage(made.data[:at], {"truncated"}, (at, len(made.data)))


def trail(made: Made, rng: random.Random) -> Damage:
    junk = bytes(rng.randrange(1, 256) for _ in range(rng.randint(1, 4000)))
    return Damage(made.data + junk, {"trailing"}, (len(made.data), len(made.data)))


def concatenate(made: Made, rng: random.Random) -> Damage:
    other = [(f"other/{name}", payload) for name, payload in made.files[: rng.randint(1, len(made.files))]]
    whole = [item for item in other if len(other) == len(made.files)] or other
    sets = {split_name(name)[1] for name, _ in made.files}  # type: ignore[index]
    keep = len(whole) - len(whole) % len(sets)
    whole = whole[:keep] or [(f"other/{name}", payload) for name, payload in made.files[: len(sets)]]
    data, spans, offsets = build(whole, tarfile.USTAR_FORMAT if len(whole[0][0]) < 99 else tarfile.PAX_FORMAT)
    size = len(made.data)
    made.files += whole
    made.spans += [(a + size, b + size) for a, b in spans]
    made.offsets += [offset + size for offset in offsets]
    made.data += data
    return Damage(made.data, {"concatenated"}, (len(made.data), len(made.data)))


NOWHERE = (1 << 60, 1 << 60)


def again(made: Made, files: Files, kinds: set[str], **options: Any) -> Damage:
    """The members in another order, or more of them: the tar is sound, what is in it is not."""
    fmt = tarfile.PAX_FORMAT if any(len(name) > 99 for name, _ in files) else tarfile.USTAR_FORMAT
    data = build(files, fmt)[0]
    return Damage(data, kinds, NOWHERE, options=options)


def interleave(made: Made, rng: random.Random) -> Damage:
    """Two samples or more, the members of which come in turn."""
    size = len({split_name(name)[1] for name, _ in made.files})  # type: ignore[index]
    first = rng.randrange(len(made.files) // size - 1)
    count = rng.randint(2, len(made.files) // size - first)
    some = made.files[first * size : (first + count) * size]
    turned = [some[i * size + field] for field in range(size) for i in range(count)]
    files = made.files[: first * size] + turned + made.files[(first + count) * size :]
    return again(made, files, {"interleaved"})


def duplicate(made: Made, rng: random.Random) -> Damage:
    size = len({split_name(name)[1] for name, _ in made.files})  # type: ignore[index]
    which, where = rng.randrange(len(made.files) // size), rng.randrange(len(made.files) // size + 1)
    copy = [(name, payload[::-1]) for name, payload in made.files[which * size : (which + 1) * size]]
    keep = "first" if where > which else "last"
    kinds = {"duplicate-key", "duplicate-field"}
    return again(made, made.files[: where * size] + copy + made.files[where * size :], kinds, keep=keep)


def drop_field(made: Made, rng: random.Random) -> Damage:
    which = rng.randrange(len(made.files))
    for column in (made.files, made.spans, made.offsets):
        del column[which]
    return again(made, made.files, {"fields"})


def empty(made: Made, rng: random.Random) -> Damage:
    which = rng.randrange(len(made.files))
    made.files[which] = made.files[which][0], b""
    return again(made, made.files, {"empty"})


def bloat(made: Made, rng: random.Random) -> Damage:
    data = build(made.files, tarfile.PAX_FORMAT, rng.random())[0]
    return Damage(data, {"pax"}, NOWHERE)


KINDS: dict[str, Callable[[Made, random.Random], Damage]] = {
    "overwrite": overwrite, "header": overwrite_header, "zero": zero, "delete": delete, "insert": insert,
    "truncate": truncate, "trail": trail, "concatenate": concatenate, "interleave": interleave,
    "duplicate": duplicate, "fields": drop_field, "empty": empty, "pax": bloat,
}  # fmt: skip


@dataclass
class Outcome:
    """What became of a damaged shard. `wrong`: samples that are not as they were; `lost`: untouched ones that were not
    saved; `silent`: of these, the ones that are not listed."""

    found: set[str]
    wrong: list[str]
    lost: list[str]
    silent: list[str]
    untouched: int
    saved: int
    beside: set[str]


def keys_by_place(made: Made, damage: Damage) -> tuple[set[str], set[str]]:
    """(keys of samples that the damage touches, keys of those right beside it)."""
    at, to = damage.touched
    if damage.touched == NOWHERE:
        return set(), set()
    touched, keys = set(), []
    for (name, _), (start, end) in zip(made.files, made.spans, strict=True):
        key = split_name(name)[0]  # type: ignore[index]
        keys.append((key, start, end))
        if (start < to and end > at) or (at == to and start < at < end):
            touched.add(key)
    order = list(dict.fromkeys(key for key, _, _ in keys))
    bounds = {key: (min(s for k, s, _ in keys if k == key), max(e for k, _, e in keys if k == key)) for key in order}
    before = [key for key in order if bounds[key][1] <= at][-1:]
    after = [key for key in order if bounds[key][0] >= to][:1]
    return touched, set(before + after) - touched


def try_one(folder: Path, made: Made, damage: Damage) -> Outcome:
    path = folder / "d.tar"
    path.write_bytes(damage.data)
    report = checkup(Lot([str(path)], None, None), Options(workers=1))
    original, got = made.samples, Samples()
    done = repair([str(path)], str(folder / "out"), **damage.options)
    for sample in stream(done.shards):
        fields = {name: value for name, value in sample.items() if not name.startswith("__")}
        assert sample["__key__"] not in got
        got[sample["__key__"]] = fields
    touched, beside = keys_by_place(made, damage)
    wrong = [key for key, fields in got.items() if original.get(key) != fields]
    lost = [key for key in original if key not in touched and key not in got]
    listed = {entry.key for entry in done.lost}
    silent = [key for key in lost if key not in listed]
    kinds = {problem.kind for problem in report.problems if problem.level == "error" or problem.kind in damage.kinds}
    return Outcome(kinds, wrong, lost, silent, len(set(original) - touched), len(got), beside)


COLUMNS = ("shards", "invented", "found", "quiet", "missed", "untouched", "recovered", "beside", "lost", "silent",
           "allowed", "wrong")  # fmt: skip


def run_case(number: int, seed: int = 0) -> tuple[str, dict[str, int], str]:
    """Damage one shard. Returns the kind of damage, what to add up, and a line where something is not as it must be."""
    rng = random.Random(seed * 1_000_003 + number)
    name = list(KINDS)[number % len(KINDS)]
    made = make(rng, tars=rng.random() < 0.25)
    with tempfile.TemporaryDirectory() as folder:
        (clean := Path(folder) / "clean.tar").write_bytes(made.data)
        report = checkup(Lot([str(clean)], None, None), Options(workers=1))
        invented = [problem.message for problem in report.problems if problem.kind != "pax"]
        damage = KINDS[name](made, rng)
        outcome = try_one(Path(folder), made, damage)
    touched = keys_by_place(made, damage)[0]
    # Bytes of payloads that are others now, behind good headers: nothing but a checksum tells. Nor what is left where
    # whole blocks are gone, so that a payload goes on in another one.
    in_phase = name == "delete" and damage.shift % 512 == 0
    blind = touched | outcome.beside if in_phase else touched if name in ("overwrite", "zero") else set()
    wrong, lost = set(outcome.wrong), set(outcome.lost)
    at, to = damage.touched
    if any(start < to and at < offset - 512 for (start, _), offset in zip(made.spans, made.offsets, strict=True)):
        blind = blind | wrong - set(made.samples)  # a name in a PAX header, which has no checksum
    allowed = wrong & blind
    found = bool(outcome.found & damage.kinds)
    missed = not found and not damage.quiet
    counts = [1, bool(invented), found, not found and not missed, missed, outcome.untouched,
              outcome.untouched - len(lost), len(lost & outcome.beside), len(lost - outcome.beside),
              len(outcome.silent),
              len(allowed), len(wrong - allowed)]  # fmt: skip
    row = dict(zip(COLUMNS, map(int, counts), strict=True))
    bad = any(row[column] for column in ("invented", "missed", "lost", "silent", "wrong"))
    said = f"case {number} {name} {damage.touched} {damage.shift}: {row}, {outcome}, {invented}" if bad else ""
    return name, row, said


def main() -> None:
    count, seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1000, int(sys.argv[2]) if len(sys.argv) > 2 else 0
    totals: dict[str, dict[str, int]] = {}
    for number in range(count):
        name, row, said = run_case(number, seed)
        into = totals.setdefault(name, dict.fromkeys(COLUMNS, 0))
        for column, value in row.items():
            into[column] += value
        if said:
            print(said[:500], file=sys.stderr)
    print("damage".ljust(12), *(column.rjust(9) for column in COLUMNS))
    for name, row in totals.items():
        print(name.ljust(12), *(str(row[column]).rjust(9) for column in COLUMNS))


if __name__ == "__main__":
    main()
