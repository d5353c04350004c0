"""What a conversion is asked to do, as one value, and what it has done, as another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MAXCOUNT = 10_000
MAXSIZE = 1_000_000_000


@dataclass(frozen=True)
class Options:
    """How to convert. Sizes are in bytes. None: the default depends on the source.

    `maxcount`, `maxsize`: of a shard, MAXCOUNT and MAXSIZE where they are None; see also `by_count`.
    `splits`: (name, fraction) pairs; `by`: the field or column that keeps its proportions in every split.
    `keys`: "path" (the path without its extension) or "number" (the position in sorted order).
    `dotted`: take `a.0.jpg` for the field `0.jpg` of `a`, instead of an error.
    `resize`: pixels of the shorter side, `resize_fields`: only these fields (default: every image).
    `files`: (column, field or "") of a manifest; `inline`: its columns that become fields; `key_column`: its keys.
    `rename`, `drop`, `keep`: fields of existing shards. `lift`: columns of the index. `sync`: see writer.ShardFile.
    `where`, `join` (tables, on `key`), `sort_by`, `descending`, `sample` (how many, or as a float which part): a subset
    of shards with an index, in the order of the index or of a column. `map`: module:function, see mapping.py.
    `checksum`: what the index keeps them of; `verify`: read every shard from the disk once it is written, and compare.
    `address`: of the cluster for the engine "ray"; None: RAY_ADDRESS, or one that is started here.
    """

    maxcount: int | None = None
    maxsize: int | None = None
    shuffle: bool | None = None
    seed: int = 0
    splits: tuple[tuple[str, float], ...] = ()
    by: str | None = None
    keys: Literal["path", "number"] = "path"
    layout: Literal["auto", "classes", "flat"] = "auto"
    dotted: bool = False
    nul: bool = False
    resize: int | None = None
    quality: int = 90
    resize_fields: frozenset[str] = frozenset()
    files: tuple[tuple[str, str], ...] = ()
    inline: tuple[str, ...] = ()
    key_column: str | None = None
    rename: tuple[tuple[str, str], ...] = ()
    drop: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    lift: tuple[str, ...] | None = None
    map: str | None = None
    where: str | None = None
    join: tuple[str, ...] = ()
    sort_by: str | None = None
    descending: bool = False
    sample: float | int | None = None
    workers: int | None = None
    checksum: Literal["none", "shard", "sample"] = "shard"
    verify: bool = False
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    sync: bool = False
    on_error: Literal["stop", "skip"] = "stop"
    overwrite: bool = False

    @property
    def checksums(self) -> int:
        """`checksum` as ShardFile takes it."""
        return ("none", "shard", "sample").index(self.checksum)

    @property
    def limits(self) -> tuple[int, int]:
        """Samples and bytes of a shard, at most."""
        maxcount = MAXCOUNT if self.maxcount is None else self.maxcount
        return maxcount, MAXSIZE if self.maxsize is None else self.maxsize

    @property
    def transforms(self) -> bool:
        """Say whether samples are computed: then their sizes are known only when they are written."""
        return self.resize is not None or self.map is not None

    @property
    def by_count(self) -> bool:
        """Say whether computed samples that are listed beforehand are cut by `maxcount` of the source, whatever becomes
        of them: then a shard depends on its own samples alone. Else by what is written, one shard after the other."""
        return self.transforms and self.maxcount is not None and self.maxsize is None

    @property
    def uncountable(self) -> str:
        """Say what is wrong with options that give no plan of shards, where the engine needs one; else ""."""
        if self.engine != "ray" or not self.transforms or self.by_count:
            return ""
        what = f"--engine ray with {'--resize' if self.map is None else '--map'}"
        if self.maxsize is not None:
            return (
                f"{what} cuts by --maxcount alone, without --maxsize: how large a sample becomes is known only when it "
                "is written"
            )
        return f"{what} cuts by the number of samples: give --maxcount, which counts those of the source"

    def selects(self) -> bool:
        """Say whether not all samples are wanted, or in another order."""
        return self.where is not None or self.sort_by is not None or self.sample is not None or bool(self.join)


class Skipped(NamedTuple):
    """A sample that was left out: its key, the file (or row) that was at fault, and why, in a few words."""

    key: str
    file: str
    reason: str


@dataclass
class Summary:
    """What a conversion has done. `nbytes`: of all tars; `kept`: shards that an earlier run had finished;
    `complete`: everything was there already."""

    shards: int = 0
    samples: int = 0
    nbytes: int = 0
    kept: int = 0
    complete: bool = False
    seconds: float = 0.0
    indexes: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How many samples were left out, by reason."""
        counts: dict[str, int] = {}
        for item in self.skipped:
            counts[item.reason] = counts.get(item.reason, 0) + 1
        return dict(sorted(counts.items()))

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON shows it."""
        return {
            "shards": self.shards,
            "samples": self.samples,
            "nbytes": self.nbytes,
            "kept": self.kept,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "indexes": self.indexes,
            "skipped": self.reasons(),
        }
