r"""`pipe:` URLs: commands that write a shard to stdout, quoted so that any name is safe in a shell. String work only.

A shard pattern keeps its braces, for the expander of webdataset or wdstools, which acts on the whole `pipe:` string:
all quoting here is character by character, so that what a pattern expands to is quoted as each name would have been.
Its backslashes (see `braces.escape`) stay for the expander too: a pattern with some must be expanded, not opened as
it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from wdstools.braces import escape, expand
from wdstools.errors import NotFoundError, UrlError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SAFE = re.compile(r"[A-Za-z0-9@%+=:,./_-]+")
_VARIABLE = re.compile(r"\$\{\w+\}")
_SIZE = re.compile(r"[0-9]+[bkMGT%]?")
_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "file": "", "https": "http"}


class _Want(NamedTuple):
    """What a command is built for. `url`: the pattern; `rest`: what follows its scheme; `options`: more arguments."""

    url: str
    scheme: str
    rest: str
    options: Sequence[str]
    idle: int
    retries: int

    @property
    def connect(self) -> int:
        """Seconds for a connection."""
        return min(10, self.idle)


def quote(text: str) -> str:
    """One word of a shell's command line that stands for `text`, whatever is in it but NUL (UrlError)."""
    if "\0" in text:
        raise UrlError(f"{text[:200]!r}: a command cannot contain NUL")
    return text if _SAFE.fullmatch(text) else "'" + text.replace("'", "'\"'\"'") + "'"


def pipe(
    url: str,
    via: str | None = None,
    *,
    options: Sequence[str] = (),
    buffer: str | None = None,
    idle: int = 30,
    retries: int = 5,
    check: bool = True,
) -> str:
    """Return the `pipe:` URL of a command that writes the shards of `url` to stdout: a name, or a brace pattern.

    `via`: the program: "wds-cat" (any URL; continues what broke off), "curl" (http, ftp, sftp), "aws" (s3), "gcloud",
    "gsutil" (gs), "az" (az), "ssh" (ssh://[user@]host[:port]/path), "fread", "mbuffer", "cat" (files). None: the first
    of those for the scheme that is installed, in the order of PROGRAMS. `options`: more arguments for it, quoted here;
    put no token into them, which every user of the machine can read: see docs/pipes.md. `buffer`: memory of an
    mbuffer behind it, such as "256M". `idle`: seconds without a byte after which a program that can gives up;
    `retries`: how often a program that can tries again. `check`: whether the programs are looked for on the PATH.

    Patterns that `::` separates are one command each. Raises UrlError: a scheme that `via` does not read, a name that
    it would take for something else, a `${NAME}`; NotFoundError: a program is not installed.
    """
    if idle < 2 or retries < 0:
        raise ValueError("idle must be at least 2 seconds, and retries not negative")
    if buffer is not None and not _SIZE.fullmatch(buffer):
        raise ValueError(f"{buffer!r} is no size for mbuffer: write it as 256M")
    return "::".join(_pipe(part, via, options, buffer, idle, retries, check) for part in url.split("::"))


def expand_template(template: str, names: str | Iterable[str]) -> list[str]:
    """Return `template` with `%s` replaced by each of `names`, which are expanded first, as `expand` takes them.

    In a `pipe:` template every name is quoted for where its `%s` stands: bare, or inside '...' or "...". The result is
    meant to be opened as it is: give it as a list to webdataset, and through `escape` to what expands lists. UrlError:
    no `%s`, one inside `$(...)`, `${...}`, backticks, a comment or a here document, where no quoting is safe, or a name
    that a program would take for an option. A command inside a command (`sh -c "... %s"`) is beyond this.
    """
    parts = template.split("%s")
    if len(parts) == 1:
        raise UrlError(f"{template[:200]!r}: there is no %s in it")
    if template[:5].lower() != "pipe:":
        return [name.join(parts) for name in expand(names)]
    places: list[Callable[[str], str]] = []
    state = ""
    for part in parts[:-1]:
        state = _state(template, part, state)
        places.append({"": quote, "'": _inside_single, '"': _inside_double}[state])
    found = []
    for name in expand(names):
        quote(name)  # NUL
        if name.startswith("-") and any(_begins(part.rstrip("'\"")) for part in parts[:-1]):
            raise UrlError(f"{name!r}: a program would take it for an option: write ./ before it")
        filled = [piece for place, part in zip(places, parts, strict=False) for piece in (part, place(name))]
        found.append("".join(filled) + parts[-1])
    return found


def _pipe(
    url: str, via: str | None, options: Sequence[str], buffer: str | None, idle: int, retries: int, check: bool
) -> str:
    if _VARIABLE.search(url):
        raise UrlError(f"{url!r}: what a variable stands for cannot be quoted: put it in yourself")
    if url == "-" or not url or url[:5].lower() == "pipe:":
        raise UrlError(f"{url!r}: no URL to make a command for")
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    scheme = _ALIASES.get(scheme, scheme)
    rest = url[match.end() :] if match else url
    if not match and "://" in url:
        raise UrlError(f"{url!r}: write the scheme without braces")
    if (len(url) - len(url.rstrip("\\"))) % 2:  # the last one means itself: keep it from the quote
        url, rest = url + "\\", rest + "\\"
    if scheme == "" and (match or url[:5].lower() == "file:"):
        raise UrlError(f"{url!r}: give the path itself: programs do not know file URLs")
    literal = [escape(word) if re.search(r"[{}\\]|::", word) else word for word in options]
    want = _Want(url, scheme, rest, literal, idle, retries)
    program = _choose(want, via, check)
    command = " ".join(map(quote, PROGRAMS[program].words(want)))
    if check:
        _need(program)
    if buffer is not None:
        if check:
            _need("mbuffer")
        # sh may have no pipefail; -q: mbuffer's own progress is talk that nobody reads
        command = f"bash -o pipefail -c '\"$@\" | mbuffer -q -m {buffer}' pipe {command}"
    return "pipe:" + command


def _choose(want: _Want, via: str | None, check: bool) -> str:
    if via is not None and via not in PROGRAMS:
        raise UrlError(f"{via!r} is no program that is known here: choose {', '.join(PROGRAMS)}")
    fitting = [name for name, program in PROGRAMS.items() if want.scheme in program.schemes or not program.schemes]
    if via is not None:
        if via not in fitting:
            raise UrlError(f"{want.url!r}: {via} does not read this: choose {', '.join(fitting)}")
        return via
    return next((name for name in fitting if not check or _has(name)), fitting[0])


def _has(program: str) -> bool:
    from shutil import which  # 5 ms that nobody else pays

    return which(program) is not None


def _need(program: str) -> None:
    if not _has(program):
        how = PROGRAMS[program].install
        raise NotFoundError(
            f"{program} is not on the PATH: {how}; or give via=, or check=False where it runs elsewhere"
        )


def _path(path: str) -> str:
    """A path that no program takes for an option, or for stdin."""
    if path[:1] in ("{", "\\") and any(name.startswith("-") for name in expand(path)):
        raise UrlError(f"{path!r}: a program would take a name that starts with - for an option: write ./ before it")
    return f"./{path}" if path.startswith("-") else path


def _refuse(want: _Want, characters: str, program: str) -> None:
    if any(c in want.rest for c in characters):
        raise UrlError(f"{want.url!r}: {program} takes {' '.join(characters)} for wildcards: use wds-cat")


def _curl(want: _Want) -> list[str]:
    # A retry after the first byte would write the beginning again: curl cannot take back what is in a pipe. A stall is
    # noticed after `idle` seconds at the earliest, and --retry-max-time ends the retries before that.
    words = ["curl", "-sSfL", "--globoff", "--retry", str(want.retries), "--retry-max-time", str(want.idle - 1)]
    words += ["--connect-timeout", str(want.connect), "--speed-limit", "1", "--speed-time", str(want.idle)]
    return [*words, *want.options, "--url", want.url]


def _aws(want: _Want) -> list[str]:
    words = ["aws", "s3", "cp", "--only-show-errors", "--cli-connect-timeout", str(want.connect)]
    return [*words, "--cli-read-timeout", str(want.idle), *want.options, f"s3://{want.rest}", "-"]


def _gcloud(want: _Want) -> list[str]:
    _refuse(want, "*?[]", "gcloud")
    return ["gcloud", "storage", "cat", *want.options, f"gs://{want.rest}"]


def _gsutil(want: _Want) -> list[str]:
    _refuse(want, "*?[]", "gsutil")
    return ["gsutil", "-q", *want.options, "cat", f"gs://{want.rest}"]


def _az(want: _Want) -> list[str]:
    host, slash, name = want.rest.partition("/")
    if not slash or not name or re.search(r"[{}\\\\]", host):
        raise UrlError(f"{want.url!r}: write it as az://container/name, with braces in the name only")
    container, _, account = host.partition("@")
    words = ["az", "storage", "blob", "download", "--only-show-errors", "--no-progress", "--output", "none"]
    words += [f"--account-name={account.partition('.')[0]}"] if account else []
    return [*words, *want.options, f"--container-name={container}", f"--name={name}", "--file", "/dev/stdout"]


def _ssh(want: _Want) -> list[str]:
    host, _, path = want.rest.partition("/")
    host, colon, port = host.partition(":")
    plain = re.fullmatch(r"[^\s{}\\'\"-][^\s{}\\'\"]*", host) and (not colon or port.isdecimal())
    if not plain or not path:
        raise UrlError(f"{want.url!r}: write it as ssh://user@host:22/path, with braces in the path only")
    path = path[2:] if path.startswith("~/") else f"/{path}"
    words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={want.connect}"]
    words += ["-o", f"ServerAliveInterval={max(1, want.idle // 3)}", "-o", "ServerAliveCountMax=3"]
    words += ["-p", port] if port else []
    return [*words, *want.options, "--", host, f"cat -- {quote(path)}"]


def _wds_cat(want: _Want) -> list[str]:
    return ["wds-cat", "--literal", "--timeout", str(want.idle), *want.options, _path(want.url)]


class _Program(NamedTuple):
    """`schemes`: that it reads, none: all; `words`: its command line; `install`: how to get it."""

    schemes: tuple[str, ...]
    words: Callable[[_Want], list[str]]
    install: str


PROGRAMS: dict[str, _Program] = {
    "fread": _Program(("",), lambda want: ["fread", *want.options, _path(want.rest)], "it comes with wdstools"),
    "cat": _Program(("",), lambda want: ["cat", *want.options, _path(want.rest)], "it is part of coreutils"),
    "aws": _Program(("s3",), _aws, "pip install awscli"),
    "gcloud": _Program(("gs",), _gcloud, "install the Google Cloud CLI"),
    "gsutil": _Program(("gs",), _gsutil, "pip install gsutil"),
    "az": _Program(("az",), _az, "pip install azure-cli"),
    "ssh": _Program(("ssh",), _ssh, "apt-get install openssh-client"),
    "wds-cat": _Program((), _wds_cat, "it comes with wdstools"),
    "curl": _Program(("http", "ftp", "ftps", "sftp", "scp"), _curl, "apt-get install curl"),
    "mbuffer": _Program(
        ("",), lambda want: ["mbuffer", "-q", *want.options, "-i", _path(want.rest)], "apt-get install mbuffer"
    ),
}
"""The programs, in the order in which `via=None` looks for them."""


def _inside_single(name: str) -> str:
    return name.replace("'", "'\"'\"'")


def _inside_double(name: str) -> str:
    return re.sub(r'([\\"$`])', r"\\\1", name)


def _begins(text: str) -> bool:
    """Whether a word begins after `text`."""
    return text[-1:] in ("", " ", "\t", "\n", ";", "&", "|", "(")


def _state(template: str, text: str, state: str) -> str:
    """Inside of which quote a shell is after `text`; "" for none."""
    i = 0
    while i < len(text):
        c = text[i]
        if state == "'":
            state = "" if c == "'" else state
        elif c == "\\":
            if i + 1 == len(text):
                raise UrlError(f"{template[:200]!r}: a backslash before %s: leave it out, names are quoted here")
            i += 1
        elif c == "`" or text[i : i + 2] in ("$(", "${", "$'", "<<") or (c == "#" and not state and _begins(text[:i])):
            raise UrlError(f"{template[:200]!r}: {text[i : i + 2]} before %s: no quoting is safe in there")
        elif c == '"' or (c == "'" and not state):
            state = "" if state == c else c
        i += 1
    return state
