"""In CI, a test that is skipped without leave fails the session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

SKIPPED = {
    "skip mark": "@pytest.mark.skip(reason='not today')\ndef test(): pass",
    "skipif": "@pytest.mark.skipif(True, reason='not today')\ndef test(): pass",
    "in the test": "def test(): pytest.skip('not today')",
    "importorskip": "def test(): pytest.importorskip('no_such_module', reason='not today')",
    "module": "pytest.skip('not today', allow_module_level=True)",
    "xfail": "@pytest.mark.xfail(reason='not today')\ndef test(): assert False",
    "fixture": "@pytest.fixture\ndef f(): pytest.skip('not today')\ndef test(f): pass",
    "parameter": "@pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.skip('not today'))])\n"
    "def test(x): pass",
    "mark without a reason": "@pytest.mark.may_skip\ndef test(): pytest.skip('not today')",
}
ALLOWED = "@pytest.mark.may_skip('an extra')\ndef test_allowed(): pytest.skip('not here')\ndef test(): pass"


def run(folder: Path, source: str, ci: str = "1", *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(f"import pytest\n{source}\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", *options],
        cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True,
    )  # fmt: skip


def test_every_way_to_skip_fails_the_session(tmp_path: Path) -> None:
    for i, source in enumerate(SKIPPED.values()):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / f"test_{i}.py").write_text(f"import pytest\n{source}\n")
    # one run of all, and one session each where the exit status alone must tell
    got = run(tmp_path, "def test(): pass")
    assert got.returncode == 1
    said = got.stdout[got.stdout.index("skipped in CI") :]
    for i, what in enumerate(SKIPPED):
        assert f"test_{i}.py" in said, what
    assert said.count("not today") == len(SKIPPED)
    assert "may_skip" in said


@pytest.mark.parametrize("what", ["skip mark", "module"])
def test_alone(what: str, tmp_path: Path) -> None:
    assert run(tmp_path, SKIPPED[what]).returncode == 1
    assert run(tmp_path, SKIPPED[what], "1", "-n", "1").returncode == 1
    assert run(tmp_path, SKIPPED[what], ci="").returncode in (0, 5)


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_with_leave(options: tuple[str, ...], tmp_path: Path) -> None:
    got = run(tmp_path, ALLOWED, "1", *options)
    assert got.returncode == 0, got.stdout
    assert "1 passed, 1 skipped" in got.stdout
    assert "skipped in CI" not in got.stdout
