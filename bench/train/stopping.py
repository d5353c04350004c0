"""SIGTERM and Ctrl-C: the step is finished, a checkpoint is written, and the process ends with 143 or 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A run that was told to end, and did; `code` is what a shell calls that: 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return "Ctrl-C" if self.signal is signal.SIGINT else self.signal.name


class Stop:
    """`with Stop() as stop:` notes the signals. Outside of steps (`stepping` is false) they end the process at once;
    so does a second Ctrl-C. In another thread than the main one, where Python hears no signals, it does nothing."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came
        self.stepping = False
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, again where a Trainer took them: its own handler talks to other ranks in the midst of
        whatever they say to each other."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker, which ends with this process
            return
        if not self.stepping:
            raise Stopped(number)
        if self.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.number = number
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises, in the midst of anything, where a worker died
        print(f"{Stopped(number)}: stopping after this step", file=sys.stderr, flush=True)
