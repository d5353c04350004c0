"""What the tests of wds-shard share: sources to make, and naive readers of what comes out."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from wdstools.convert.entries import Entry
from wdstools.convert.local import convert
from wdstools.convert.options import Options, Summary
from wdstools.convert.plan import list_source
from wdstools.convert.sources import Faults, Listing

COMMAND = [sys.executable, "-c", "from wdstools.cli.shard import main; main()"]
Samples = dict[str, dict[str, bytes]]


def put(root: Path, files: Mapping[str, bytes | str], age: float = 60) -> Path:
    """Write files, dated a minute ago, as those of a source are."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        then = time.time() - age
        os.utime(path, (then, then))
    return root


def class_tree(root: Path, classes: int = 3, each: int = 5, nbytes: int = 700, seed: int = 0) -> Samples:
    """Make a folder with a folder for each class; return the samples that it stands for."""
    rng = random.Random(seed)
    files = {
        f"n{c:02d}/img_{i:03d}.JPEG": rng.randbytes(rng.randrange(nbytes)) for c in range(classes) for i in range(each)
    }
    put(root, files)
    return {
        name.removesuffix(".JPEG"): {"jpeg": data, "cls": str(int(name[1:3])).encode()} for name, data in files.items()
    }


def image_tree(root: Path, classes: int = 2, each: int = 6) -> None:
    put(root, {f"n{c}/{i}.jpg": jpeg(40 + i, 60 + c, (i * 20, c * 90, 7)) for c in range(classes) for i in range(each)})


def jpeg(width: int, height: int, color: Any = (200, 30, 90), **options: Any) -> bytes:
    return image_bytes(Image.new("RGB", (width, height), color), "JPEG", **options)


def image_bytes(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def shards(folder: Path, start: str = "") -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(".tar") and p.name.startswith(start))


def members(path: Path) -> list[tuple[str, bytes]]:
    """As tarfile sees them."""
    with tarfile.open(path, "r:") as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def samples(folder: Path, start: str = "") -> Samples:
    """All samples of the shards in a folder, put together by hand; fails where a name comes twice."""
    found: Samples = {}
    for path in shards(folder, start):
        for name, data in members(path):
            head, slash, base = name.rpartition("/")
            stem, _, ext = base.partition(".")
            sample = found.setdefault(head + slash + stem, {})
            assert ext not in sample, name
            sample[ext] = data
    return found


def keys(folder: Path, start: str = "") -> list[str]:
    """The keys, in the order of the shards."""
    return list(samples(folder, start))


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same(found: Path, wanted: Path) -> None:
    """The same files in both, with the same bytes."""
    a, b = everything(found), everything(wanted)
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name] != b[name]] == []


def hidden(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def run(*args: str | Path, stdin: bytes = b"", cwd: Path | None = None, **more: Any) -> tuple[int, str, str]:
    """The command as a process: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)], input=stdin, capture_output=True, timeout=60, check=False, cwd=cwd, **more
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def go(source: Path | str, dest: Path | str, **options: Any) -> Summary:
    return convert(str(source), str(dest), Options(**options))


def listed(source: Path | str, paths: list[str] | None = None, **options: Any) -> tuple[Listing, Faults]:
    given = Options(**options)
    faults = Faults(given.on_error == "skip")
    return list_source(str(source), given, faults, paths or []), faults


def fields_of(listing: Listing) -> Samples:
    """The samples of a listing, their files read."""
    return {entry.key: _read(listing, entry) for entry in listing.entries}


def _read(listing: Listing, entry: Entry) -> dict[str, bytes]:
    found = {}
    for name, value in listing.fields(entry).items():
        found[name] = Path(value[0]).read_bytes() if isinstance(value, tuple) else bytes(value)
        if isinstance(value, tuple):
            assert value[1] == len(found[name])
    return found
