"""`--map module:function`: samples through a function of the user, in worker processes, in their order.

The function gets a sample, {"__key__": str, field: bytes, ...}, and returns a sample, None to leave it out, or a list
of samples; values that are not bytes are encoded by their field, as ShardWriter does it. Samples of a list that keep
the key get _0, _1, ... behind it. It must depend on the sample alone: then the shards do not depend on the workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from wdstools import encode, writer
from wdstools.convert.images import Failure, read_file
from wdstools.convert.sources import Fields, check_field, check_key
from wdstools.errors import SourceError

Item = tuple[str, Fields | Failure]
Results = list[list[Item]]
Function = Callable[[dict[str, Any]], Any]

TASK_SAMPLES = 16  # of a task, at most
TASK_BYTES = 8_000_000
_encode = encode.make_encoder(False, None)
_functions: dict[str, Function] = {}  # of a worker


def digest(name: str) -> str:
    """Return a digest of the source of the module: another function gives other shards. Raises SourceError."""
    module, colon, function = name.partition(":")
    if not (module and colon and function.isidentifier()):
        raise SourceError(f"--map {name}: write it as module:function, such as recipes.crops:center")
    with _current_folder():
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            raise SourceError(f"--map {name}: {error}") from error
    if spec is None:
        raise SourceError(f"--map {name}: there is no module {module}, neither here nor installed")
    if spec.origin is None or not os.path.isfile(spec.origin):
        return ""
    with open(spec.origin, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Modules in the current folder can be imported, as `python -m` does it."""
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.pop(0)


def start(stack: contextlib.ExitStack, name: str, workers: int) -> Callable[[Iterable[Item]], Iterator[list[Item]]]:
    """Return a function that maps samples, each to those that it becomes; its processes last as long as the stack."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def apply(items: Iterable[Item]) -> Iterator[list[Item]]:
        pending: deque[tuple[str, Future[Results]]] = deque()
        try:
            for task in _tasks(items):
                pending.append((task[0][0], pool.submit(_work, name, task)))
                if len(pending) >= 4 * workers:
                    yield from _results(*pending.popleft())
            while pending:
                yield from _results(*pending.popleft())
        except BrokenProcessPool as error:
            raise SourceError(f"--map {name}: a worker process died (killed, out of memory, or crashed)") from error

    def _results(first: str, future: Future[Results]) -> Results:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise SourceError(
                f"--map {name}: a worker process died (killed, out of memory, or crashed) near sample {first!r}"
            ) from error

    return apply


def _tasks(items: Iterable[Item]) -> Iterator[list[Item]]:
    held: list[Item] = []
    nbytes = 0
    for key, fields in items:
        if isinstance(fields, dict):
            nbytes += sum(len(v) if not isinstance(v, tuple) else max(0, v[1]) for v in fields.values())
            fields = {n: bytes(v) if isinstance(v, memoryview) else v for n, v in fields.items()}
        held.append((key, fields))
        if len(held) == TASK_SAMPLES or nbytes >= TASK_BYTES:
            yield held
            held, nbytes = [], 0
    if held:
        yield held


def load(name: str) -> Function:
    """Return the function of this name. Raises SourceError."""
    if name not in _functions:
        module, _, function = name.partition(":")
        with _current_folder():
            try:
                found = getattr(importlib.import_module(module), function)
            except Exception as error:
                raise SourceError(f"--map {name}: cannot be imported: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise SourceError(f"--map {name}: is no function")
        _functions[name] = found
    return _functions[name]


def _work(name: str, task: list[Item]) -> Results:
    """In a worker."""
    function = load(name)
    return [apply_to(function, key, fields) for key, fields in task]


def apply_to(function: Function, key: str, fields: Fields | Failure) -> list[Item]:
    """Return what a sample becomes: none, one or several, or one Failure."""
    if not isinstance(fields, dict):
        return [(key, fields)]
    where = f"sample {key!r}"
    try:
        sample = {n: _payload(value) for n, value in fields.items()}
    except OSError as error:
        return [(key, Failure(os.fsdecode(error.filename or where), (error.strerror or str(error)).lower(), ""))]
    except SourceError as error:
        return [(key, Failure(where, str(error), ""))]
    try:
        result = function({"__key__": key, **sample})
    except Exception as error:  # noqa: BLE001  whatever it raises is told of its sample
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        return [(key, Failure(where, "the map failed", detail))]
    if result is None:
        return []
    several = isinstance(result, list | tuple)
    found: list[Item] = []
    for number, made in enumerate(result if several else [result]):
        item = _checked(made, key, where, number if several and len(result) > 1 else None)
        if isinstance(item[1], Failure):
            return [(key, item[1])]  # one sample, one failure
        found.append(item)
    return found


def _payload(value: writer.Value) -> bytes:
    """Raises SourceError, OSError for a file that cannot be read."""
    return read_file(os.fspath(value[0]), value[1]) if isinstance(value, tuple) else bytes(value)


def _checked(made: Any, key: str, where: str, number: int | None) -> Item:
    if not isinstance(made, Mapping):
        return key, Failure(where, "the map gave no sample", f"a {type(made).__name__}, not a dict")
    new = made.get("__key__", key)
    if number is not None and new == key:
        new = f"{key}_{number}"
    if wrong := ("a key that is no text", repr(new)) if not isinstance(new, str) else check_key(new):
        return key, Failure(where, *wrong)
    fields: Fields = {}
    for name, value in made.items():
        if not isinstance(name, str):
            return key, Failure(where, "the map gave no sample", f"field {name!r} is no text")
        if name[:1] == "_":
            continue
        if wrong := check_field(name):
            return key, Failure(where, *wrong)
        try:
            fields[name] = _encode(value, name)
        except (TypeError, ValueError) as error:
            return key, Failure(where, "a value that is no field", str(error))
    return (new, fields) if fields else (key, Failure(where, "the map gave no sample", "it has no fields"))
