"""A sample as files in a folder, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wdstools import errors
from wdstools.extract import extract


def sample(key: str, **fields: bytes) -> dict[str, Any]:
    return {"__key__": key, "__url__": "u", "__local_path__": "p", **fields}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("a", {"a.jpg", "a.cls"}),
        ("x/y.z/a", {"x/y.z/a.jpg", "x/y.z/a.cls"}),
        ("./a", {"a.jpg", "a.cls"}),
        ("dir/", {"dir/.jpg", "dir/.cls"}),
        ("..a/b..", {"..a/b...jpg", "..a/b...cls"}),
        ("..", {"...jpg", "...cls"}),
        ("-rf *", {"-rf *.jpg", "-rf *.cls"}),
        ("k" * 250, {"k" * 250 + ".jpg", "k" * 250 + ".cls"}),
    ],
)
def test_files_are_named_by_key_and_field(tmp_path: Path, key: str, names: set[str]) -> None:
    folder = tmp_path / "out" / "deep"
    paths = extract(sample(key, jpg=b"J", cls=b"1"), str(folder))
    assert everything(folder) == {name: b"J" if name.endswith("jpg") else b"1" for name in names}
    assert {os.path.normpath(path) for path in paths} == {str(folder / name) for name in names}


@pytest.mark.parametrize("key", ["../a", "/a", "a/../../b", "a/../b", "..", "/", "", "a\0b", "a/.."])
def test_keys_that_lead_out(tmp_path: Path, key: str) -> None:
    (tmp_path / "out").mkdir()
    fields = {"jpg": b"J"} if key not in ("..", "", "a/..") else {"/../../x": b"J"}
    with pytest.raises(errors.UrlError, match="leads out of the folder"):
        extract(sample(key, **fields), str(tmp_path / "out"))
    assert everything(tmp_path) == {}


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder, away = tmp_path / "out", tmp_path / "away"
    for path in (folder, away, folder / "real"):
        path.mkdir()
    (folder / "link").symlink_to(away)
    (folder / "inside").symlink_to(folder / "real")
    with pytest.raises(errors.UrlError, match="a symbolic link leads out"):
        extract(sample("link/a", jpg=b"J"), str(folder), overwrite=True)
    assert everything(away) == {}
    extract(sample("inside/a", jpg=b"J"), str(folder))
    assert (folder / "real" / "a.jpg").read_bytes() == b"J"
    (away / "victim").write_bytes(b"precious")
    (folder / "b.jpg").symlink_to(away / "victim")
    extract(sample("b", jpg=b"J"), str(folder), overwrite=True)
    assert (away / "victim").read_bytes() == b"precious"
    assert (folder / "b.jpg").read_bytes() == b"J"
    (tmp_path / "alias").symlink_to(folder)
    extract(sample("c", jpg=b"J"), str(tmp_path / "alias"))
    assert (folder / "c.jpg").read_bytes() == b"J"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.cls").write_bytes(b"old")
    (tmp_path / "b.jpg").mkdir()
    with pytest.raises(errors.DestinationError, match=r"a\.cls: is there already"):
        extract(sample("a", jpg=b"J", cls=b"1"), str(tmp_path))
    for overwrite in (False, True):
        with pytest.raises(errors.DestinationError, match=r"b\.jpg"):
            extract(sample("b", cls=b"1", jpg=b"J"), str(tmp_path), overwrite=overwrite)
    assert everything(tmp_path) == {"a.cls": b"old"}
    extract(sample("a", jpg=b"J", cls=b"1"), str(tmp_path), overwrite=True)
    assert everything(tmp_path) == {"a.cls": b"1", "a.jpg": b"J"}


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        extract(sample("a", jpg=b"J"), str(tmp_path))
    assert everything(tmp_path) == {}


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert extract(sample("a", jpg=b"J"), ".") == ["./a.jpg"]
    assert extract(sample("b", jpg=memoryview(b"J")), "") == ["b.jpg"]  # type: ignore[arg-type]
