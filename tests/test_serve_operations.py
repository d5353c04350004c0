"""Tokens, TLS, CORS, health, metrics, the access log, several processes, stopping, nginx in front."""

from __future__ import annotations

import contextlib
import hmac
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.servers import free_port, listens, need
from tests.serving import MAIN, Live, get, one_byte, read_all, serving
from wdstools.serve import sigv4
from wdstools.serve.access import Guard
from wdstools.serve.accesslog import AccessLog
from wdstools.serve.metrics import Metrics, shared
from wdstools.serve.nginxconf import config
from wdstools.serve.request import Request
from wdstools.serve.settings import Settings

DATA = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "shards"
    folder.mkdir()
    for i in range(3):
        (folder / f"train-00000{i}.tar").write_bytes(DATA)
    (folder / ".hidden").write_bytes(b"secret")
    return folder


def test_a_token(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with serving(tmp_path, root, "--access-log", log, env={"WDS_TOKEN": "s3cret/token"}) as live:
        path = "/train-000000.tar"
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "s3cret/token"},
            {"Authorization": "Basic s3cret/token"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer s3cret/token2"},
        ):
            reply = live.ask(path, **headers)
            assert reply.status == 401, headers
            assert reply.headers["www-authenticate"].startswith("Bearer")
            assert b"\x00\x01" not in reply.body
        for closed in (
            "/",
            "/shards?list-type=2",
            "/-/metrics",
            "/storage/v1/b",
            f"{path}?token=",
            f"{path}?token=x",
            "/-/health/..",
            "/-/healthy",
            "/-/metrics?x=/-/health",
            f"{path}?token=x&token=s3cret/token",
        ):
            assert live.ask(closed).status == 401, closed
        assert live.ask(path, Authorization="Bearer s3cret/token").body == DATA
        assert live.ask(path, Authorization="bearer s3cret/token").body == DATA
        assert live.ask(f"{path}?token=s3cret%2Ftoken").body == DATA
        assert live.ask("/storage/v1/b", Authorization="Bearer s3cret/token").status == 200
        assert live.ask("/-/health").status == 200
        assert "$WDS_TOKEN" in live.told["sources"][0]["pipes"][0]
        assert "s3cret" not in json.dumps(live.told)
        assert live.stop() == 0
        assert "s3cret" not in log.read_text()
        assert "token=***" in log.read_text()


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watch(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(sigv4.hmac, "compare_digest", watch)
    guard = Guard(Settings((), token="right"))
    assert guard.refusal(Request("GET", b"/", {b"authorization": b"Bearer wrong"})) is not None
    assert guard.refusal(Request("GET", b"/?token=rig%E9ht", {})) is not None
    assert guard.refusal(Request("GET", b"/?token=right", {})) is None
    assert compared == [(b"wrong", b"right"), (b"rig\xe9ht", b"right"), (b"right", b"right")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    program = need("openssl", shutil.which("openssl"), "apt-get install openssl")
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert", folder / "key"


def test_tls(root: Path, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with serving(tmp_path, root, "--tls-cert", cert, "--tls-key", key) as live:
        assert live.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        connection = http.client.HTTPSConnection("127.0.0.1", live.port, context=context, timeout=20)
        with contextlib.closing(connection):
            for i in range(3):
                connection.request("GET", f"/train-00000{i}.tar")
                assert connection.getresponse().read() == DATA
                connection.request("GET", f"/train-00000{i}.tar", headers={"Range": "bytes=1000-2999,-5"})
                assert DATA[1000:3000] in connection.getresponse().read()
        assert live.raw(get("/train-000000.tar")) == b"" or b"200" not in live.raw(get("/train-000000.tar"))[:20]


def test_a_large_file_over_tls_to_a_reader_that_pauses(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA * 80)
    with serving(tmp_path, folder, "--tls-cert", cert, "--tls-key", key) as live:
        before = live.resident()
        context = ssl.create_default_context(cafile=str(cert))
        with live.connect() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            sock.sendall(get("/a.tar", "Connection: close"))
            begun = sock.recv(1000)
            time.sleep(0.5)
            assert live.resident() - before < 15e6
            answer = begun + read_all(sock)
        assert answer.partition(b"\r\n\r\n")[2] == DATA * 80


def test_cors(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--cors", "https://example.org") as live:
        for method in ("GET", "OPTIONS"):
            reply = live.ask("/train-000000.tar", method, Origin="https://example.org")
            assert reply.headers["access-control-allow-origin"] == "https://example.org"
            assert "Range" in reply.headers["access-control-allow-headers"]
        assert reply.status == 204
    with serving(tmp_path, root) as live:
        assert "access-control-allow-origin" not in live.ask("/train-000000.tar").headers


def test_metrics_add_up(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root) as live:
        for _ in range(5):
            live.ask("/train-000000.tar", Range="bytes=0-999")
        live.ask("/missing")
        text = live.ask("/-/metrics").body.decode()
    assert 'wds_serve_requests_total{status="206"} 5\n' in text
    assert 'wds_serve_requests_total{status="404"} 1\n' in text
    assert "wds_serve_request_seconds_count 6\n" in text
    assert 'wds_serve_request_seconds_bucket{le="+Inf"} 6\n' in text
    sent = re.search(r"wds_serve_bytes_total (\d+)", text)
    assert sent is not None
    assert 5000 < int(sent[1]) < 8000
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .+|[a-z_]+(\{[a-z]+=\"[^\"]+\"\})? [0-9.e+-]+", line)


def test_metrics_are_sums_over_processes() -> None:
    memory = shared(3)
    rows = [Metrics(memory, row, 3) for row in range(3)]
    for row in rows:
        row.note(206, 100, 0.01)
        row.add("connections")
    assert rows[0].total("bytes") == rows[2].total("bytes") == 300
    assert rows[1].total("connections") == 3
    again = Metrics(memory, 1, 3)  # the process was started again: its connections are gone, its counts are not
    assert again.total("connections") == 2
    assert 'status="206"} 3' in again.text()
    os.close(memory)


def test_the_access_log(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with serving(tmp_path, root, "--access-log", log) as live:
        live.ask("/train-000000.tar", Range="bytes=0-9", User_Agent='a"b\\c')
        live.raw(b"rubbish\r\n\r\n")
        live.ask("/%0a%22x?a=b")
        wait_until(lambda: log.exists() and log.read_text().count("\n") == 3)
        lines = log.read_text().splitlines()
    pattern = r'127\.0\.0\.1 - - \[[^\]]+\] "GET /train-000000\.tar" 206 \d+ "-" "a\\x22b\\x5cc" \d+\.\d{6}'
    assert re.fullmatch(pattern, lines[0]), lines[0]
    assert '"- -" 400' in lines[1]
    assert '"GET /%0a%22x?a=b" 400' in lines[2]


def test_an_access_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    log = AccessLog("/dev/full")
    log.note(Request("GET", b"/", {}), 200, 1, 0.1, True)
    log.flush()
    assert "No space" in log.failed
    log.close()


def test_stopping_finishes_what_is_under_way(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA * 100)
    with serving(tmp_path, folder) as live, live.connect() as sock, live.connect() as idle:
        one_byte(idle, "/a.tar")
        sock.sendall(get("/a.tar"))
        begun = sock.recv(1000)
        live.process.send_signal(signal.SIGTERM)
        assert idle.recv(10) == b""
        wait_until(lambda: not listens(live.port), 5)
        assert not listens(live.port)
        assert live.process.poll() is None
        answer = begun + read_all(sock)
        assert answer.partition(b"\r\n\r\n")[2] == DATA * 100
        assert live.process.wait(10) == 0


def test_stopping_ends_at_some_time(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA * 100)
    with serving(tmp_path, folder, "--drain", 0.5) as live, live.connect() as sock:
        sock.sendall(get("/a.tar"))
        assert sock.recv(10)
        begun = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - begun < 8
        assert len(read_all(sock)) < len(DATA) * 100


def test_interrupted(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root) as live:
        assert live.stop(signal.SIGINT) == 0


def workers(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            if int(text.rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def several(root: Path, tmp_path: Path) -> Iterator[Live]:
    with serving(tmp_path, root, "--processes", 3) as live:
        yield live


def test_several_processes(several: Live) -> None:
    assert len(workers(several.process.pid)) == 3
    assert several.told["sources"][0]["patterns"] == [f"{several.url}/train-{{000000..000002}}.tar"]
    for _ in range(30):
        assert several.ask("/train-000001.tar").body == DATA
    assert b'wds_serve_requests_total{status="200"} 30\n' in several.ask("/-/metrics").body  # whichever answers
    victim = workers(several.process.pid)[0]
    time.sleep(1.0)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(workers(several.process.pid)) - {victim}) == 3, 10)
    alive = workers(several.process.pid)
    assert len(alive) == 3
    assert victim not in alive
    assert "it is started again" in several.log
    wait_until(lambda: several.ask("/-/health").status == 200)
    assert several.stop() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in alive)


def test_no_process_outlives_its_supervisor(several: Live) -> None:
    alive = workers(several.process.pid)
    several.process.kill()
    several.process.wait()
    wait_until(
        lambda: (
            not any(
                Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else b"" for pid in alive
            )
        )
    )
    assert not listens(several.port)


def test_a_process_that_cannot_start(tmp_path: Path, root: Path) -> None:
    done = subprocess.run(
        [*MAIN, str(root), "--processes", "2", "--port", "0", "--access-log", f"{tmp_path}/none/log"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "none/log" in done.stderr
    assert "did not start" in done.stderr


def command(*args: object) -> tuple[int, str, str]:
    done = subprocess.run([*MAIN, *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_port_that_is_taken(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root) as live:
        code, out, err = command(root, "--port", live.port)
        assert (code, out) == (1, "")
        assert "in use" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument"),
        (["--tls-cert", "/dev/null"], "go together"),
        (["--access-key", "k"], "go together"),
        (["--token", ""], "empty token"),
        (["--cors", "a\r\nX: y"], "one origin"),
        (["--storage-options", "[]"], "write an object"),
        (["--storage-options", "{"], "no JSON"),
    ],
)
def test_wrong_usage(root: Path, args: list[str], message: str) -> None:
    code, out, err = command(*([] if not args else [root]), *args)
    assert (code, out) == (2, "")
    assert message in err


def test_plain_output_is_what_one_pastes(root: Path, tmp_path: Path) -> None:
    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen([*MAIN, str(root), "--port", "0"], stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
    finally:
        process.terminate()
        rest = process.communicate()[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/train-\{000000\.\.000002\}\.tar\n", lines[0])
    assert lines[1] == f"pipe:curl -sSfL {lines[0]}"
    assert rest == ""


@contextlib.contextmanager
def nginx_in_front(folder: Path, text: str, port: int) -> Iterator[str]:
    program = need("nginx", shutil.which("nginx") or shutil.which("/usr/sbin/nginx"), "apt-get install nginx-light")
    user = "user root;" if os.getuid() == 0 else ""
    paths = " ".join(
        f"{kind}_temp_path {folder}/t-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("listen 8000;", f"listen 127.0.0.1:{port};").replace(
        "access_log off;", f"access_log {folder}/access;"
    )
    (folder / "conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; {user}\n"
        f"events {{ worker_connections 256; }}\nhttp {{ {paths}\n{text}}}\n"
    )
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(folder / "conf")], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, 20)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


def fetch(url: str, **headers: str) -> tuple[int, bytes, str]:
    request = urllib.request.Request(url, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.read(), reply.headers["Server"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers["Server"]


@pytest.mark.parametrize("token", [None, "tok"])
def test_nginx_in_front(root: Path, tmp_path: Path, token: str | None) -> None:
    """nginx sends the files, and nothing that we would not; the rest comes from us."""
    port = free_port()
    options = ["--token", token] if token else []
    with serving(tmp_path, root, *options) as live:
        code, text, err = command(root, "--port", live.port, "--nginx", *options)
        assert (code, err) == (0, "")
        with nginx_in_front(tmp_path, text, port) as url:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            before = metric(live, headers)
            for path in ("/train-000001.tar", "/shards/train-000001.tar"):
                assert fetch(url + path, **headers)[:2] == (200, DATA)
                assert fetch(url + path, Range="bytes=5-9", **headers)[:2] == (206, DATA[5:10])
            assert metric(live, headers) == before + 1  # the one that asked
            for path in ("/.hidden", "/shards/.hidden", "/missing.tar", "/x.part", "/shards/%2e%2e/shards/.hidden"):
                status, body, _ = fetch(url + path, **headers)
                assert status in (400, 404), path
                assert b"secret" not in body
            assert b"<Key>train-000000.tar</Key>" in fetch(f"{url}/shards?list-type=2", **headers)[1]
            assert b"storage#objects" in fetch(f"{url}/storage/v1/b/shards/o", **headers)[1]
            assert fetch(f"{url}/-/health")[1] == b"ok\n"
            assert b"train-000000.tar" in fetch(f"{url}/", **headers)[1]
            if token:
                for path in ("/train-000001.tar", "/shards/train-000001.tar", "/", "/-/metrics"):
                    assert fetch(url + path)[0] == 401
                    assert fetch(url + path, Authorization="Bearer tokk")[0] == 401
                assert fetch(f"{url}/train-000001.tar?token=tok")[:2] == (200, DATA)


def metric(live: Live, headers: dict[str, str]) -> int:
    text = live.ask("/-/metrics", **headers).body.decode()
    return sum(int(n) for n in re.findall(r"wds_serve_requests_total\{.*\} (\d+)", text))


def test_nginx_takes_no_names_that_break_out() -> None:
    with pytest.raises(ValueError, match="nginx"):
        config(Settings((("a", "/"), ("b;}", "/")), port=1))
    with pytest.raises(ValueError, match="token"):
        config(Settings((("a", "/"),), port=1, token='x" 0; }'))


def test_a_certificate_that_is_none(root: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    code, out, err = command(root, "--port", 0, "--tls-cert", key, "--tls-key", cert)
    assert (code, out) == (1, "")
    assert "no certificate with its key" in err
