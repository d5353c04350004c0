"""What every command shares: exit codes, a closed pipe, Ctrl-C, errors in one line, JSON, the progress bar.

stdout is data and stderr is talk. Exit 0 done (also when the reader of a pipe has seen enough), 1 failed, 2 wrong
usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wdstools.errors import WdsError

if TYPE_CHECKING:
    from tqdm import tqdm


def run(command: click.Command) -> NoReturn:
    """Run `command` on the arguments of this process, and leave with the exit code that its outcome calls for.

    Every `main` is one call of this. A return value of the command that is an int is the exit code.
    """
    # Not command.main(): it takes every EOFError for Ctrl-D, and our TruncatedError is one; and it takes every broken
    # pipe, also that of a socket, for stdout's.
    name = command.name or "wdstools"
    try:
        code = _invoke(command, name)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        click.echo("Interrupted", err=True)
        code = 130
    except (WdsError, OSError) as error:
        gone = isinstance(error, BrokenPipeError) and not isinstance(error, WdsError) and _stdout_is_gone()
        code = 0 if gone else _fail(name, say(error))
    _drop_stdout_if_broken()
    sys.exit(code)


def say(error: BaseException) -> str:
    """What an error says, without the [Errno 2] of the builtin ones."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def talk(message: str) -> None:
    """Say something on stderr, under the name of the command that runs."""
    click.echo(f"{click.get_current_context().find_root().info_name}: {message}", err=True)


def tell_log() -> None:
    """Let what the library logs be heard on stderr, under the name of the command that runs."""
    import logging

    name = click.get_current_context().find_root().info_name
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    logger = logging.getLogger("wdstools")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def human(nbytes: float) -> str:
    """Bytes for people: 31.2 MB, in powers of 1000."""
    value, units = float(nbytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    digits = 0 if units[0] == "bytes" or value >= 99.95 else 1
    return f"{value:.{digits}f} {units[0]}"


def split_commas(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The callback of an option that is given more than once, or once with commas."""
    return tuple(dict.fromkeys(part.strip() for item in value for part in item.split(",") if part.strip()))


def emit(lines: Iterable[str]) -> None:
    """Write lines of data to stdout, each ended by a newline; a name that is no UTF-8 comes out as the bytes it was."""
    emit_bytes(os.fsencode("".join([line + "\n" for line in lines])))


def emit_json(obj: object) -> None:
    """Write one JSON document to stdout: indented, UTF-8, or with escapes where a name is no UTF-8."""
    import json

    text = json.dumps(obj, indent=2, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = json.dumps(obj, indent=2).encode()
    emit_bytes(data + b"\n")


def read_stdin() -> bytes:
    """All of stdin. OSError: it is closed."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "stdin is closed")
    return sys.stdin.buffer.read()


def progress(total: int | None, unit: str, desc: str, disable: bool = False) -> tqdm[Any]:
    """A progress bar on stderr, only on a terminal and only after two seconds; a context manager with `update(n)`.

    `total`: in units, None if unknown; `unit`: "B" counts bytes in powers of 1000, any other is the name of a thing.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        unit=unit if unit == "B" else f" {unit}",
        desc=desc,
        disable=True if disable else None,  # None: off unless the file is a terminal
        delay=2,
        file=sys.stderr,
        dynamic_ncols=True,
        unit_scale=unit == "B",
        unit_divisor=1000,
        leave=False,
    )


def _invoke(command: click.Command, name: str) -> int:
    try:
        with command.make_context(name, sys.argv[1:]) as context:
            result = command.invoke(context)
            return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:  # --help, --version, ctx.exit()
        return exit_.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code


def emit_bytes(data: bytes) -> None:
    """Write data to stdout as it is."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def _fail(name: str, message: str) -> int:
    click.echo(f"{name}: {message}", err=True)
    return 1


def _stdout_is_gone() -> bool:
    """Whether the reader of the pipe on stdout has closed it."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _drop_stdout_if_broken() -> None:
    """Spare the interpreter its own flush of stdout, at exit, where that can only fail with a message of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
