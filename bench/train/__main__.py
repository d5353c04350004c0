"""`python -m bench.train [key=value ...]`, and `-m key=a,b` for every combination."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bench.train import launchers
from bench.train.settings import CONF, Settings, WrongSettings, checked, plain, register
from bench.train.stopping import Stopped

FREE = ("out", "resume", "launcher", "hosts", "address")  # settings in which a finished run may differ


class Jobs:
    """The runs of a command: one, or those of a sweep. A run that fails does not end a sweep, a signal does."""

    def __init__(self) -> None:
        self.begun, self.failed = False, 0

    def one(self, config: DictConfig) -> None:
        self.begun = True
        told = HydraConfig.get()
        sweep = told.mode == RunMode.MULTIRUN
        try:
            settings = checked(config)
        except WrongSettings as error:
            return self._fail(2, str(error))
        try:
            settings.out = told.runtime.output_dir
            if sweep and settings.resume is None:
                settings.resume = "auto"
            self.run(settings, list(told.overrides.task))
        except WrongSettings as error:
            self._fail(2, str(error))
        except Stopped as stopped:
            print(f"bench.train: {stopped}; {_goes_on(settings, sweep)}", file=sys.stderr, flush=True)
            raise
        except Exception as error:  # noqa: BLE001  # said here: a sweep goes on
            self._fail(1, f"{_said(error)}\n{_goes_on(settings, sweep)}")

    def run(self, settings: Settings, overrides: list[str]) -> None:
        if settings.resume is not None and finished(settings):
            print(f"finished already: {settings.out}", file=sys.stderr)
            return
        launchers.check(settings)
        if settings.launcher != "local":
            launchers.launch(settings, overrides, settings.out or "")
            return
        from bench.train import run
        from bench.train.record import as_yaml

        result = asdict(run.train(settings))
        if run.ranks()[0] == 0:
            del result["curve"]  # is in the folder
            print(f"---\n{as_yaml({'result': result})}", end="", flush=True)

    def _fail(self, code: int, text: str) -> None:
        self.failed = self.failed or code
        print(f"bench.train: {text}", file=sys.stderr, flush=True)


def finished(settings: Settings) -> bool:
    """Say whether the folder of a run holds the result of just these settings."""
    path = Path(settings.out or "") / "result.json"
    if not path.exists():
        return False
    saved = json.loads(path.read_text())["settings"]
    return all(saved.get(name) == value for name, value in plain(settings).items() if name not in FREE)


def _goes_on(settings: Settings, sweep: bool) -> str:
    """What can be done about a run that did not come to its end."""
    last = Path(settings.out or "") / "checkpoints" / "last.ckpt"
    if sweep:
        return "the same command goes on, without the runs that are finished"
    if not last.exists():
        return "there is no checkpoint yet: the same command begins anew"
    return f"the same command goes on with resume=auto {shlex.quote(f'out={settings.out}')} (from {last})"


def _said(error: Exception) -> str:
    """An error with its notes; of one that no part of this project makes on purpose, where it came from as well."""
    from wdstools.errors import WdsError

    text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    if isinstance(error, WdsError | ValueError | OSError) or "DataLoader worker" in str(error):
        return text
    return f"{''.join(traceback.format_exception(error))}{text}"


def main() -> None:
    """Run, and exit: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    register()
    sys.argv[1:] = map(launchers.one_value, sys.argv[1:])
    jobs = Jobs()
    application = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(jobs.one)
    try:
        application()
    except SystemExit as stopped:
        raise SystemExit(stopped.code if jobs.begun or not stopped.code else 2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(jobs.failed)


if __name__ == "__main__":
    main()
