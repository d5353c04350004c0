"""A small cluster of Ray in processes of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20,
         _node_ip_address="127.0.0.2")
print("at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


NODES = """
import sys, ray
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "node_ip_address": "127.0.0.3", "object_store_memory": 100 << 20, "include_dashboard": False})
lost = cluster.add_node(num_cpus=2, node_ip_address="127.0.0.4", object_store_memory=100 << 20)
cluster.wait_for_nodes()
print("at", cluster.address, flush=True)
if sys.stdin.readline().strip() == "lose":
    cluster.remove_node(lost, allow_graceful=False)
    print("lost", flush=True)
    sys.stdin.read()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Its address. Its workers find the modules of the tests."""
    with _running(PROGRAM) as (address, _):
        yield address


@contextlib.contextmanager
def connected() -> Iterator[str]:
    """As cluster(), with one connection for all that is done meanwhile: each would take seconds."""
    with cluster() as address:
        import ray

        handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
        try:
            ray.init(address=address, log_to_driver=False)
            yield address
            ray.shutdown()
        finally:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, Callable[[], object]]]:
    """The address of a cluster of two nodes, and a function that kills the larger one with all of its processes."""
    with _running(NODES) as (address, process):

        def lose() -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("lose\n")
            process.stdin.flush()
            assert any(line.startswith("lost") for line in process.stdout)

        yield address, lose


@contextlib.contextmanager
def _running(program: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install ray")
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=env, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith("at ")), "")
            assert line, "Ray does not start"
            yield line.split()[1], process
        finally:
            process.stdin.close()
            process.wait(60)


def workers() -> list[int]:
    """The processes of Ray that run a task of ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_write"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
