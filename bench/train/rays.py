"""launcher=ray: the ranks are the workers of Ray Train, on the cluster at settings.address.

    ray start --head
    python -m bench.train launcher=ray address=auto ranks=2 ...

Every node has the same working directory, with the same files in it, and sees the folder of the run. On one node
address=local starts a Ray of its own.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CONNECT = 10  # seconds


def train_on_ray(settings: Any, overrides: Sequence[str], out: str) -> None:
    """Train on settings.ranks workers, and print the result. Raises LaunchError: which rank failed, and of what."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from bench.train.launchers import LaunchError
    from bench.train.record import as_yaml
    from bench.train.run import RESULT

    reach(settings.address)
    gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    here = os.getcwd()
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    passed = {"PYTHONPATH": path, "RAY_TRAIN_V2_ENABLED": "1"}
    try:
        ray.init(address=settings.address, runtime_env={"env_vars": passed}, log_to_driver=True)
    except ConnectionError as error:
        raise LaunchError(f"no Ray at address={settings.address}: `ray start --head` starts one; {error}") from error
    try:
        trainer = TorchTrainer(
            one_rank, train_loop_config={"overrides": list(overrides), "folder": here},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=settings.ranks, use_gpu=gpu),
            run_config=RunConfig(name="ray", storage_path=os.path.abspath(out)),
        )  # fmt: skip
        trainer.fit()
    except Exception as error:  # Ray's own have no base that is told
        raise LaunchError(f"Ray Train: {error}") from error
    finally:
        ray.shutdown()
    result = json.loads((Path(out) / RESULT).read_text())
    told = {name: value for name, value in result.items() if name not in ("settings", "curve")}
    print(f"---\n{as_yaml({'result': told})}", end="", flush=True)


def reach(address: str) -> None:
    """Raise LaunchError where nobody listens at HOST:PORT: Ray itself tries for minutes, and then ends the process."""
    from bench.train.launchers import LaunchError

    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, ValueError) as error:
        raise LaunchError(f"no Ray at address={address}: `ray start --head` starts one; {error}") from error


def one_rank(config: dict[str, Any]) -> None:
    """Be a rank: what Ray Train calls on each worker, which has torchrun's environment, and a process group."""
    os.chdir(config["folder"])
    os.environ["TORCHELASTIC_RUN_ID"] = "ray"  # for Lightning: the ranks are started already
    from bench.train import run
    from bench.train.settings import load

    run.train(load(config["overrides"]))
