"""What the tests of foreign indexes share: a set of shards with its index, exports of it, and the real readers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers import make_tar
from hypothesis import strategies as st
from indexing import Files, rows_of

from wdstools import build
from wdstools.index import Index
from wdstools.interop.claims import Claim, import_claims
from wdstools.interop.foreign import Options, Written
from wdstools.interop.formats import FORMATS, read_claims

READERS = Path(__file__).with_name("interop_readers.py")
WHY = "WDS_TEST_READERS is not the python of an environment with the real readers; .ci/run makes one"
needs_readers = pytest.mark.skipif(not os.environ.get("WDS_TEST_READERS"), reason=WHY)

# Letters that a name may have; no dot, slash or white space, which the strategies put in
LETTERS = st.text(st.sampled_from("abcXYZ019_-=+@é漢{}[]%#?&'\"\\"), min_size=1, max_size=8)
EXTS = st.sampled_from(["jpg", "cls", "JPG", "seg.png", "json", "é", "txt"])


@st.composite
def shards(draw: st.DrawFn, pairs: bool = False, spaces: bool = False) -> list[Files]:
    """One to three shards of samples with fields, and of members that are no fields."""
    sets, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        files: Files = []
        for _ in range(draw(st.integers(1, 5))):
            number += 1
            folder = draw(st.sampled_from(["", "a/", "b.c/d/", "./"]))
            space = draw(st.sampled_from(["", " "])) if spaces else ""
            key = f"{folder}{draw(LETTERS)}{space}{number}"
            exts = draw(st.lists(EXTS, min_size=2 if pairs else 1, max_size=2 if pairs else 3, unique_by=str.lower))
            files += [(f"{key}.{ext}", draw(st.binary(max_size=1100))) for ext in exts]
            if not pairs and draw(st.booleans()):
                files.append((f"noext{number}", b"no field"))
        sets.append(files)
    return sets


def write(folder: Path, sets: list[Files], format: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, files in enumerate(sets):
        paths.append(str(folder / f"t-{number:06d}.tar"))
        Path(paths[-1]).write_bytes(make_tar(files, format, mtime))
    return paths


PAIRS: list[Files] = [
    [(f"p{s}/{i}.{ext}", f"{s}{i}{ext}".encode() * (i + 1)) for i in range(4) for ext in ("jpg", "cls")]
    for s in range(3)
]
RICH: list[Files] = [
    [("a/0.JPG", b"x" * 700), ("a/0.cls", b"1"), ("readme", b"r"), ("b.txt", b""), ("c.seg.png", b"y" * 512)],
    [("./d.jpg", b"z"), ("é.cls", b"7"), ("__m__/x.txt", b"meta"), ("e.JPG", b"0" * 1025), ("noext", b"")],
]


def indexed(folder: Path, sets: list[Files] = PAIRS, **options: Any) -> Index:
    """An index, in a file, of these shards."""
    index = build.build(write(folder, sets, **options))
    index.save(folder / "t.wdsindex")
    return Index.load(folder / "t.wdsindex")


def export(index: Index, format: str, output: Path | str | None = None, overwrite: bool = False) -> Written:
    return FORMATS[format].export(index, Options(None if output is None else str(output), overwrite, 2))


def claims_of(index: Index, format: str, folder: Path, indexes: Path | None = None) -> list[Claim]:
    """What was exported, read back. `folder`: of the shards."""
    if format in ("wids", "parquet"):
        name = {"wids": "shardindex.json", "parquet": "t.parquet"}[format]
        return read_claims(format, [str((indexes or folder) / name)])
    sources = [str(folder)] if format == "energon" else index.shards.url
    return read_claims(format, sources, str(indexes) if indexes else None)


def imported(claims: list[Claim], path: Path) -> Index:
    return import_claims(str(path), claims, Options(workers=2)).index


def same(a: Index, b: Index) -> bool:
    """Whether two indexes have the same rows of the same shards."""
    tables = [[getattr(x.shards, name) for name in ("url", "nbytes", "nsamples", "nmembers")] for x in (a, b)]
    return tables[0] == tables[1] and rows_of(a) == rows_of(b)


def read_with(name: str, told: dict[str, Any], **environment: str) -> Any:
    """What a real reader reads; see interop_readers."""
    command = [os.environ["WDS_TEST_READERS"], "-W", "ignore", str(READERS), name]
    env = os.environ | environment
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, input=json.dumps(told), capture_output=True, text=True, env=env, timeout=100)
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise AssertionError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
