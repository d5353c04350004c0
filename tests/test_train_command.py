"""`python -m bench.train`: exit statuses, sweeps, signals to the whole group of processes as a terminal sends them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests import trained
from tests.trained import CLASSES

pytestmark = trained.QUIET


class Done(NamedTuple):
    code: object
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.make(tmp_path_factory.mktemp("pictures") / "shards")


def options(shards: Path, *more: str) -> list[str]:
    return [
        f"data.train={shards}", "data.make=null", f"data.classes={CLASSES}", "data.size=8", "model=tiny",
        "batch_size=10", "workers=0", "logger=none", "device=cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """main() in this process, in a folder of its own."""
    from bench.train.__main__ import main

    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:], level_now = handlers, level
            root.setLevel(level_now)
        return Done(stopped.value.code, *capsys.readouterr())

    yield run
    root.setLevel(level)


def test_a_run(shards: Path, call: Call, tmp_path: Path) -> None:
    done = call(*options(shards, "epochs=1", "out=a"))
    assert done.code == 0, done.err
    first, last = yaml.safe_load_all(done.out)
    assert first["settings"]["out"] == last["result"]["out"] == str(tmp_path / "a")
    assert "epoch 0  train_loss" in done.err
    again = call(*options(shards, "epochs=1", "out=a"))
    assert (again.code, again.out) == (2, "")
    assert "resume=auto goes on with it" in again.err
    again = call(*options(shards, "epochs=1", "out=a", "resume=auto"))
    assert (again.code, again.out) == (0, "")
    assert "finished already" in again.err
    more = call(*options(shards, "epochs=2", "out=a", "resume=auto"))
    assert more.code == 0
    assert json.loads((tmp_path / "a/result.json").read_text())["steps"] == 2 * last["result"]["steps"]


@pytest.mark.parametrize("override", ["loader=fast", "nothing=1", "data=cats", "epochs=many", "lr", "ranks=0"])
def test_wrong_usage_is_2(shards: Path, call: Call, override: str) -> None:
    done = call(*options(shards, override))
    assert (done.code, done.out) == (2, "")
    assert override.partition("=")[0] in done.err


def test_a_run_without_a_folder_gets_one(shards: Path, call: Call, tmp_path: Path) -> None:
    assert call(*options(shards, "max_steps=1")).code == 0
    (found,) = (tmp_path / "runs").iterdir()
    assert (found / "result.json").exists()


def test_a_failed_run_does_not_end_a_sweep(shards: Path, call: Call, tmp_path: Path) -> None:
    arguments = ["-m", *options(shards, "max_steps=1", f"data.train=/nothing,{shards}")]
    arguments = [text for text in arguments if text != f"data.train={shards}"]
    done = call(*arguments)
    assert done.code == 1
    assert "/nothing" in done.err
    assert "the same command goes on, without the runs that are finished" in done.err
    assert len(list((tmp_path / "runs/sweep").glob("*/result.json"))) == 1
    done = call(*arguments)
    assert done.err.count("finished already") == 1


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def stopped_at(process: subprocess.Popen[str], there: Callable[[], object], number: int) -> Done:
    """Send a signal to all processes of a command once something is there."""
    deadline = time.monotonic() + 60
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def test_ctrl_c_in_a_sweep(shards: Path, call: Call, tmp_path: Path) -> None:
    """Finished runs stay; the same command goes on in the midst of the one that was stopped, and with the others."""
    arguments = ["-m", *options(shards, "epochs=12", "workers=1", "lr=0.1,0.2")]
    arguments.remove("workers=0")
    sweep = tmp_path / "runs/sweep"
    done = stopped_at(
        start(tmp_path, *arguments), lambda: list(sweep.glob("*lr=0.2*/samples/*1.parquet")), signal.SIGINT
    )
    assert done.code == 130, done.err
    assert done.err.count("Ctrl-C: stopping after this step") == 1
    (first,) = sweep.glob("*/result.json")
    before = first.stat().st_mtime_ns
    again = call(*arguments)
    assert again.code == 0, again.err
    assert again.err.count("finished already") == 1
    assert first.stat().st_mtime_ns == before
    second = next(path for path in sweep.glob("*/result.json") if path != first)
    a, b = (json.loads(path.read_text()) for path in (first, second))
    assert a["steps"] == b["steps"] == len(a["curve"])
    assert 0 < len(b["curve"]) < b["steps"]


def test_sigterm(shards: Path, call: Call, tmp_path: Path) -> None:
    arguments = options(shards, "epochs=200", "workers=1", "out=run", "checkpoint_every=1000000")
    arguments.remove("workers=0")
    done = stopped_at(
        start(tmp_path, *arguments), lambda: list(tmp_path.glob("run/samples/*1.parquet")), signal.SIGTERM
    )
    assert done.code == 143, done.err
    assert "SIGTERM: stopping after this step" in done.err
    assert "bench.train: SIGTERM; the same command goes on with resume=auto out=" in done.err
    assert not (tmp_path / "run/result.json").exists()
    arguments[arguments.index("epochs=200")] = "epochs=3"
    assert call(*arguments, "resume=auto").code == 0
