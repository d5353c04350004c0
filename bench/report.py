"""Run the comparisons and print their table: `python -m bench.report [-k NAME] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("wdstools", "webdataset", "litdata", "numpy", "pyarrow")


def run(json_path: Path, name: str | None) -> int:
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(here),
        "-c",
        str(here / "pytest.ini"),
        "--rootdir",
        str(here.parent),
        "-q",
    ]
    command += [f"--benchmark-json={json_path}", *(["-k", name] if name else [])]
    return subprocess.run(command, stdout=sys.stderr, cwd=here.parent).returncode


def machine() -> str:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {system}; {', '.join(versions)}"


def amount(value: float) -> str:
    return f"{value:,.0f}"


def table(record: dict[str, Any]) -> str:
    lines = ["| work | wdstools (spread) | peer | ratio | asked |", "|---|---|---|---|---|"]
    for item in record["benchmarks"]:
        info = item["extra_info"]
        low, high = info["spread"]
        mine = f"{amount(info['rate'])} ({amount(low)} to {amount(high)}) {info['unit']}"
        if not info.get("peers"):
            lines.append(f"| {info['work']} | {mine} | | | |")
        for name, peer in info.get("peers", {}).items():
            asked = "" if peer["target"] is None else f"{peer['target']:g} x"
            lines.append(
                f"| {info['work']} | {mine} | {name}: {amount(peer['rate'])} | {peer['ratio']:.2f} x | {asked} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-k", dest="name", help="only comparisons whose name has this")
    parser.add_argument("--json", type=Path, help="keep pytest-benchmark's record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.json or Path(folder) / "bench.json"
        code = run(path, arguments.name)
        if code:
            raise SystemExit(code)
        print(machine() + "; medians of five, interleaved\n\n" + table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
