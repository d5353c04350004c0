"""Batches on the device: pinned memory, copies on a stream of their own, some batches ahead of the model."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

MEAN = {1: (0.5,), 3: (0.485, 0.456, 0.406)}  # of ImageNet
STD = {1: (0.5,), 3: (0.229, 0.224, 0.225)}
LOOK = 0.1  # seconds after which a thread that waits for room looks whether anybody still wants its batches

Batch = dict[str, Any]


def normalize(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return uint8 images [B, C, H, W] as floats of mean 0 and deviation 1, on their device and in their layout; floats
    come as they are. Raises ValueError for other numbers of channels than 1 and 3."""
    if images.is_floating_point():
        return images
    channels = images.shape[1]
    if channels not in MEAN:
        raise ValueError(f"images have 1 or 3 channels, not {channels}")
    mean, std = _scales(channels, images.device)
    return images.to(torch.float32).sub_(mean).div_(std).to(dtype)


@cache
def _scales(channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of bytes, copied to a device once: a copy would wait for all that the device has to do."""
    mean, std = (torch.tensor(values[channels], device=device).view(1, -1, 1, 1) * 255 for values in (MEAN, STD))
    return mean, std


class DeviceFeed:
    """A Feed whose batches are on a device. On the CPU it is the Feed.

    `depth`: batches that are copied ahead, by a thread, so that neither a copy nor a batch that comes late is waited
    for as long as others are there. State, epochs and length are those of the Feed after the batches that were
    delivered, whatever was copied ahead. A Feed with `decode` has its batches decoded on the device.
    """

    def __init__(self, feed: Any, device: torch.device | str, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self.feed, self.device, self.depth = feed, torch.device(device), depth
        self.exact = bool(getattr(feed, "exact", False))  # whether state_dict() is a place to resume at
        self._decode: Callable[[Batch, torch.device], Batch] | None = getattr(feed, "decode", None)
        if self._decode is not None and self.device.type != "cuda":
            raise ValueError(f"decoder=nvjpeg decodes on a GPU, not on {self.device}: use decoder=pillow or simplejpeg")
        self._state: Mapping[str, Any] | None = None  # after the last batch delivered; None: ask the Feed

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.feed) if self.device.type == "cpu" else self._delivered()

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be an epoch, as that of the Feed."""
        self._state = None
        self.feed.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch delivered. Raises ValueError, where the Feed has none."""
        return dict(self.feed.state_dict() if self._state is None else self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError, where the Feed cannot."""
        self._state = None
        self.feed.load_state_dict(state)

    def _place(self) -> Mapping[str, Any] | None:
        return self.feed.state_dict() if getattr(self.feed, "exact", False) else None

    def _delivered(self) -> Iterator[Batch]:
        ahead, batches = _Ahead(self.depth), iter(self.feed)  # begun, and its workers started, by this thread
        thread = threading.Thread(target=self._copy, args=(ahead, batches), name="device-feed", daemon=True)
        first, given = self._place(), False
        self._state = first
        thread.start()
        try:
            while True:
                item = ahead.items.get()
                if isinstance(item, BaseException):
                    raise item
                batch, self._state, copied = item
                if batch is None:
                    return
                given = True
                yield self._arrived(batch, copied)
        finally:
            ahead.stopped.set()
            with contextlib.suppress(queue.Empty):
                while True:
                    ahead.items.get_nowait()
            thread.join()
            if not given and first is not None:  # an iteration that gave nothing does not count
                self.feed.load_state_dict(first)

    def _copy(self, ahead: _Ahead, batches: Iterator[Batch]) -> None:
        """In the thread: fetch batches and start their copies."""
        try:
            with self._stream() as stream:
                for batch in batches:
                    moved = self._moved(batch)
                    event = None if stream is None else stream.record_event()
                    # the host's memory has to be there until the copy is done
                    if not ahead.put((moved, self._place(), (event, batch))):
                        return
            ahead.put((None, self._place(), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where the batch is asked for
            ahead.put(error)
        finally:
            if isinstance(batches, Generator):
                batches.close()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Any]:
        if self.device.type != "cuda":
            yield None
            return
        stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            yield stream

    def _moved(self, batch: Batch) -> Batch:
        if self._decode is not None:
            batch = self._decode(batch, self.device)
        return {name: self._one(value) for name, value in batch.items()}

    def _one(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.device == self.device:
            return value
        if self.device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned():
            value = value.pin_memory()
        return value.to(self.device, non_blocking=True)

    def _arrived(self, batch: Batch, copied: Any) -> Batch:
        """Let the stream of the model wait for the copy, and the memory of the batch for that stream."""
        event = copied[0]
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(stream)
        return batch


@dataclass
class _Ahead:
    """What one thread has ready for another. The last item is (None, state, None), or what was raised."""

    depth: int
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.items: queue.Queue[Any] = queue.Queue(self.depth)

    def put(self, item: Any) -> bool:
        """Wait for room; False: nobody wants it any more."""
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.items.put(item, timeout=LOOK)
                return True
        return False
