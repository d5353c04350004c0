"""Peak memory of the main jobs, each in a process of its own, on one amount of data and on four times as much:

`python -m bench.memory [--samples 250000] [--json FILE]`

The peak is that of the resident set (ru_maxrss): the interpreter, libraries and mapped files are all in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import data

JOBS = {
    "ShardWriter, 1 kB samples": """
        with wdstools.ShardWriter(f"{folder}/w-%06d.tar", maxcount=50_000) as sink:
            for sample in data.samples(count, data.SMALL):
                sink.write(sample)""",
    "stream, 1 kB samples": """
        assert sum(1 for _ in wdstools.stream(shards)) == count""",
    "stream, views": """
        assert sum(1 for _ in wdstools.stream(shards, views=True)) == count""",
    "wds-index build": """
        sys.argv[1:] = ["build", "--force", *shards]
        from wdstools.cli.index import main
        main()""",
    "open(...)[i], 100,000 at random": """
        dataset = wdstools.open(f"{folder}/w.wdsindex")
        rng = random.Random(0)
        for _ in range(100_000):
            dataset[rng.randrange(count)]""",
    "wds-shard, as many files of 100 bytes": """
        sys.argv[1:] = [tree, f"{folder}/t-%06d.tar"]
        from wdstools.cli.shard import main
        main()""",
}

BEGIN = """
import glob, random, sys
import wdstools
from bench import data
folder, tree, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
shards = sorted(glob.glob(f"{folder}/w-*.tar"))
if True:"""


def peak(code: str, *arguments: str) -> int:
    """Run code, and return the bytes of its peak."""
    child = subprocess.Popen([sys.executable, "-c", BEGIN + code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"it failed with {child.returncode}:{code}")
    return usage.ru_maxrss * 1024


def measure(count: int) -> dict[str, int]:
    found = {"import wdstools, numpy, pyarrow, duckdb": peak("\n        import numpy, pyarrow, duckdb", "", "", "0")}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        data.tree(tree, count, 100, classes=max(1, count // 1000))
        for name, code in JOBS.items():
            found[name] = peak(code, folder, str(tree), str(count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=250_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = [arguments.samples, 4 * arguments.samples]
    found = {size: measure(size) for size in sizes}
    if arguments.json:
        arguments.json.write_text(json.dumps(found))
    print(f"| peak MB | {' | '.join(f'{size:,} samples' for size in sizes)} |\n|---|{'---|' * len(sizes)}")
    for name in found[sizes[0]]:
        print(f"| {name} | {' | '.join(f'{found[size][name] / 1e6:.0f}' for size in sizes)} |")


if __name__ == "__main__":
    main()
