"""Parcels: batches from a worker to the process that consumes them, payloads in a file in memory.

What multiprocessing does with a batch is to pickle it, payloads and all, push that through a pipe in 64 KiB pieces and
copy it out again. Here payloads go apart (pickle's protocol 5), into a memfd whose descriptor is sent: each is
written once and read once, and /dev/shm is not needed, which is small in containers. And a batch that cannot be pickled
is an error in the consumer, where multiprocessing would lose it and torch wait for ever.

Tensors go the same way: torch would move each into shared memory that is new for every batch, whose pages cost many
times what copying them does, and send a descriptor for each, however small.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

APART = 4096  # bytes of a payload that is worth its own read
KEPT = 16  # files of a worker
PIECES = 512  # of a write: half of what Linux takes
BUSY, FREE = b"\1" + bytes(7), bytes(8)
LEAST = 1 << 18  # bytes of payloads that are worth a file: a descriptor takes some 0.2 ms to send


class Packer:
    """What a worker packs its batches with. The files are its own; one is written again once it has been read.

    A file begins with a word that is 1 from the sending to the end of the reading: fresh memory costs a worker more
    than all else that it does for raw payloads. A consumer that never reads a batch takes the file with it.
    """

    def __init__(self) -> None:
        self.files: list[int] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return Packer, ()

    def __call__(self, batch: Any) -> Parcel:
        """Pack a batch; it is unpickled as the batch. bytes and memoryviews arrive as bytes, arrays as arrays, tensors
        as tensors of the same layout; those in shared memory stay there.

        Raises what pickle does for what cannot be pickled.
        """
        payloads: list[pickle.PickleBuffer] = []
        data = io.BytesIO()
        ForkingPickler(data, 5, True, payloads.append).dump(_apart(batch))
        views = [payload.raw() for payload in payloads]
        sizes = [(view.nbytes, view.readonly) for view in views]
        if sum(view.nbytes for view in views) < LEAST:
            return Parcel(_inside, (data.getvalue(), [bytes(v) if v.readonly else bytearray(v) for v in views]))
        fd = self._free()
        _write(fd, [memoryview(BUSY), *views])
        return Parcel(_unpack, (data.getvalue(), sizes, DupFd(fd)))

    def _free(self) -> int:
        """Return a file that nobody reads, made where there is none."""
        for fd in self.files:
            if os.pread(fd, len(FREE), 0) == FREE:
                return fd
        if len(self.files) == KEPT:
            os.close(self.files.pop(0))
        self.files.append(os.memfd_create("batch", os.MFD_CLOEXEC))
        return self.files[-1]

    def __del__(self) -> None:
        for fd in self.files:
            os.close(fd)


class Parcel:
    """A batch on its way."""

    def __init__(self, unpack: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.unpack, self.arguments = unpack, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.unpack, self.arguments


def _apart(value: Any) -> Any:
    """Mark payloads in dicts, lists and tuples, named ones too; pickle does so itself for arrays."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is memoryview or (kind is bytes and len(value) >= APART):
        if kind is memoryview:
            value = value.toreadonly() if value.c_contiguous and value.nbytes >= APART else value.tobytes()
        return pickle.PickleBuffer(value) if len(value) else b""
    if kind is dict:
        return {name: _apart(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return kind(map(_apart, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*map(_apart, value))
    torch = sys.modules.get("torch")
    return _Tensor(value) if torch is not None and kind is torch.Tensor and _is_plain(value, torch) else value


def _is_plain(tensor: Any, torch: Any) -> bool:
    """Whether a tensor is nothing but numbers in this process's own memory; torch knows how to send others."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.requires_grad or not tensor.numel():
        return False
    return not (tensor.is_shared() or tensor.is_quantized)


class _Tensor:
    """A tensor as a payload: its numbers in the order in which they lie in memory."""

    def __init__(self, tensor: Any) -> None:
        tensor = tensor.resolve_conj().resolve_neg()  # torch sends the numbers without what these bits say
        strides = tensor.stride()
        order = sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)
        self.numbers = tensor.permute(order).contiguous()
        self.back = [order.index(i) for i in range(len(order))]

    def __reduce__(self) -> tuple[Any, ...]:
        payload = self.numbers.reshape(-1).view(sys.modules["torch"].uint8).numpy()
        return _tensor, (pickle.PickleBuffer(payload), self.numbers.dtype, tuple(self.numbers.shape), self.back)


def _tensor(payload: Any, dtype: Any, shape: tuple[int, ...], back: list[int]) -> Any:
    return sys.modules["torch"].frombuffer(payload, dtype=dtype).view(shape).permute(back)


def _write(fd: int, views: list[memoryview]) -> None:
    """Write all that, from the start of a file."""
    at = 0
    for first in range(0, len(views), PIECES):
        pieces = views[first : first + PIECES]
        end = at + sum(piece.nbytes for piece in pieces)
        while at < end:
            written = os.pwritev(fd, pieces, at)
            at += written
            while pieces and written >= pieces[0].nbytes:
                written -= pieces.pop(0).nbytes
            if pieces:
                pieces[0] = pieces[0][written:]


def _inside(data: bytes, payloads: list[Any]) -> Any:
    return pickle.loads(data, buffers=payloads)


def _unpack(data: bytes, sizes: list[tuple[int, bool]], sent: Any) -> Any:
    fd = sent.detach()
    try:
        payloads, at = [], len(BUSY)
        for size, readonly in sizes:
            payloads.append(_read(fd, size, at) if readonly else _read_writable(fd, size, at))
            at += size
        os.pwrite(fd, FREE, 0)
    finally:
        os.close(fd)
    return pickle.loads(data, buffers=payloads)


def _read(fd: int, size: int, at: int) -> bytes:
    found = os.pread(fd, size, at)
    while len(found) < size:  # of 2 GiB and more
        found += os.pread(fd, size - len(found), at + len(found))
    return found


def _read_writable(fd: int, size: int, at: int) -> Any:
    import numpy as np

    found: Any = np.empty(size, np.uint8)  # of a bytearray every byte would be written twice
    view, done = memoryview(found), 0
    while done < size:
        done += os.preadv(fd, [view[done:]], at + done)
    return found
