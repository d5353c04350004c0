"""make_plan(): what a conversion would do, as one value. The source is listed, nothing is written."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from wdstools import writer
from wdstools.convert import archives, description, destination, manifest, named, objects, order, shards, tree
from wdstools.convert.destination import ShardPlan, Target
from wdstools.convert.entries import Entries, Entry, sizes
from wdstools.convert.options import Options, Skipped
from wdstools.convert.order import Numbers
from wdstools.convert.saved import Saved
from wdstools.convert.sources import Faults, Listing, check_field, number_keys
from wdstools.errors import DestinationError, SourceError

FILES = frozenset({"flat", "classes", "paths", "manifest", "zip", "nested"})
ARROW = (".parquet", ".arrow")
TFRECORD = re.compile(r"\.tfrecords?(\.gz|\.zlib)?$|\.tfrecords?-[0-9*?]+-of-[0-9]+$|^tfrecord", re.IGNORECASE)
LOOKED_AT = 256  # entries of a folder, to see what it is
RECORDS = frozenset({"parquet", "tfrecord", "mds", "litdata"})


@dataclass
class Plan:
    """A conversion, ready to run. `orders`: for each target, the numbers of its entries; `shards`: how they are packed,
    None where that is known only once they are computed or have come in; `counted`: they are packed by the number of
    samples, which are still to be computed (Options.by_count)."""

    listing: Listing
    targets: list[Target]
    entries: Entries
    orders: list[Numbers]
    shards: list[list[ShardPlan]] | None
    lift: tuple[str, ...] | None
    description: dict[str, Any]
    skipped: list[Skipped] = field(default_factory=list)
    owner: tuple[str, str] = ("", "")  # of the lock of the destination: see lock.check_owner
    check: Callable[[], object] = lambda: None  # raises where the destination is not ours any more
    counted: bool = False

    @property
    def total(self) -> int | None:
        """Samples to write, None where a stream does not tell."""
        return None if self.listing.stream is not None else len(self.entries)

    @property
    def saved(self) -> Saved | None:
        """What the journal keeps of the shards, None where they are not known."""
        if self.shards is None:
            return None
        return Saved(self.targets, self.shards, self.entries, self.orders, exact=not self.counted)


def list_source(source: str, options: Options, faults: Faults, paths: Iterable[str] = ()) -> Listing:
    """List a SOURCE of any kind; `paths` are those on stdin, for `-`. Raises SourceError."""
    if source == "-":
        return tree.list_paths(paths, options, faults)
    if objects.is_objects(source):
        return objects.list_objects(source, options, faults)
    if named.is_remote_table(source):
        return manifest.list_manifest(source, options, faults)
    if (listing := _list_other(source, options, faults)) is not None:
        return listing
    if source.endswith(".wdsindex") or shards.is_shards(source):
        return shards.list_shards(source, options, faults)
    if os.path.isdir(source):
        listing = tree.list_tree(source, options, faults)
        first = itertools.islice(listing.entries, LOOKED_AT)
        if options.layout == "auto" and (tar := next((entry for entry in first if "tar" in entry.parts[::3]), None)):
            raise SourceError(
                f"{source}: {tar.key}.tar would be a sample with a whole tar in it. For its samples, name the folder "
                "that the tar is in, or its shards as a pattern; --layout classes and flat pack tars as they are"
            )
        return listing
    if not os.path.exists(source):
        raise SourceError(f"{source}: no such file or folder")
    return manifest.list_manifest(source, options, faults)


def _list_other(source: str, options: Options, faults: Faults) -> Listing | None:
    """The listing of a source in the format of another tool, None for one that is in none. Raises SourceError."""
    if archives.is_zip(source):
        return archives.list_zip(source, options, faults)
    if archives.is_nested(source):
        return archives.list_nested(source, options, faults)
    folder = os.path.isdir(source)
    if not folder and TFRECORD.search(os.path.basename(source)):
        from wdstools.convert import tfrecord

        return tfrecord.list_tfrecord(source, options)
    if folder and os.path.exists(os.path.join(source, "index.json")):
        from wdstools.convert import litdata, mds  # with numpy

        if mds.is_mds(source):
            return mds.list_mds(source, options)
        if litdata.is_litdata(source):
            return litdata.list_litdata(source, options)
    if _has_arrow(source) if folder else source.endswith(ARROW) or ("*" in source and not os.path.exists(source)):
        from wdstools.convert import parquet  # with Arrow

        return parquet.list_source(source, options)
    return None


def _has_arrow(folder: str) -> bool:
    """Say whether a folder, or one of the first in it, has Parquet or Arrow files among its first ones. A tree of
    millions of files is not walked for that."""
    folders: list[str] = []
    with contextlib.suppress(PermissionError), os.scandir(folder) as found:  # the listing tells it
        for item in itertools.islice(found, LOOKED_AT):
            if item.name.endswith(ARROW):
                return True
            if len(folders) < 8 and item.name[0] != "." and item.is_dir():
                folders.append(item.path)
    for path in folders:
        with contextlib.suppress(PermissionError), os.scandir(path) as found:
            if any(item.name.endswith(ARROW) for item in itertools.islice(found, LOOKED_AT)):
                return True
    return False


def make_plan(source: str, dest: str, options: Options, paths: Iterable[str] = ()) -> Plan:
    """Say what a conversion would do; nothing is written. Raises SourceError, DestinationError."""
    faults = Faults(options.on_error == "skip")
    listing = list_source(source, options, faults, paths)
    _check_fields(options, listing)
    if options.engine == "ray":
        _check_for_ray(source, options, listing)
    if listing.kind in FILES and (options.rename or options.drop or options.keep):
        listing.entries = _picked(listing.entries, options, faults)
    found = destination.targets(dest, listing.name, options.splits)
    _check_apart(listing, found)
    entries = listing.entries
    shuffle = listing.shuffle if options.shuffle is None else options.shuffle
    if options.splits:
        split = order.split(entries, options.splits, options.seed, options.by is not None)
        orders: list[Numbers] = [split[target.split] for target in found]
    else:
        orders = [range(len(entries))]
    if shuffle:
        orders = [order.shuffled(entries, numbers, options.seed) for numbers in orders]
    lift = options.lift
    if lift is None and options.map is not None:
        pass  # what fields there are is known when they are written
    elif lift is None and listing.stream is None:
        lift = ("cls",) if entries.has_field("cls") else ()
    elif lift is not None:
        lift = tuple(name for name in lift if name not in listing.carried)
    described = description.describe(listing, options, lift if options.lift is None else options.lift, shuffle)
    if options.keys == "number" and listing.stream is None:
        entries = number_keys(entries)
    packed = None
    counted = options.by_count and listing.stream is None
    if counted or (not options.transforms and listing.stream is None):
        packed = [_pack(entries, numbers, t, options) for t, numbers in zip(found, orders, strict=True)]
    return Plan(listing, found, entries, orders, packed, lift, described, faults.skipped, counted=counted)


def _check_for_ray(source: str, options: Options, listing: Listing) -> None:
    """Raises SourceError where there can be no plan of shards before the samples are read or computed."""
    if listing.stream is not None:
        raise SourceError(
            f"{source}: --engine ray needs samples that are listed before they are read, and these come one after the "
            "other. Make shards of them with --engine local; of those, --engine ray makes others"
        )
    if options.uncountable:
        raise SourceError(options.uncountable)


def _picked(entries: Entries, options: Options, faults: Faults) -> Entries:
    """The entries with their fields renamed and left out. Raises SourceError for a field that none has."""
    pick, found, seen = shards.picker(options), Entries(), set[str]()
    for key, group, parts in entries:
        seen.update(parts[::3])
        kept: list[Any] = []
        for k in range(0, len(parts), 3):
            new = pick(parts[k])
            if new is not None:
                wrong = check_field(new) or (new in kept[::3] and ("two files for one field", repr(new)))
                if wrong:
                    raise SourceError(f"sample {key!r}: {': '.join(wrong)}")
                kept += (new, parts[k + 1], parts[k + 2])
        if kept:
            found.append(Entry(key, group, tuple(kept)))
        else:
            faults.add(key, f"sample {key}", "no field is left", f"it has {', '.join(parts[::3])}")
    shards.check_lacking(options, seen)
    return found


def _pack(entries: Entries, numbers: Numbers, target: Target, options: Options) -> list[ShardPlan]:
    if type(entries) is Entries:
        return destination.pack(entries, numbers, target, options)
    from wdstools.convert import subset  # with Arrow

    return subset.pack(entries, numbers, target, options)  # type: ignore[arg-type]  # there is no third kind


def _check_fields(options: Options, listing: Listing) -> None:
    if options.by is not None:
        if not options.splits:
            raise SourceError("--by says what --split keeps in proportion: give --split too")
        known = {"classes": "cls", "objects-classes": "cls"}
        if listing.kind in ("flat", "objects-flat", "paths") or options.by != known.get(listing.kind, options.by):
            raise SourceError(f"--by {options.by}: the samples have no such field before they are read")
    recorded = listing.kind in RECORDS
    if listing.kind != "shards" and (options.join or options.sort_by is not None or options.sample is not None):
        raise SourceError("--join, --sort-by and --sample are for shards that have an index")
    if not recorded and listing.kind not in ("shards", "manifest") and options.where is not None:
        raise SourceError("--where is for shards that have an index, manifests, and records, as of Parquet")
    if options.verify and options.checksum == "none":
        raise SourceError("--verify compares checksums: not with --checksum none")
    if options.descending and options.sort_by is None:
        raise SourceError("--desc is for --sort-by: give that too")
    if listing.kind != "manifest" and (options.files or (not recorded and (options.inline or options.key_column))):
        raise SourceError("--files, --inline and --key-column are for manifests")
    if listing.stream is not None:
        for text, given in (("--shuffle", options.shuffle), ("--split", options.splits)):
            if given:
                raise SourceError(
                    f"{text} needs samples that can be read in any order: make shards first, then of those"
                )
    if listing.kind == "stream" and options.keys == "number":
        raise SourceError("--keys number needs shards that can be read in any order")
    if options.resize_fields and options.resize is None:
        raise SourceError("--resize-fields says which images --resize makes smaller: give --resize too")
    for name in options.lift or ():
        from wdstools.columns import CHECKSUM, CORE, HIDDEN  # with Arrow

        if name in CORE or name in HIDDEN or name == CHECKSUM:
            raise SourceError(f"--column {name}: every index has a column of that name")


def _check_apart(listing: Listing, found: list[Target]) -> None:
    folder = os.path.realpath(found[0].folder)
    if listing.folder:
        root = os.path.realpath(listing.folder)
        if folder == root or folder.startswith(root.rstrip("/") + "/"):
            raise DestinationError(f"{found[0].pattern}: lies inside of the source {listing.folder}: write elsewhere")
    mine = set(listing.local_shards)
    for target in found:
        for _, path in target.existing():
            if os.path.realpath(path) in mine:
                raise DestinationError(f"{path}: is a shard of the source: write elsewhere, or under another name")


def estimate(ready: Plan) -> int:
    """Return the bytes of the tars that a plan would write; before images become smaller."""
    if ready.shards is not None:
        return sum(shard.nbytes for plans in ready.shards for shard in plans)
    return sum(writer.sample_nbytes(entry.key, sizes(entry)) for entry in ready.entries)
