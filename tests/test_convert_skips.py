"""skipped.jsonl, of several sets of shards."""

from __future__ import annotations

import json
from pathlib import Path

from convert_helpers import put

from wdstools.convert.options import Skipped
from wdstools.convert.skips import put_skipped


def test_what_was_left_out_of_two_sets_in_one_folder(tmp_path: Path) -> None:
    folder, path = str(tmp_path), tmp_path / "skipped.jsonl"
    put(tmp_path, {"skipped.jsonl": b"not ours\n"})
    put_skipped(folder, "a", [Skipped("k", "file\udcff", "why"), Skipped("l", "f", "why")])
    put_skipped(folder, "b", [Skipped("m", "f", "why")])
    put_skipped(folder, "a", [Skipped("k", "file", "why")])
    lines = path.read_text().splitlines()
    assert lines[0] == "not ours"
    assert [tuple(json.loads(line).values()) for line in lines[1:]] == [
        ("m", "f", "why", "b"),
        ("k", "file", "why", "a"),
    ]
    path.write_text("".join(line + "\n" for line in lines[1:]))
    put_skipped(folder, "a", [])
    assert len(path.read_text().splitlines()) == 1
    put_skipped(folder, "b", [])
    assert not path.exists()
