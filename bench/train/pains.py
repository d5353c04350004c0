"""Three old pains of training from shards, shown on real ones: shuffle globally within fixed memory, change the split
without rewriting, find the worst samples and look at them. Beside webdataset, where it has a way.

`python -m bench.train.pains [FOLDER] [--out runs/pains]`

FOLDER: shards (.tar) in the order of their classes, or class folders of pictures, which are sharded first. Without it,
pictures are made. Writes pains.html, pains.json, the charts as .svg, losses.parquet and a picture of the gallery.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.train import classsorted, page, shuffling, splitting, worst
from bench.train.classsorted import Sorted
from wdstools.cli.bench.record import record
from wdstools.errors import WdsError

POINTS = 200  # of a line in a chart: the means of as many stretches of the epoch


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(arguments: argparse.Namespace, folder: Path) -> Sorted:
    source: Path | None = arguments.source
    start = time.perf_counter()
    shards = [] if source is None else sorted(str(path) for path in source.glob("*.tar"))
    if shards:
        data = classsorted.given(shards, folder, arguments.image, arguments.label)
    elif source is not None:
        tell(f"sharding {source}, every picture {arguments.copies} times")
        data = classsorted.of_tree(source, folder, arguments.copies, arguments.spoil)
    else:
        tell("making pictures")
        shape = {"classes": 12, "each": 40, "side": 96} if arguments.quick else {}
        data = classsorted.made(folder, spoil=arguments.spoil, **shape)
    return replace(data, seconds=time.perf_counter() - start)


def run(data: Sorted, arguments: argparse.Namespace, out: Path, folder: Path) -> dict[str, Any]:
    """Show all three. `folder`: for what is not kept."""
    labels = data.labels().tolist()
    counts = sorted(Counter(labels).values())
    told: dict[str, Any] = {
        "data": {
            "source": str(arguments.source or "made here"), "shards": len(data.shards), "samples": sum(counts),
            "classes": len(counts), "bytes": data.nbytes, "smallest_class": counts[0], "largest_class": counts[-1],
            "changes": sum(a != b for a, b in pairwise(labels)), "prepared_seconds": data.seconds,
            "spoiled": data.spoiled,
        },
        "batch": arguments.batch, "quick": arguments.quick, "ideal": shuffling.ideal(counts, arguments.batch),
    }  # fmt: skip
    parquet: Path = arguments.samples or out / "losses.parquet"
    trained = {} if arguments.samples else worst.train(data, parquet)
    found = worst.find(data, parquet)
    picture = out / "gallery.png"
    picture.unlink(missing_ok=True)
    home = Path(data.shards[0]).parent
    shown = "SHARDS" if home.is_relative_to(folder) else str(home)  # of those that are not kept nothing is left
    left_out = worst.shoot(data, parquet, folder, picture)
    told["worst"] = trained | found | {
        "command": worst.command(shown, parquet), "picture": None if left_out else picture.name, "left_out": left_out,
    }  # fmt: skip
    if left_out:
        tell(f"no picture of the gallery: {left_out}")
    told["shuffle"] = shuffling.measure(data, arguments.batch, arguments.rounds, tell)
    told["split"] = splitting.measure(data, folder, arguments.rounds, tell)
    return told | {"record": record(tuple(data.shards))}


def charts(told: dict[str, Any]) -> dict[str, str]:
    """The charts, by name: <svg> markup."""
    shuffled = told["shuffle"]
    xs, found = _stretches(shuffled[0]["batches"]), {}
    bound = page.Line("drawn from the whole set", [xs[0], xs[-1]], [told["ideal"]] * 2, dashed=True)
    for name, title, unit, factor in (
        ("entropy", "Entropy of the labels in a batch over an epoch", "bits", 1.0),
        ("memory", "Resident memory over an epoch", "MB, beyond the interpreter and its imports", 1e-6),
    ):
        series = [
            page.Line(one["label"], _stretches(one["batches"]), [factor * y for y in _means(one[name])])
            for one in shuffled
        ]
        found[name] = page.lines(title, "batch of the epoch", unit, series + ([bound] if name == "entropy" else []))
    shares = {}
    for split in told["split"]:
        whole: Counter[int] = Counter()
        for counts in split["counts"].values():
            whole.update(counts)
        rows = []
        for part, counts in split["counts"].items():
            values = [counts.get(label, 0) / many for label, many in whole.items()]
            low, middle, high = min(values), statistics.median(values), max(values)
            text = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            rows.append(page.Bar(part, middle, text, low, high, kind=int(part == "train")))
        shares[split["split"]] = rows
    found["split"] = page.bars("Share of each class that is in a part", shares)
    return found


def _stretches(batches: int) -> list[float]:
    """The last batch of each stretch of an epoch."""
    points = min(POINTS, batches)
    return [float(batches * (i + 1) // points) for i in range(points)]


def _means(values: Sequence[float]) -> list[float]:
    ends = [0, *map(int, _stretches(len(values)))]
    return [statistics.fmean(values[a:b]) for a, b in pairwise(ends)]


def shuffle_rows(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["order", "label entropy of a batch, bits", "of the ideal", "peak memory, MB", "seconds an epoch (spread)"]
    rows = []
    for one in told["shuffle"]:
        seconds = f"{one['seconds']:.2f} ({one['fastest']:.2f} to {one['slowest']:.2f})"
        share = f"{one['mean'] / told['ideal']:.0%}" if told["ideal"] else "-"
        rows.append([one["label"], f"{one['mean']:.2f}", share, f"{one['peak'] / 1e6:,.0f}", seconds])
    return head, [*rows, ["ideal: drawn from the whole set", f"{told['ideal']:.2f}", "100%", "", ""]]


def split_rows(told: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["split", "samples", "wdstools: seconds", "bytes written", "webdataset: seconds", "bytes written"]
    rows = []
    for one in told["split"]:
        samples = ", ".join(f"{part} {count:,}" for part, count in one["samples"].items())
        rows.append(
            [
                one["split"], samples, f"{one['seconds']:.3f}", f"{one['written']:,}",
                f"{one['webdataset_seconds']:.1f}", f"{one['webdataset_written']:,}",
            ]
        )  # fmt: skip
    return head, rows


def html(told: dict[str, Any], drawn: dict[str, str], picture: bytes | None) -> str:
    """The page."""
    data, found = told["data"], told["worst"]
    many = told["shuffle"][0]["rounds"]
    rounds = f"medians of {many} rounds, every contestant in every round" if many > 1 else "one round"
    in_order = data["changes"] < data["classes"] + 2 * len(data["spoiled"])
    order = "one class after the other" if in_order else "not in the order of the classes"
    intro = (
        f"{data['samples']:,} samples of {data['classes']:,} classes in {data['shards']} shards, "
        f"{data['bytes'] / 1e6:,.0f} MB, {order}; batches of {told['batch']}. "
        f"Data in the page cache; {rounds}."
    )
    body = [page.paragraph(intro)]
    if told["quick"]:
        body.append(page.paragraph("A quick run, for trying out: no measurement.", "warning"))
    body += [
        page.heading("1. Shuffle globally within fixed memory"),
        page.paragraph(
            "A buffer mixes what is in it: over class-sorted shards a batch has the classes of a few shards, and what "
            "the buffer holds is in memory, once more in every worker. A plan over the index computes which sample "
            "comes next; nothing is buffered. Larger blocks read neighbours together, which spares a disk its seeks, "
            "and mix less: they are not for class-sorted shards."
        ),
        page.figure(drawn["entropy"], "Higher is better mixed. A line is the mean over stretches of one epoch."),
        page.figure(drawn["memory"], "Resident memory of the process that reads, without workers."),
        page.table(*shuffle_rows(told)),
        page.heading("2. Change the split without rewriting"),
        page.paragraph(
            "split() decides by the hash of every key, over the index; seconds are those of opening it and splitting. "
            "The other way is to read all samples and to write each to the shards of its part."
        ),
        page.table(*split_rows(told)),
        page.figure(
            drawn["split"], "Bars are the median over the classes; the line goes from the lowest to the highest."
        ),
        page.heading("3. Find the worst samples, and look at them"),
        page.paragraph(_worst_text(found)),
        page.code(
            'dataset.join("losses.parquet").sort_by("loss", descending=True)[:12]\n' + found["command"],
        ),
        '<div class="pictures">' + "".join(map(_card, found["worst"], found["pictures"])) + "</div>",
        page.heading("The same in the gallery of wds-serve"),
    ]
    if picture is None:
        body.append(page.paragraph(f"No picture: {found['left_out']}", "warning"))
    else:
        body.append(page.image(picture, "The gallery, by descending loss"))
    rest = {name: told["record"][name] for name in told["record"]}
    return page.document("Three old pains of training from shards", body, rest)


def _worst_text(found: dict[str, Any]) -> str:
    text = f"Joined and sorted {found['samples']:,} losses, and fetched the worst, in {found['seconds']:.2f} s."
    if "accuracy" in found:
        text = (
            f"A tiny model, trained for {found['epochs']} epochs, has an accuracy of {found['accuracy']:.3f}. " + text
        )
    if found["spoiled"]:
        text += (
            f" {found['spoiled']} labels had been made wrong on purpose: {found['spoiled_found']} of them are the "
            f"{found['spoiled']} samples with the highest loss."
        )
    return text


def _card(row: dict[str, Any], picture: str) -> str:
    text = f"{row['key']}\nloss {row['loss']:.2f}, label {row['label']}, predicted {row['prediction']}"
    return page.card(picture, text)


def main(argv: Sequence[str] | None = None) -> None:
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m bench.train.pains", description=first, epilog=rest.partition("\n\n")[2],
    )  # fmt: skip
    parser.add_argument("source", type=Path, nargs="?", metavar="FOLDER", help="shards, or class folders")
    parser.add_argument("--out", type=Path, default=Path("runs/pains"), help="folder of the report [runs/pains]")
    parser.add_argument("--keep", type=Path, help="a new folder for the shards that are made, which stay there")
    parser.add_argument("--samples", type=Path, metavar="PARQUET", help="key, label, prediction, loss of a training")
    parser.add_argument("--copies", type=int, default=1, help="times that each picture of a class folder is taken [1]")
    parser.add_argument("--spoil", type=int, default=12, help="wrong labels in shards that are made [12]")
    parser.add_argument("--image", default="jpg", help="field of the picture in given shards [jpg]")
    parser.add_argument("--label", default="cls", help="field of the class number in given shards [cls]")
    parser.add_argument("--batch", type=int, default=64, help="samples [64]")
    parser.add_argument("--rounds", type=int, help="of every measurement [5; with --quick 1]")
    parser.add_argument("--quick", action="store_true", help="few small pictures and one round, for trying out")
    arguments = parser.parse_args(argv)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    if min(arguments.rounds, arguments.copies, arguments.batch) < 1 or arguments.spoil < 0:
        parser.error("--rounds, --copies and --batch are at least 1, --spoil 0")
    if arguments.source is not None and not arguments.source.is_dir():
        parser.error(f"{arguments.source}: no folder")
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch) / "data"
        try:
            folder.mkdir(parents=True)
            data = prepare(arguments, folder)
            told = run(data, arguments, out, Path(scratch))
        except (FileExistsError, ValueError, WdsError) as error:
            parser.error(str(error))
    drawn = charts(told)
    for name, svg in drawn.items():
        (out / f"{name}.svg").write_text(page.standalone(svg))
    picture = out / "gallery.png"
    (out / "pains.html").write_text(html(told, drawn, picture.read_bytes() if picture.exists() else None))
    (out / "pains.json").write_text(json.dumps(told))
    print(page.markdown(*shuffle_rows(told)), page.markdown(*split_rows(told)), _worst_text(told["worst"]), sep="\n\n")
    tell(f"{out}/pains.html")


if __name__ == "__main__":
    main()
