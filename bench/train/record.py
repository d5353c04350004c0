"""What a run is: settings, commit, data, versions, machine; printed and saved before it begins."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import wdstools
from bench.train.settings import Settings, plain
from bench.train.sources import locate
from wdstools.sampler import fingerprint

PACKAGES = (
    "wdstools", "torch", "torchvision", "lightning", "numpy", "pyarrow", "pillow", "simplejpeg", "webdataset",
    "litdata", "hydra-core", "tensorboard", "wandb", "ray", "nvidia-ml-py",
)  # fmt: skip


def describe(settings: Settings, world: int = 1) -> dict[str, Any]:
    """Return what a run is, as plain values. Raises what opening the data raises."""
    return {
        "settings": plain(settings),
        "command": sys.orig_argv,
        "git": commit(Path(__file__).parent),
        "data": {"train": told(settings, "train"), "val": told(settings, "val")},
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {
            "world": world,
            "cpus": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
            "gpus": gpus(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def told(settings: Settings, part: str) -> dict[str, Any]:
    """Return how many samples a part's shards have, and the fingerprint of their index, where there is one.

    Where val is a part of train, both are that of the whole, since the keys decide.
    """
    if settings.loader == "synthetic":
        return {"fingerprint": "synthetic"}
    place = locate(settings, part)
    if place.index is None:
        return {"shards": len(place.shards), "fingerprint": "unknown: this source has no index"}
    dataset = wdstools.open(place.index, storage_options=place.storage_options)
    return {"shards": len(place.shards), "samples": len(dataset), "fingerprint": fingerprint(dataset)}


def commit(folder: Path) -> dict[str, Any]:
    """Return the commit of the repository around a folder, and whether files differ from it; else why not."""
    found = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        try:
            done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"unknown": str(error)}
        if done.returncode:
            return {"unknown": done.stderr.strip()}
        found.append(done.stdout.strip())
    return {"commit": found[0], "dirty": bool(found[1])}


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter; those that are not there are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["wdstools"] = wdstools.__version__
    found["torch"] = str(torch.__version__)  # with how it was built
    return found


def gpus() -> list[str]:
    """Return the names of the GPUs that this process sees."""
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def start(settings: Settings, out: Path, world: int = 1) -> dict[str, Any]:
    """Print what a run is, as YAML, save that as OUT/run.yaml, and return it. A run that goes on keeps the earlier
    ones in the file, as YAML documents."""
    found = describe(settings, world)
    text = as_yaml(found)
    print(text, end="", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "run.yaml", "a") as file:
        file.write(f"---\n{text}")
    return found


def as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, width=120)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file that is there as a whole, or not at all. What is no finite number is null: JSON has no other."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(_finite(values), indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
