"""The access log: a line for every answer, in the combined format with the seconds it took at its end."""

from __future__ import annotations

import os
import re
import time

from wdstools.serve.request import Request

MOST = 64 * 1024  # bytes that are kept before they are written

_TOKEN = re.compile(r"([?&](?:token|X-Amz-Signature|X-Amz-Security-Token)=)[^&]*")


class AccessLog:
    """`target`: a file, which is appended to, or "-" for stderr. Lines are written once a second, or when there are
    many. OSError: it cannot be opened."""

    def __init__(self, target: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.dup(2) if target == "-" else os.open(target, flags, 0o640)
        self._lines: list[str] = []
        self._size = 0
        self._second, self._stamp = -1, ""
        self.failed = ""  # why the last write failed

    def note(self, request: Request, status: int, nbytes: int, seconds: float, whole: bool) -> None:
        now = int(time.time())
        if now != self._second:
            self._second, self._stamp = now, time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now))
        target = _clean(_TOKEN.sub(r"\1***", request.target.decode("latin-1")))
        agent, referer = (_clean(request.header(name)[:500]) or "-" for name in (b"user-agent", b"referer"))
        line = (
            f'{request.peer or "-"} - - [{self._stamp}] "{request.method} {target}" {status} {nbytes} '
            f'"{referer}" "{agent}" {seconds:.6f}{"" if whole else " short"}\n'
        )
        self._lines.append(line)
        self._size += len(line)
        if self._size > MOST:
            self.flush()

    def flush(self) -> None:
        data, self._lines, self._size = "".join(self._lines).encode(), [], 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            self.failed = ""
        except OSError as error:
            self.failed = error.strerror or str(error)

    def close(self) -> None:
        self.flush()
        os.close(self._fd)


def _clean(text: str) -> str:
    return "".join(c if " " <= c < "\x7f" and c not in '"\\' else f"\\x{ord(c):02x}" for c in text)
