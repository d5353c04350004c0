"""litdata's copy of the samples, in a process of its own: `python litdata_optimize.py FOLDER COUNT NBYTES` of samples
that are made, `python litdata_optimize.py FOLDER TREE WORKERS files` of a tree of files."""

import functools
import random
import sys
from pathlib import Path


def sample(payloads: list[bytes], i: int) -> dict[str, object]:
    return {"bin": payloads[i % len(payloads)], "cls": i % 1000}


def file(entry: tuple[str, int]) -> dict[str, object]:
    return {"jpg": Path(entry[0]).read_bytes(), "cls": entry[1]}


def main(folder: str, what: str, number: int, kind: str = "") -> None:
    import litdata

    if kind == "files":
        folders = sorted(Path(what).iterdir())
        files = [(str(path), cls) for cls, found in enumerate(folders) for path in sorted(found.iterdir())]
        litdata.optimize(file, files, output_dir=folder, num_workers=number, chunk_bytes="64MB")
        return
    rng = random.Random(0)
    payloads = [rng.randbytes(number) for _ in range(200)]
    make = functools.partial(sample, payloads)
    litdata.optimize(make, list(range(int(what))), output_dir=folder, num_workers=1, chunk_bytes="64MB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
