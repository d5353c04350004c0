"""One cell of a comparison, in a process of its own: `python -m bench.train.cell TASK`.

TASK is JSON: `overrides` of the settings, `mode` ("train": every batch goes through the model; "load": the loader
alone, to the device), and the least `batches` and `seconds` that are measured. Prints one line of JSON: what was
measured, `left_out` (this loader cannot read from this source, or is not installed) or `error`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any

import torch

from bench.train import settings as conf
from bench.train.gpu import Utilisation

WARM = 10  # batches before the clock starts: workers are there, and memory is taken


class LeftOutError(Exception):
    """What cannot be measured here, and why."""


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task. Returns samples, batches, epochs, seconds, rate (samples/s), share, median and p99 of the waits for
    data, cpu (seconds of all processes per 1,000 samples), gpu (share of time, or None). Raises LeftOutError."""
    settings = conf.load(task["overrides"])
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":  # the model gets the cores that the workers leave
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - settings.workers))
    batches = _batches(settings, device)
    step = _step(settings, device) if task["mode"] == "train" else _look
    finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with contextlib.closing(batches):
        for _ in range(WARM):
            step(next(batches)[1])
        finish()
        with Utilisation(0 if device.type == "cuda" and task["mode"] == "train" else None) as gpu:
            told = _timed(batches, step, finish, task["batches"], task["seconds"])
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    return {**told, "device": name, **gpu.summary()}


def _timed(
    batches: Iterator[tuple[int, Any]],
    step: Callable[[Any], object],
    finish: Callable[[], object],
    least: int,
    seconds: float,
) -> dict[str, Any]:
    waits: list[float] = []
    samples, epochs = 0, set()
    cpu, begin = _cpu(), time.perf_counter()
    now = begin
    while len(waits) < least or now - begin < seconds:
        before = time.perf_counter()
        epoch, batch = next(batches)
        waits.append(time.perf_counter() - before)
        step(batch)
        samples += len(batch["label"])
        epochs.add(epoch)
        now = time.perf_counter()
    finish()
    spent = time.perf_counter() - begin
    ordered = sorted(waits)
    return {
        "samples": samples, "batches": len(waits), "epochs": len(epochs), "seconds": spent, "rate": samples / spent,
        "share": sum(waits) / spent, "wait": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], "cpu": 1000 * (_cpu() - cpu) / samples,
    }  # fmt: skip


def _cpu() -> float:
    """Seconds of CPU of this process and those below it that live: workers are not waited for yet."""
    ticks, me = os.sysconf("SC_CLK_TCK"), os.getpid()
    total, wanted = 0, {me}
    parents: dict[int, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            parents[int(name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in wanted} - wanted
        wanted, grown = wanted | more, bool(more)
    total = sum(used for pid, (_, used) in parents.items() if pid in wanted)
    return total / ticks


def _batches(settings: Any, device: torch.device) -> Generator[tuple[int, Any], None, None]:
    """Epoch after epoch, without an end: (epoch, batch), on the device."""
    from bench.train import loaders
    from bench.train.feed import DeviceFeed

    try:
        feed: Any = loaders.make(settings, "train")
        if settings.loader != "synthetic":  # whose batch is there already
            feed = DeviceFeed(feed, device, max(1, settings.prefetch))
    except (ValueError, ModuleNotFoundError) as error:
        raise LeftOutError(str(error)) from error
    for epoch in count():
        feed.set_epoch(epoch)
        empty = True
        for batch in feed:
            yield epoch, batch
            empty = False
        if empty:
            raise ValueError(f"an epoch of loader={settings.loader} has no batch: fewer samples than batch_size?")


def _look(batch: Any) -> None:
    """What the loader alone is measured with: nothing; its batches are tensors on the device already."""


def _step(settings: Any, device: torch.device) -> Callable[[Any], None]:
    """What trains the model with a batch."""
    from bench.train import models
    from bench.train.feed import normalize

    model: Any = models.build(settings.model, settings.data.classes, settings.data.channels).to(device)
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    run: Any = torch.compile(model) if settings.compile else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    kind = {"bf16": torch.bfloat16, "16": torch.float16}.get(settings.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)

    def step(batch: Any) -> None:
        images = normalize(batch["image"])
        if settings.channels_last:
            images = images.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, kind, enabled=kind is not None):
            loss = torch.nn.functional.cross_entropy(run(images), batch["label"])
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def last_line(text: str) -> str:
    """The error itself of a text in which torch tells a worker's whole traceback, and what follows it."""
    _, mark, rest = text.partition("Original Traceback")
    if not mark:
        return text
    errors = [found.start() for found in re.finditer(r"^[A-Za-z_][\w.]*: ", rest, re.MULTILINE)]
    return rest[errors[-1] :] if errors else text


def main() -> None:
    """Run the task of the command line."""
    warnings.simplefilter("ignore")  # stderr is kept for what goes wrong
    try:
        told = measure(json.loads(sys.argv[1]))
    except LeftOutError as error:
        told = {"left_out": str(error)}
    except Exception as error:  # noqa: BLE001  whatever it is, the cell says it
        told = {"error": last_line(f"{type(error).__name__}: {error}")}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
