"""Tars that no file holds: a batch of samples in the order asked, and a stream in the order of a plan."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from wdstools.errors import QueryError
from wdstools.plan import Plan
from wdstools.serve.request import Request
from wdstools.serve.response import Response
from wdstools.serve.sampleapi import SampleApi, Wrong, guarded, number, selection
from wdstools.serve.samplesets import SampleSet
from wdstools.serve.selecting import Rows
from wdstools.serve.tarstream import END, Packer, member, stream

MAX_BATCH = 100_000  # samples of a batch
MAX_JSON = 4 << 20  # bytes of a request for one
PATIENCE = 3600.0  # seconds for which a trainer may take nothing from a stream: it evaluates, say
MISSING = "__missing__.json"
_FRACTION = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9]{0,3}(?:\.[0-9]{1,18})?)")
_DEFAULT = {"train": 0.9, "val": 0.1}


class Streams:
    """The routes `batch` and `stream`."""

    def __init__(self, api: SampleApi) -> None:
        self._api = api

    def routes(self) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        return {"batch": guarded(self._batch, ("POST",)), "stream": guarded(self._stream)}

    async def _batch(self, request: Request) -> Response:
        if len(request.body) > MAX_JSON:
            raise Wrong(413, f"more than {MAX_JSON} bytes of JSON")
        found = await self._api.compute(self._resolve, request.body)
        last = b"".join(member(MISSING, json.dumps(found.missing).encode())) if found.missing else b""
        headers = b"Content-Type: application/x-tar\r\nX-Wds-Missing: %d\r\nCache-Control: no-store\r\n"
        packer = Packer(found.samples, iter(found.rows), found.fields, distinct=True)
        return Response(200, headers % len(found.missing), stream(self._api.read, packer, last + END), None)

    def _resolve(self, body: bytes) -> Batch:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Wrong(400, f"no JSON: {str(error)[:200]}") from error
        if not isinstance(asked, dict) or not isinstance(asked.get("samples"), list):
            raise Wrong(400, 'write {"samples": [numbers or keys]}, and "set", "fields" where they are wanted')
        name, fields = asked.get("set"), asked.get("fields")
        if not isinstance(name, str | None) or not _are_fields(fields):
            raise Wrong(400, "set must be a name, fields a list of names")
        if len(asked["samples"]) > MAX_BATCH:
            raise Wrong(413, f"more than {MAX_BATCH} samples")
        samples = self._api.the_set(name)
        if asked.get("version") not in (None, samples.version):
            raise Wrong(409, "the index of this set is another one by now")
        rows, missing = [], []
        for one in asked["samples"]:
            if type(one) not in (int, str):
                raise Wrong(400, f"{str(one)[:100]} is neither a number nor a key")
            row = samples.row(one, by_key=True)
            if row is None:
                missing.append(one)
            else:
                rows.append(row)
        return Batch(samples, rows, missing, None if fields is None else frozenset(fields))

    async def _stream(self, request: Request) -> Response:
        found = await self._api.compute(self._plan, request)
        headers = b"Content-Type: application/x-tar\r\nCache-Control: no-store\r\n"
        packer = Packer(found.samples, found.rows, found.fields)
        return Response(200, headers, stream(self._api.read, packer), None, patience=PATIENCE)

    def _plan(self, request: Request) -> Virtual:
        """Raises Wrong, QueryError."""
        samples = self._api.the_set(request.query.get("set"))
        rows = self._api.selections.rows(samples, selection(request))
        if split := request.query.get("split", ""):
            chosen = split_rows(samples, split, number(request, "split_seed", 0, most=(1 << 64) - 1))
            array = np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows
            rows = array[chosen[array]]
        world = number(request, "world", 1, 1, 1 << 20)
        block = number(request, "block", 1, 1, 1 << 40)
        plan = Plan(
            len(rows),
            seed=number(request, "seed", 0, most=(1 << 64) - 1),
            epoch=number(request, "epoch", 0),
            shuffle=request.query.get("shuffle", "1") not in ("0", "false"),
            block=block,
            batch_size=block,  # so that what lies together goes to one rank
            rank=number(request, "rank", 0, 0, world - 1),
            world=world,
            tail="uneven",
        )
        epochs = number(request, "epochs", 1, 0, 1 << 40)
        fields = request.query.get("fields")
        chosen_fields = frozenset(filter(None, fields.split(","))) if fields else None
        if epochs == 0 and not plan.count():
            raise Wrong(400, "an endless stream of nothing")
        return Virtual(samples, ordered(plan, rows, epochs), chosen_fields)


class Batch(NamedTuple):
    """`missing`: numbers and keys that no sample has."""

    samples: SampleSet
    rows: list[int]
    missing: list[Any]
    fields: frozenset[str] | None


class Virtual(NamedTuple):
    samples: SampleSet
    rows: Iterator[int]
    fields: frozenset[str] | None


def ordered(plan: Plan, rows: Rows, epochs: int) -> Iterator[int]:
    """The rows of a rank in the order of a plan, from its epoch on. `epochs`: 0: without end."""
    for epoch in itertools.count(plan.epoch) if not epochs else range(plan.epoch, plan.epoch + epochs):
        for batch in plan.with_epoch(epoch).batches():
            if isinstance(rows, range):
                yield from (batch * rows.step + rows.start).tolist()
            else:
                yield from rows[batch].tolist()


def split_rows(samples: SampleSet, text: str, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each row of the index whether it is in a split: "train:0.8,val:0.2@val", or "train" and "val" of 0.9 and 0.1.

    Raises Wrong."""
    spec, at, name = text.rpartition("@")
    fractions: dict[str, float] = {}
    if not at:
        fractions = _DEFAULT
    else:
        for part in spec.split(","):
            match = _FRACTION.fullmatch(part)
            if match is None or match[1] in fractions or match[2] in ("", "."):
                raise Wrong(400, "write a split as train:0.9,val:0.1@train")
            fractions[match[1]] = float(match[2])
    if name not in fractions:
        raise Wrong(400, f"there is no split {name[:100]!r} in {', '.join(fractions)}")
    places = {f"s{i}": fraction for i, fraction in enumerate(fractions.values())}  # names that are no argument
    try:
        views = samples.dataset.split(seed=seed, by=None, **places)
    except (ValueError, QueryError) as error:
        raise Wrong(400, str(error)) from error
    chosen = np.zeros(len(samples.index), bool)
    chosen[np.asarray(views[f"s{list(fractions).index(name)}"].rows)] = True
    return chosen


def _are_fields(fields: object) -> bool:
    return fields is None or (isinstance(fields, list) and all(isinstance(field, str) for field in fields))
