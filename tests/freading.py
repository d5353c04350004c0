"""The program `fread` for the tests: where it is, and what it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

NATIVE = Path(__file__).parent.parent / "native"
CC = os.environ.get("CC", "cc")


def program() -> str:
    """Next to the interpreter, where pip puts it, or else on PATH."""
    if chosen := os.environ.get("WDS_TEST_FREAD"):  # one under sanitizers, say
        return chosen
    here = Path(sys.executable).with_name("fread")
    found = str(here) if here.exists() else shutil.which("fread")
    if not found:
        raise FileNotFoundError("fread: install the package, or put the result of `make -C native fread` on PATH")
    return found


def environment(**more: str) -> dict[str, str]:
    """The environment without what tunes fread, and with this."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FREAD_", "WDS_LOCK"))} | more


def fread(*args: object, env: dict[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program(), *map(str, args)], env=environment(**env or {}), capture_output=True, timeout=60, check=False, **more
    )


def start(*args: object, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen([program(), *map(str, args)], env=environment(**env or {}), **given)


def compile_c(out: Path, *args: object) -> Path:
    """Compile a helper of a test; the arguments are those of the compiler."""
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-pthread"]
    subprocess.run([CC, *flags, "-o", str(out), *map(str, args)], check=True, timeout=60)
    return out
