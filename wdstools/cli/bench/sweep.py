"""What a sweep of readers measures: the ways to read, the numbers of workers, the rounds."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?B|B)?")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
PROGRAMS = {"cat": "cat", "dd": "dd", "mbuffer": "mbuffer", "fread": "fread", "curl": "curl", "wds-cat": "wds-cat"}
LOCAL = ("plain", "cat", "dd", "mbuffer", "fread", "stream")
REMOTE = ("store", "parts", "curl", "wds-cat", "stream")
# A reader's sizes where none are given: the buffer, block, chunk or part.
SIZES = {
    "plain": ("8K", "128K", "1M", "8M", "64M"),
    "dd": ("4M",),
    "mbuffer": ("1M", "16M"),
    "fread": ("8M", "32M", "64M"),
    "parts": ("1M", "8M", "32M"),
}
QUICK_SIZES = {"plain": ("8K", "1M"), "dd": ("4M",), "mbuffer": ("1M",), "fread": ("32M",), "parts": ("8M",)}
FLAGS: dict[str, tuple[tuple[str, ...], ...]] = {"fread": ((), ("--lock", "always"), ("--direct",))}
QUICK_FLAGS: dict[str, tuple[tuple[str, ...], ...]] = {"fread": ((), ("--lock", "always"))}


def parse_size(text: str | int) -> int:
    """Bytes of 64K, 32M, 1G (of 1024; KiB, MiB, GiB too), 64kB, 32MB, 1GB (of 1000) or a number. Raises ValueError."""
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no size such as 64K, 32M or 1G")
    base = 1000 if match[3] == "B" and match[2] else 1024
    nbytes = int(float(match[1]) * base ** _POWER[match[2]])
    if nbytes < 1:
        raise ValueError(f"{text!r}: a size is at least one byte")
    return nbytes


def short(nbytes: int) -> str:
    """A size as people type it: 64K, 32M."""
    for unit, factor in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


@dataclass(frozen=True)
class Variant:
    """One way to read. `size`: bytes of its buffer, block, chunk or part; `flags`: more for its command line."""

    reader: str
    size: int | None = None
    flags: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        words = [self.reader, *([] if self.size is None else [short(self.size)]), *self.flags]
        return " ".join(words)

    def command(self, target: str) -> str | None:
        """The shell command that writes a shard to stdout; `target` is quoted already. None: no command does that."""
        size = 0 if self.size is None else self.size
        flags = "".join(f" {flag}" for flag in self.flags)
        return {
            "cat": f"cat{flags} {target}",
            "dd": f"dd bs={short(size)}{flags} status=none if={target}",
            # room for eight blocks: it wants five, and more would be read ahead of a reader that wants no more
            "mbuffer": f"mbuffer -q -s {size} -m {max(8 * size, 2 << 20)}{flags} -i {target}",
            "fread": f"fread --chunk {short(size)}{flags} {target}",
            "curl": f"curl -fsSL{flags} {target}",
            "wds-cat": f"wds-cat{flags} {target}",
        }.get(self.reader)


@dataclass(frozen=True)
class Cell:
    """One place of the table: a way to read, and how many do so at once."""

    variant: Variant
    workers: int

    @property
    def name(self) -> str:
        return f"{self.variant.label} x{self.workers}"


@dataclass(frozen=True)
class Sweep:
    """All that is measured. `seconds`: what a cell takes at the rate of one reader; one that is slower is stopped after
    four times as long."""

    paths: tuple[str, ...]
    variants: tuple[Variant, ...]
    workers: tuple[int, ...] = (1, 2, 4, 8)
    seconds: float = 3.0
    rounds: int = 3
    warm: bool = False

    def cells(self) -> list[Cell]:
        return [Cell(variant, workers) for workers in self.workers for variant in self.variants]

    def turns(self) -> Iterator[tuple[int, Cell]]:
        """Every cell once a round, each round beginning at another one, so that no reader always follows the same."""
        cells = self.cells()
        for number in range(self.rounds):
            first = number * len(cells) // max(self.rounds, 1)
            yield from ((number, cell) for cell in cells[first:] + cells[:first])

    def to_json(self) -> dict[str, Any]:
        """What identifies a sweep: a journal of another one is not continued."""
        return asdict(self)


def variants(readers: Iterable[str], sizes: Mapping[str, Iterable[str]], quick: bool) -> list[Variant]:
    """The ways to read: each reader with each of its sizes. Raises ValueError."""
    found = []
    for reader in readers:
        usual = (QUICK_SIZES if quick else SIZES).get(reader)
        if reader in sizes and usual is None:
            raise ValueError(f"{reader} has no size")
        chosen: list[int | None] = [parse_size(size) for size in sizes.get(reader, usual or ())]
        for flag in (QUICK_FLAGS if quick else FLAGS).get(reader, ((),)):
            # with flags, one size is enough to see what they change
            found += [Variant(reader, size, flag) for size in (chosen[-2:][:1] if flag else chosen) or [None]]
    return found


def known(remote: bool) -> tuple[str, ...]:
    return REMOTE if remote else LOCAL


def available(given: Iterable[Variant]) -> tuple[list[Variant], list[str]]:
    """Those whose program is installed, and the programs that are missing."""
    found, missing = [], []
    for variant in given:
        program = PROGRAMS.get(variant.reader)
        if program is None or shutil.which(program):
            found.append(variant)
        elif program not in missing:
            missing.append(program)
    return found, missing


def from_config(text: str, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """A YAML file of sweeps under the options given as flags, which win.

    Keys: paths, workers, seconds, rounds, quick, warm, readers, sizes (a mapping of reader to sizes), and sweeps, a
    list of mappings of reader, sizes and flags. Raises ValueError: it is not that, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise ValueError("reading it needs PyYAML: pip install 'wdstools[bench]', or use flags") from None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the file is no YAML: {error}") from None
    keys = {"paths", "workers", "seconds", "rounds", "quick", "warm", "readers", "sizes", "sweeps"}
    if not isinstance(found, dict) or not set(found) <= keys:
        strange = sorted(map(str, set(found) - keys)) if isinstance(found, dict) else [type(found).__name__]
        raise ValueError(f"the file has {', '.join(strange)}: it takes {', '.join(sorted(keys))}")
    found |= {key: [value] for key, value in found.items() if key in ("readers", "workers") and _is_scalar(value)}
    if not isinstance(found.get("sizes", {}), dict):
        raise ValueError("sizes is a mapping, such as fread: [16M, 32M]")
    return found | {key: value for key, value in sweep.items() if value not in (None, (), {})}


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | int)


def config_variants(entries: Any) -> list[Variant]:
    """The `sweeps` of a YAML file. Raises ValueError."""
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not set(entry) <= {"reader", "sizes", "flags"} or "reader" not in entry:
            raise ValueError(f"{entry!r}: an entry of sweeps has a reader, and may have sizes and flags")
        flags = entry.get("flags", ())
        words = tuple(flags.split() if isinstance(flags, str) else map(str, flags))
        plain = Variant(str(entry["reader"]), None, words)
        sizes = [parse_size(size) for size in entry.get("sizes", ())]
        if not sizes and plain.reader in SIZES:
            sizes = [parse_size(SIZES[plain.reader][-1])]
        found += [replace(plain, size=size) for size in sizes] or [plain]
    return found
