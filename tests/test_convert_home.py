"""The process that planned a job, and another that computes its samples."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
from convert_helpers import put

from wdstools.convert import home
from wdstools.convert.options import Options
from wdstools.errors import SourceError


def test_folder_and_modules(tmp_path: Path) -> None:
    folder, paths = os.getcwd(), list(sys.path)
    put(tmp_path, {"there/module_of_home.py": "x = 1", "in/a.txt": "a"})
    there = home.Home(str(tmp_path / "in"), (str(tmp_path / "there"), *paths[:1]), {})
    with contextlib.suppress(KeyError), home.as_at(there, Options()):
        assert Path("a.txt").read_text() == "a"
        import module_of_home  # type: ignore[import-not-found]

        assert module_of_home.x == 1
        assert sys.path == [*paths, str(tmp_path / "there")]
        raise KeyError
    assert (os.getcwd(), sys.path) == (folder, paths)
    with home.as_at(there._replace(folder=str(tmp_path / "gone")), Options()):
        assert os.getcwd() == folder


def test_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "x", "/y"])
    found = home.of_this_process({"options": {"pillow": "1", "maxcount": 3}})
    assert found == (str(tmp_path), (f"{tmp_path}/", f"{tmp_path}/x", "/y"), {"pillow": "1"})


OTHER = [
    ("", {"map's module": "00"}, "map's module is another on .* than where the job was planned. Other"),
    ("/nowhere", {"map's module": "00"}, r"there is no module module_of_tools.* \(on .*, where --engine ray"),
    ("", {"pillow": "1.2.3"}, r"pillow is another on .*planned: [0-9.]+ and 1.2.3\. Other bytes"),
]


@pytest.mark.parametrize(("folder", "tools", "told"), OTHER)
def test_other_tools(tmp_path: Path, folder: str, tools: dict[str, str], told: str) -> None:
    put(tmp_path, {"module_of_tools.py": "def f(sample): return sample"})
    options = Options(resize=9) if "pillow" in tools else Options(map="module_of_tools:f")
    with pytest.raises(SourceError, match=told), home.as_at(home.Home(folder or str(tmp_path), (), tools), options):
        pass
