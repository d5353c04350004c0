"""The ways to start the ranks of a training: torchrun on this host, torchrun over ssh on several, Ray Train.

Whatever starts them, every rank is one process of `python -m bench.train ... launcher=local`, with RANK, WORLD_SIZE
and the others of torchrun in its environment.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.train.settings import Settings, WrongSettings
from bench.train.stopping import Stopped

PROGRAM = "bench.train"
OWN = ("launcher", "hosts", "address", "out", "hydra.run.dir")  # settings of the launcher, which ranks do not get
GRACE = 60  # seconds from the request to stop to the kill: torchrun gives its ranks 30
PASSED = re.compile(r"PYTHONPATH|OMP_NUM_THREADS|(GLOO|NCCL)_\w+")  # of the environment, to other hosts
HOST = re.compile(r"([\w.-]+@)?[A-Za-z0-9_][\w.-]*", re.ASCII)
REMOTE = (  # a command, in a folder, that is ended where its standard input ends, with the connection
    'exec 3<&0; cd "$1" || exit 1; shift; "$@" </dev/null & p=$!;'
    " (cat <&3 >/dev/null 2>&1; kill -TERM $p 2>/dev/null) >/dev/null 2>&1 & w=$!;"
    " wait $p; r=$?; kill $w 2>/dev/null; exit $r"
)


class LaunchError(ChildProcessError):
    """Ranks could not be started, or failed: which, and with what exit code."""


def launch(settings: Settings, overrides: Sequence[str], out: str) -> None:
    """Run a training on the ranks that settings.launcher starts, to its end.

    `overrides`: the settings of the command line, as given. `out`: the folder of the run, on every host. Raises
    LaunchError where ranks fail; Stopped after SIGTERM or Ctrl-C, when all ranks have ended.
    """
    given = [*(o for o in overrides if o.partition("=")[0] not in OWN)]
    given += [f"out={quoted(os.path.abspath(out))}", "launcher=local"]
    if settings.launcher == "torchrun":
        run_all({"torchrun": torchrun(given, settings.ranks)})
    elif settings.launcher == "ssh":
        run_all(ssh(given, settings.hosts.split(","), settings.ranks))
    else:
        from bench.train.rays import train_on_ray

        train_on_ray(settings, given, out)


def check(settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
    """Raise WrongSettings where launcher, hosts and ranks do not fit each other: what to change."""
    launcher, ranks = settings.launcher, settings.ranks
    if (launcher == "ssh") != bool(settings.hosts):
        raise WrongSettings("launcher=ssh needs hosts=a,b, and hosts= needs launcher=ssh")
    if launcher == "local" and ranks > 1 and "WORLD_SIZE" not in environment:
        raise WrongSettings(f"launcher=local is one process, and ranks={ranks}: launcher=torchrun starts several")
    if launcher != "local" and "WORLD_SIZE" in environment:
        raise WrongSettings(f"launcher={launcher} in a process that torchrun started already: launcher=local")
    hosts = settings.hosts.split(",") if settings.hosts else []
    for host in hosts:
        if not HOST.fullmatch(host):
            raise WrongSettings(f"hosts={settings.hosts}: {host!r} is no host or user@host; ports go into ssh's config")
    if len(set(hosts)) < len(hosts):
        raise WrongSettings(f"hosts={settings.hosts}: a host comes twice; ranks= says how many processes each has")


def one_value(argument: str) -> str:
    """Return an argument of the command line so that Hydra takes hosts=a,b for a value, not for two of a sweep."""
    name, _, value = argument.partition("=")
    return f"hosts={quoted(value)}" if name == "hosts" and re.fullmatch(r"[^'\"\[\]]*,[^'\"\[\]]*", value) else argument


def quoted(value: str) -> str:
    """Return a value as Hydra's command line takes it."""
    if re.fullmatch(r"[\w/.+-]+", value, re.ASCII):
        return value
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', re.sub(r"(\\+)$", r"\1\1", value))
    return '"' + escaped.replace("${", "\\${") + '"'


def torchrun(overrides: Sequence[str], ranks: int, rendezvous: Sequence[str] = ("--standalone",)) -> list[str]:
    """Return the command that starts the ranks of one host."""
    return [
        sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--nproc-per-node={ranks}",
        "-m", PROGRAM, *overrides,
    ]  # fmt: skip


def ssh(overrides: Sequence[str], hosts: Sequence[str], ranks: int, port: int | None = None) -> dict[str, list[str]]:
    """Return the command for each host; the first is where the ranks meet, at `port`, else at one chosen at random.

    Every host has the same interpreter and the same working directory, with the same files in it.
    """
    port = port or random.SystemRandom().randrange(20000, 32000)  # below those that a kernel gives away
    main = hosts[0].rpartition("@")[2]
    passed = [f"{name}={value}" for name, value in sorted(os.environ.items()) if PASSED.fullmatch(name)]
    commands = {}
    for number, host in enumerate(hosts):
        meet = [f"--nnodes={len(hosts)}", f"--node-rank={number}", f"--master-addr={main}", f"--master-port={port}"]
        line = ["env", *passed, *torchrun(overrides, ranks, meet)]
        remote = shlex.join(["sh", "-c", REMOTE, "sh", os.getcwd(), *line])
        commands[host] = ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "--", host, remote]
    return commands


def run_all(commands: Mapping[str, Sequence[str]]) -> None:
    """Run commands side by side until all have ended; one that fails, SIGTERM or Ctrl-C stops the others.

    A command is stopped by the end of its standard input where it is ssh, else by SIGTERM; after GRACE seconds it is
    killed. Raises LaunchError that names the first that failed, and Stopped.
    """
    signals: list[int] = []
    before = {n: signal.signal(n, lambda n, _: signals.append(n)) for n in (signal.SIGTERM, signal.SIGINT)}
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: tuple[str, int] | None = None
    deadline: float | None = None
    try:
        for name, command in commands.items():
            print(f"[{name}] {shlex.join(command)}", file=sys.stderr, flush=True)
            running[name] = _start(command)
        while running:
            for name, process in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name]
                    _close(process)
                    failed = failed or ((name, code) if code else None)
            if deadline is None and (failed or signals) and running:
                deadline = time.monotonic() + GRACE
                print(f"stopping {', '.join(running)}", file=sys.stderr, flush=True)
                for process in running.values():
                    _ask(process)
            elif (deadline is not None and time.monotonic() > deadline) or len(signals) > 1:
                break
            time.sleep(0.05)
    finally:
        for process in running.values():
            _kill(process)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Stopped(signals[0])
    if failed:
        raise LaunchError(f"{failed[0]}: exit code {failed[1]}; its own message is above")


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own, which Ctrl-C does not reach: it is told by _ask()."""
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    except FileNotFoundError as error:
        raise LaunchError(f"{command[0]} is not installed") from error


def _ask(process: subprocess.Popen[bytes]) -> None:
    _close(process)
    if Path(str(process.args[0])).name != "ssh":  # type: ignore[index]
        process.terminate()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all that it started, torchrun's ranks for one, which are in groups of their own."""
    for pid in [process.pid, *children(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    _close(process)


def children(pid: int) -> list[int]:
    """Return all descendants of a process, as far as they are its children still."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(words[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found[1:]
