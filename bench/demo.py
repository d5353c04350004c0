"""The main job on data that it makes itself: shard, index, stream, random access; rates beside webdataset's.

`python -m bench.demo [--files 4000] [--keep FOLDER]`
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

import wdstools

ROUNDS = 3


def make_tree(folder: Path, count: int, classes: int = 20) -> None:
    """Real JPEGs of about 110 kB: 40 different ones of smooth noise, under many names."""
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(40):
        coarse = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        path = folder / f"picture-{i}.jpg"
        Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC).save(path, quality=96)
        pictures.append(path.read_bytes())
        path.unlink()
    for c in range(classes):
        (folder / f"class{c:02d}").mkdir()
    for i in range(count):
        (folder / f"class{i % classes:02d}" / f"img{i:06d}.jpg").write_bytes(pictures[i % 40])


def command(name: str, *arguments: str, show: bool = True) -> str:
    """Run one of our commands as a user would, and return what it printed on stdout."""
    if show:
        print(f"$ {name} {' '.join(arguments)}")
    script = Path(sysconfig.get_path("scripts")) / name
    done = subprocess.run([str(script), *arguments], stdout=subprocess.PIPE, text=True, check=True)
    if show:
        print("".join(f"  {line}\n" for line in done.stdout.splitlines()[:6]), end="")
    return done.stdout


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(work: str, unit: str, units: int, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Time both in turn, and print the medians."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    a, b = (units / statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"  {work:<46} {a:>12,.0f} {b:>12,.0f} {a / b:>8.1f} x   {unit}")


def write_with_webdataset(tree: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with webdataset.ShardWriter(f"{out}/train-%06d.tar", maxcount=1000, verbose=0) as sink:
        for number, folder in enumerate(sorted(tree.iterdir())):
            for path in sorted(folder.iterdir()):
                sink.write({"__key__": f"{folder.name}/{path.stem}", "jpg": path.read_bytes(), "cls": number})


def small_samples(count: int) -> list[dict[str, object]]:
    rng = random.Random(0)
    return [{"__key__": f"{i:07d}", "bin": rng.randbytes(1024), "cls": i % 10} for i in range(count)]


def write_small(sink: contextlib.AbstractContextManager[object], samples: list[dict[str, object]]) -> None:
    with sink as opened:
        for sample in samples:
            opened.write(sample)  # type: ignore[attr-defined]


def read_all(samples: object) -> None:
    for sample in samples:  # type: ignore[attr-defined]
        np.bitwise_xor.reduce(np.frombuffer(sample["jpg"], np.uint8))


def demo(folder: Path, count: int) -> None:
    tree, out, theirs = folder / "tree", folder / "shards", folder / "webdataset"
    tree.mkdir(parents=True)
    print(f"making {count} JPEGs in {tree}", file=sys.stderr)
    make_tree(tree, count)

    pattern = f"{out}/train-%06d.tar"
    command("wds-shard", str(tree), pattern, "--maxcount", "1000")
    shards = command("shardsum", *sorted(str(path) for path in out.glob("*.tar"))).strip()
    command("wds-index", "ls", str(out), "--where", "cls = 3", "--limit", "3")

    def shard_again() -> None:
        shutil.rmtree(out)
        command("wds-shard", str(tree), pattern, "--maxcount", "1000", show=False)

    small = small_samples(50_000)
    print(f"\n  {'work':<46} {'wdstools':>12} {'webdataset':>12}")
    row(
        "tree of JPEGs -> shards (ours with index)",
        "files/s",
        count,
        shard_again,
        lambda: write_with_webdataset(tree, theirs),
    )
    row(
        "stream JPEGs, every byte touched",
        "samples/s",
        count,
        lambda: read_all(wdstools.stream(shards)),
        lambda: read_all(webdataset.WebDataset(shards, shardshuffle=False)),
    )
    row(
        "write 1 kB samples (ours with index)",
        "samples/s",
        len(small),
        lambda: write_small(wdstools.ShardWriter(f"{folder}/a-%06d.tar", overwrite=True), small),
        lambda: write_small(webdataset.ShardWriter(f"{folder}/b-%06d.tar", verbose=0), small),
    )
    row(
        "stream 1 kB samples",
        "samples/s",
        len(small),
        lambda: sum(1 for _ in wdstools.stream(f"{folder}/b-000000.tar")),
        lambda: sum(1 for _ in webdataset.WebDataset(f"{folder}/b-000000.tar", shardshuffle=False)),
    )
    dataset = wdstools.open(shards)
    picks = [random.Random(0).randrange(count) for _ in range(2000)]
    spent = statistics.median(seconds(lambda: read_all(dataset[i] for i in picks)) for _ in range(ROUNDS))
    work = "random access, dataset[i], every byte touched"
    print(f"  {work:<46} {len(picks) / spent:>12,.0f} {'none':>12} {'':>8}     samples/s")
    sample = dataset["class03/img000003"]
    original = (tree / "class03" / "img000003.jpg").read_bytes()
    if sample["jpg"] != original or sample["cls"] != b"3":
        raise SystemExit("class03/img000003 is not what it was made from")
    print("\n  and dataset['class03/img000003'] is byte for byte the file that it was made from")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--keep", type=Path, help="work in this new folder, and leave it there")
    arguments = parser.parse_args()
    if arguments.keep:
        demo(arguments.keep, arguments.files)
    else:
        with tempfile.TemporaryDirectory() as folder:
            demo(Path(folder), arguments.files)


if __name__ == "__main__":
    main()
