"""Problems that only the bytes of payloads show: images that do not decode."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np

from wdstools import decode
from wdstools.doctor.problems import Problem
from wdstools.doctor.survey import CUT, Survey, take
from wdstools.errors import DecodeError, WdsError
from wdstools.reader import stream
from wdstools.storage import open_source

DECODED = (
    "jpg", "jpeg", "img", "image", "png", "pbm", "pgm", "ppm", "tif", "tiff", "webp", "bmp", "gif", "json", "jsn",
    "npy", "npz",
)  # fmt: skip
TOLD = 10  # payloads of a shard that are named


class Failed(NamedTuple):
    """A payload that does not decode. `offset`: of its header, or None."""

    name: str
    reason: str
    offset: int | None


def decoder() -> Callable[[dict[str, Any]], Any]:
    """Return what decodes the fields of a sample that have a decoder of their own: images, JSON and arrays."""
    made = decode.make_decoder(
        {ext: "json" if ext in ("json", "jsn") else ext if ext in ("npy", "npz") else "pil" for ext in DECODED}
    )
    if made is None:
        raise TypeError("no decoder")
    return made


def undecodable(url: str) -> list[Failed]:
    """Return the payloads of a shard that do not decode. Runs in a process of its own. Raises WdsError."""
    with open_source(url) as source:
        if isinstance(source.handle, int) and source.local_path is not None:
            return _in_file(take(source), source.handle)
    return _in_stream(url)


def _in_file(survey: Survey, fd: int) -> list[Failed]:
    run, found = decoder(), []
    wanted = [code for code, ext in enumerate(survey.exts) if ext.rpartition(".")[2] in DECODED]
    hits = np.isin(survey.codes, wanted) & (survey.flags & CUT == 0) & (survey.sizes > 0)
    for member in np.flatnonzero(hits).tolist():
        data = os.pread(fd, int(survey.sizes[member]), int(survey.offsets[member]))
        if reason := _reason(run, survey.ext(member), data):
            found.append(Failed(survey.name(member), reason, int(survey.headers[member])))
    return found


def _in_stream(url: str) -> list[Failed]:
    run, found = decoder(), []
    try:
        for sample in stream(url):
            for field, data in sample.items():
                if field.startswith("__") or not data:
                    continue
                if reason := _reason(run, field, data):
                    found.append(Failed(f"{sample['__key__']}.{field}", reason, None))
    except WdsError:
        return found  # the survey tells where it breaks
    return found


def _reason(run: Callable[[dict[str, Any]], Any], field: str, data: bytes) -> str | None:
    try:
        run({field: data})
    except DecodeError as error:
        return error.reason
    return None


def decode_all(urls: Sequence[str], workers: int, progress: Callable[[int], object]) -> Iterator[Problem]:
    """Decode what can be decoded of shards, each in one of `workers` processes, and yield a problem a shard."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(min(workers, len(urls)) or 1, mp_context=context) as pool:
        jobs = [(url, pool.submit(undecodable, url)) for url in urls]
        for url, job in jobs:
            try:
                failed = job.result()
            except BrokenProcessPool:
                yield Problem("decode", url, "a decoder took its process down, in this shard or one beside it")
                continue
            except (WdsError, OSError):
                failed = []  # the survey has told it
            finally:
                progress(0)
            if failed:
                first = failed[0]
                more = f", and {len(failed) - 1:,} others" if len(failed) > 1 else ""
                told = [one._asdict() for one in failed[:TOLD]]
                reason = f"{first.name!r} does not decode ({first.reason}){more}"
                yield Problem("decode", url, reason, first.offset, len(failed), detail={"members": told})
