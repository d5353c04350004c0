"""Commands called in this process, as `main` would be called by a shell: much faster than a process for each."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


Call = Callable[..., Done]


def caller(module: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    main = import_module(module).main
    logger = logging.getLogger("wdstools")
    before = list(logger.handlers), logger.level

    def call(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        logger.handlers[:], level = before
        logger.setLevel(level)
        code = stopped.value.code
        assert isinstance(code, int)
        return Done(code, *capfdbinary.readouterr())

    yield call
    logger.handlers[:], level = before
    logger.setLevel(level)
