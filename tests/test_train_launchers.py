"""torchrun, ssh and Ray: what is started, with which words, and what becomes of it when something dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("hydra")

import ranks
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from bench.train import launchers
from bench.train.launchers import LaunchError, check, children, quoted, run_all, ssh, torchrun
from bench.train.settings import Settings, WrongSettings, load
from bench.train.stopping import Stopped

ROOT = Path(__file__).parent.parent
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
NASTY = ["data.train='a b'", 'x="$(touch owned)"', "y=`id`", "z='; exit 3 #", "-rf", "ü\nü", "{000..001}", "~", "*"]
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"hosts": "a"}, "hosts= needs launcher=ssh"),
        ({"launcher": "ssh"}, "launcher=ssh needs hosts=a,b"),
        ({"ranks": 2}, "launcher=torchrun starts several"),
        ({"launcher": "ssh", "hosts": "a,-oProxyCommand=id"}, "'-oProxyCommand=id' is no host"),
        ({"launcher": "ssh", "hosts": "a, b"}, "' b' is no host"),
        ({"launcher": "ssh", "hosts": "a;id"}, "'a;id' is no host"),
        ({"launcher": "ssh", "hosts": "a,"}, "'' is no host"),
        ({"launcher": "ssh", "hosts": "a,a"}, "a host comes twice"),
    ],
)
def test_settings_that_do_not_fit(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(WrongSettings, match=told):
        check(replace(Settings(), **wrong), {})


def test_settings_that_fit() -> None:
    check(Settings(), {})
    check(replace(Settings(), ranks=2), {"WORLD_SIZE": "2"})
    check(replace(Settings(), launcher="ssh", hosts="me@a-1.example,b_2,127.0.0.1"), {})
    with pytest.raises(WrongSettings, match="torchrun started already: launcher=local"):
        check(replace(Settings(), launcher="torchrun"), {"WORLD_SIZE": "2"})


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20))
def test_a_folder_comes_through_hydra(name: str) -> None:
    override = OverridesParser.create().parse_override(f"out={quoted('/' + name)}")
    assert OmegaConf.create({"out": override.value()}).out == "/" + name


@pytest.mark.parametrize("name", ["/a b", "/ends in \\", '/"', "/it's", "/${x}", "/$x,[y]{z}=ü"])
def test_a_folder_comes_into_settings(name: str) -> None:
    assert load([f"out={quoted(name)}"]).out == name


def test_hosts_are_no_sweep() -> None:
    assert load([launchers.one_value("hosts=a,me@b")]).hosts == "a,me@b"
    for argument in ("hosts=a", "hosts='a,b'", "lr=1,2", "-m", "hosts="):
        assert launchers.one_value(argument) == argument


def printed(words: list[str]) -> list[str]:
    return [sys.executable, "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words]


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_words_come_through_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    """What ssh sends is one line for the login shell at the other end."""
    folder = tmp_path / "it's a $HOME `x` folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NCCL_DEBUG", "a b'c")
    monkeypatch.setenv("SECRET", "not passed")
    monkeypatch.setattr(launchers, "torchrun", lambda overrides, ranks, meet: printed([*overrides, *meet]))
    line = ssh(NASTY, ["one", "me@two"], 4, 12345)["me@two"]
    assert line[:-2] == ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "--"]
    assert "NCCL_DEBUG" in line[-1]
    assert "SECRET" not in line[-1]
    process = subprocess.Popen(
        [shell, "-c", line[-1]], cwd="/", stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE
    )
    process.wait(20)  # its standard input is open as long as that of ssh
    said, _ = process.communicate()
    meet = ["--nnodes=2", "--node-rank=1", "--master-addr=one", "--master-port=12345"]
    assert json.loads(said) == [*NASTY, *meet]
    assert not (folder / "owned").exists()


def test_the_remote_command_ends_with_the_connection(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"""
import signal, sys, time
def stop(*_):
    open({str(mark)!r}, "a").write("stopped")
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
open({str(mark)!r}, "w").write("started ")
time.sleep(60)"""
    process = subprocess.Popen(
        ["sh", "-c", launchers.REMOTE, "sh", str(tmp_path), sys.executable, "-c", code], stdin=subprocess.PIPE
    )
    assert wait_until(mark.exists)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 7
    assert mark.read_text() == "started stopped"


def test_run_all_to_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    run_all({"a": ["echo", "one"], "b": ["echo", "two words"]})
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["one", "two words"]
    assert err.splitlines() == ["[a] echo one", "[b] echo 'two words'"]


def test_one_that_fails_stops_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    with pytest.raises(LaunchError, match="b: exit code 3; its own message is above"):
        run_all({"a": SLEEP, "b": ["sh", "-c", "sleep 0.3; exit 3"], "c": SLEEP})
    assert time.monotonic() - begin < 20
    assert "stopping a, c" in capfd.readouterr().err


def test_a_program_that_is_not_there_stops_the_others() -> None:
    with pytest.raises(LaunchError, match="no-such-program is not installed"):
        run_all({"a": SLEEP, "b": ["no-such-program"]})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all(tmp_path: Path, number: int, code: int) -> None:
    mark = tmp_path / "mark"
    command = ["sh", "-c", f"trap 'echo ended >>{mark}; exit 0' TERM; echo >>{mark}.on; while :; do sleep 0.05; done"]
    begun = Path(f"{mark}.on")
    thread = threading.Thread(
        target=lambda: (
            wait_until(lambda: begun.exists() and begun.read_text() == "\n\n") and os.kill(os.getpid(), number)
        )
    )
    thread.start()
    with pytest.raises(Stopped) as stopped:
        run_all({"a": command, "b": command})
    assert stopped.value.code == code
    thread.join()
    assert mark.read_text() == "ended\nended\n"


def test_one_that_does_not_stop_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "GRACE", 0.5)
    code = f"""
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"], start_new_session=True)
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
time.sleep(60)"""
    wait = f"while ! [ -s {tmp_path / 'pid'} ]; do sleep 0.05; done; exit 3"
    with pytest.raises(LaunchError, match="b: exit code 3"):
        run_all({"a": [sys.executable, "-c", code], "b": ["sh", "-c", wait]})
    pid = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("shards")
    return ranks.make(folder / "train", 400), ranks.make(folder / "val", 20)


class Program:
    """`python -m bench.train` in a process of its own, whose stderr is watched."""

    def __init__(self, shards: tuple[Path, Path], out: Path, *more: str, path: str = "") -> None:
        self.out, self.said = out, out.with_suffix(".log")
        given = ranks.overrides(*shards, out, "epochs=1000", "workers=1", *more)
        environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        with open(self.said, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.train", *given], cwd=ROOT, stdout=file, stderr=file, env=environment
            )

    def until(self, words: str) -> None:
        found = wait_until(lambda: words in self.said.read_text() or self.process.poll() is not None, 60)
        assert found, self.said.read_text()
        assert words in self.said.read_text(), self.said.read_text()

    def ends(self, code: int) -> str:
        """Wait for its end with an exit code, and all it started's; return what it said."""
        try:
            family = children(self.process.pid)
            assert self.process.wait(60) == code, self.said.read_text()
            assert wait_until(lambda: not any(map(alive, family)))
        finally:
            self.kill()
        return self.said.read_text()

    def kill(self) -> None:
        for pid in [*children(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def test_sigterm_to_torchrun_leaves_a_checkpoint(shards: tuple[Path, Path], tmp_path: Path) -> None:
    """Its ranks and the workers of their loaders get the signal as well. One rank goes on where two were."""
    program = Program(shards, tmp_path / "out", "engine=lightning", "launcher=torchrun", "ranks=2")
    try:
        program.until("epoch 1 ")
        program.process.send_signal(signal.SIGTERM)
        said = program.ends(143)
    finally:
        program.kill()
    assert said.count("SIGTERM: stopping after this step") in (1, 2)  # the other may stop with it, before its own
    assert "RuntimeError" not in said
    more = ("engine=lightning", "batch_size=16", "resume=auto")
    state = ranks.torch.load(tmp_path / "out/checkpoints/last.ckpt", weights_only=False)
    step, epoch = state["global_step"], state["FeedData"]["train"]["epoch"]
    with ranks.noted() as seen:
        result = ranks.run.train(load(ranks.overrides(*shards, tmp_path / "out", *more, f"epochs={epoch + 1}")))
    assert result.steps == (epoch + 1) * 25
    assert len(seen) == result.steps - step


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an `ssh` that reaches 127.0.0.1 and localhost: by a real sshd where there is one, else at once."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "ssh"
    if SSHD is None:
        shim.write_text(f'#!{sys.executable}\nimport os, sys\nos.execvp("sh", ["sh", "-c", sys.argv[-1]])\n')
        shim.chmod(0o755)
        yield folder
        return
    for name in ("host", "me"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # sshd wants it of root
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/me.pub\n"
        "StrictModes no\nPidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host *\nPort {port}\nHostName 127.0.0.1\nIdentityFile {tmp_path}/me\nStrictHostKeyChecking no\n"
        f"UserKnownHostsFile {tmp_path}/known\nLogLevel ERROR\n"
    )
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    shim.chmod(0o755)
    with open(tmp_path / "sshd.log", "w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log)
    try:
        assert wait_until(lambda: "listening" in (tmp_path / "sshd.log").read_text())
        yield folder
    finally:
        server.terminate()
        server.wait()


def test_over_ssh_a_dead_worker_stops_all_hosts(shards: tuple[Path, Path], tmp_path: Path, hosts: Path) -> None:
    """A worker of the second host's loader is killed: its rank says so, both hosts stop, and resume=auto goes on."""
    more = ("engine=ddp", "launcher=ssh", "hosts=127.0.0.1,localhost", "checkpoint_every=10")
    program = Program(shards, tmp_path / "out", *more, path=str(hosts))
    try:
        program.until("epoch 1 ")
        os.kill(worker_of_rank(program.out, 1), signal.SIGKILL)
        said = program.ends(1)
    finally:
        program.kill()
    assert "[localhost] ssh " in said
    assert "RuntimeError: DataLoader worker (pid" in said
    # torchrun of the other host may see it and end before it is told: "stopping ..." is tested above, without ranks
    assert "LaunchError: Traceback" not in said
    assert ": exit code 1; its own message is above" in said
    assert wait_until(lambda: not ranks_of(program.out))
    given = ranks.overrides(*shards, tmp_path / "out", "engine=ddp", "batch_size=16", "resume=auto", "epochs=3")
    assert ranks.trained(given)["steps"] >= 75


def ranks_of(out: Path) -> dict[int, int]:
    """The processes that train into a folder, by rank: {rank: pid}; workers of loaders are their children."""
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            environment = dict(pair.partition(b"=")[::2] for pair in (process / "environ").read_bytes().split(b"\0"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if b"bench.train" in words and f"out={out}".encode() in words and b"RANK" in environment:
            rank, pid = int(environment[b"RANK"]), int(process.name)
            found[rank] = min(pid, found.get(rank, pid))
    return found


def worker_of_rank(out: Path, rank: int) -> int:
    found: list[int] = []
    assert wait_until(lambda: bool(found.extend(children(ranks_of(out)[rank])) or found))
    return found[0]


DEPLOY = ROOT / "bench/train/deploy"


def test_the_job_of_kubernetes_fits_its_schema_and_the_settings() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    service, claim, job = documents = list(yaml.safe_load_all((DEPLOY / "job.yaml").read_text()))
    for document in documents:
        validate.validate(document, validate.latest_version(), strict=True)
    with pytest.raises(validate.ValidationError):
        validate.validate(job | {"spec": {"complections": 2}}, validate.latest_version(), strict=True)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    told = {one["name"]: one["value"] for one in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(told["NNODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(told["RANKS"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == spec["template"]["metadata"]["labels"]
    assert claim["metadata"]["name"] in {v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    words = container["args"]
    program = words.index(launchers.PROGRAM)
    port = service["spec"]["ports"][0]["port"]
    master = f"--master-addr={job['metadata']['name']}-0.{service['metadata']['name']}"
    assert {master, f"--master-port={port}"} <= {*words[:program]}
    here = torchrun([], 4, [])
    assert [*container["command"], *words[program - 1 : program + 1]] == ["python", *here[1:3], *here[-2:]]
    settings = load(words[program + 1 :])
    check(settings, {"WORLD_SIZE": "8"})
    assert settings.resume == "auto"
    assert pod["terminationGracePeriodSeconds"] > 30


def test_what_the_dockerfile_copies_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    sources = [source for copy in copies for source in copy]
    assert "native" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert 'ENTRYPOINT ["python", "-m", "bench.train"]' in lines


@pytest.fixture
def short() -> Iterator[str]:
    """A folder for Ray's sockets, whose paths must not have more than 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray(shards: tuple[Path, Path], tmp_path: Path, short: str) -> None:
    """Two workers of Ray Train come to what two ranks of torchrun come to. A Ray that is not there is named."""
    pytest.importorskip("ray.train.torch")
    given = [sys.executable, "-m", "bench.train", *ranks.overrides(*shards, tmp_path / "out", "engine=ddp", "ranks=2")]
    environment = os.environ | {"RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}

    def said(*more: str, code: int) -> str:
        with open(tmp_path / "out.log", "w") as out, open(tmp_path / "err.log", "w") as err:
            done = subprocess.run(
                [*given, "launcher=ray", *more],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
                timeout=240,
                check=False,
            )
        out_said, err_said = ((tmp_path / f"{name}.log").read_text() for name in ("out", "err"))
        assert done.returncode == code, out_said + err_said
        return err_said if code else out_said

    assert "no Ray at address=127.0.0.1:1: `ray start --head` starts one" in said("address=127.0.0.1:1", code=1)
    out = said("address=local", code=0)
    assert "steps: 25" in out[out.index("result:") :]
    saved = json.loads((tmp_path / "out/result.json").read_text())
    assert len(saved["curve"]) == 25
