"""Samples of bytes -> pictures of one size, the same for every loader; uint8, to be normalised on the device.

Augmentation is a function of (seed, epoch, key) and of nothing else: not of the loader, the worker or the order. So
two loaders give a model the same pixels, and a resumed epoch those that it would have seen.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

DECODERS = ("pillow", "simplejpeg", "nvjpeg", "raw")
AREA = (0.08, 1.0)  # of a random crop, as shares of the picture: torchvision's
RATIO = (3 / 4, 4 / 3)
TRIES = 10
MARGIN = 8 / 7  # the shorter side before the centre crop, over the size: 256 for 224
MODES = {1: "L", 3: "RGB"}
JPEG = b"\xff\xd8"

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the whole picture


class Draws:
    """Numbers from 0 to below 1 that a seed, an epoch and a key determine."""

    def __init__(self, seed: int, epoch: int, key: str) -> None:
        self._text = f"{seed} {epoch} {key}".encode("utf-8", "surrogateescape")
        self._block = 0
        self._left: Iterator[int] = iter(())

    def __call__(self) -> float:
        for word in self._left:
            return float(word / 2.0**64)
        salt = self._block.to_bytes(8, "little")
        self._left = iter(struct.unpack("<8Q", hashlib.blake2b(self._text, salt=salt).digest()))
        self._block += 1
        return self()


def random_crop(width: int, height: int, draws: Callable[[], float]) -> Box:
    """Return the box of torchvision's RandomResizedCrop: 8 to 100% of the area, sides of 3:4 to 4:3."""
    low, high = map(math.log, RATIO)
    for _ in range(TRIES):
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * draws())
        ratio = math.exp(low + (high - low) * draws())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws() * (width - w + 1)), int(draws() * (height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])  # the largest in the middle
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_crop(width: int, height: int, margin: float = MARGIN) -> Box:
    """Return the square in the middle that a resize of the shorter side to margin * size and a crop to size keep."""
    side = min(width, height) / margin
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


@dataclass
class Prepare:
    """What a worker makes of a sample: {"image": uint8 [C, H, W], "label": int, "key": str}.

    `decoder`: "pillow", "simplejpeg" (other pictures than JPEGs go to Pillow), "raw" (the field is a .npy of uint8
    [C, H, W], and comes as it is), or "nvjpeg": the field's bytes and `box`, for decode_on() in the main process.
    `size`: pixels of a side. `augment`: random crop and flip, by seed, epoch and key; otherwise the middle.
    A picture that is `size` x `size` already, and not augmented, is not resampled. wdstools.loader tells the epoch.

    Raises KeyError for a sample without a field, ValueError for what is no picture or no array of that shape.
    """

    decoder: str = "pillow"
    image: str = "jpg"
    label: str = "cls"
    size: int = 224
    channels: int = 3
    augment: bool = False
    seed: int = 0
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder is none of {', '.join(DECODERS)}: {self.decoder!r}")
        if self.channels not in MODES:
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")

    def set_epoch(self, epoch: int) -> None:
        """Let the samples that follow be those of an epoch."""
        self.epoch = epoch

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        key, data = sample["__key__"], self._field(sample, "image", self.image)
        found = {"label": int(bytes(self._field(sample, "label", self.label))), "key": key}
        if self.decoder == "raw":
            return {"image": self._raw(data), **found}
        if self.decoder == "nvjpeg":
            with Image.open(io.BytesIO(data)) as picture:
                box, flip = self._box(*picture.size, key)
            return {"image": torch.frombuffer(bytearray(data), dtype=torch.uint8), "box": (*box, float(flip)), **found}
        if self.decoder == "simplejpeg" and bytes(data[:2]) == JPEG:
            return {"image": self._simplejpeg(data, key), **found}
        return {"image": self._pillow(data, key), **found}

    def _raw(self, data: Any) -> np.ndarray[Any, Any]:
        array = npy(data)
        if array.dtype != np.uint8 or array.shape != (self.channels, self.size, self.size):
            told = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"an array of {told}, where uint8 {[self.channels, self.size, self.size]} belongs")
        return array

    def _field(self, sample: dict[str, Any], setting: str, name: str) -> Any:
        if name in sample:
            return sample[name]
        there = ", ".join(field for field in sample if not field.startswith("__"))
        raise ValueError(f"no field {name!r} in sample {sample['__key__']!r}, which has {there}: set data.{setting}")

    def _box(self, width: int, height: int, key: str) -> tuple[Box, bool]:
        if self.augment:
            draws = Draws(self.seed, self.epoch, key)
            return random_crop(width, height, draws), draws() < 0.5
        if width == height == self.size:
            return (0, 0, width, height), False
        return centre_crop(width, height, MARGIN if self.size >= 64 else 1), False

    def _pillow(self, data: Any, key: str) -> np.ndarray[Any, Any]:
        mode = MODES[self.channels]
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            box, flip = self._box(width, height, key)
            scale = self._scale(box)
            if scale < 1:  # of JPEGs, by powers of two
                opened.draft(mode, (math.ceil(width * scale), math.ceil(height * scale)))
            decoded = np.array(opened if opened.mode == mode else opened.convert(mode))  # writable, for torch
        return self._fit(decoded.reshape(*decoded.shape[:2], self.channels), box, (width, height), flip)

    def _simplejpeg(self, data: Any, key: str) -> np.ndarray[Any, Any]:
        import simplejpeg

        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB", "Gray"):
            return self._pillow(data, key)
        box, flip = self._box(width, height, key)
        scale = min(1.0, self._scale(box))
        least = {"min_height": math.ceil(height * scale), "min_width": math.ceil(width * scale)}
        # scales from 7/8 to 5/8 take longer than the whole
        decoded = simplejpeg.decode_jpeg(data, "GRAY" if self.channels == 1 else "RGB", min_factor=2, **least)
        return self._fit(decoded, box, (width, height), flip)

    def _scale(self, box: Box) -> float:
        """The smallest scale of the picture at which the box has all the pixels that are asked for."""
        return max(self.size / (box[2] - box[0]), self.size / (box[3] - box[1]))

    def _fit(self, decoded: np.ndarray[Any, Any], box: Box, whole: tuple[int, int], flip: bool) -> np.ndarray[Any, Any]:
        """Crop and resize [H, W, C] to [C, H, W]; torch does so three times as fast as Pillow, to whole pixels."""
        x, y = decoded.shape[1] / whole[0], decoded.shape[0] / whole[1]
        left, top = round(box[0] * x), round(box[1] * y)
        right, bottom = max(round(box[2] * x), left + 1), max(round(box[3] * y), top + 1)
        part = decoded[top:bottom, left:right]
        if part.shape[:2] == (self.size, self.size):
            return (part[:, ::-1] if flip else part).transpose(2, 0, 1)
        image = torch.from_numpy(part).permute(2, 0, 1)[None]
        image = torch.nn.functional.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)[0]
        fitted: np.ndarray[Any, Any] = (image.flip(2) if flip else image).numpy()
        return fitted


def npy(data: Any) -> np.ndarray[Any, Any]:
    """Return the array of a .npy, as a view of its bytes. Raises ValueError."""
    length = 10 + int.from_bytes(data[8:10], "little")
    if bytes(data[:8]) != b"\x93NUMPY\x01\x00":  # an array without names of fields is of version 1.0
        raise ValueError("no .npy of version 1.0")
    shape, fortran, dtype = _header(bytes(data[:length]))
    array = np.frombuffer(data, dtype, math.prod(shape), length)
    return array.reshape(shape, order="F" if fortran else "C")


@functools.lru_cache(256)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, Any]:
    """Parsing it takes longer than all else of a small array, and most arrays have one that came before."""
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of objects would have to be unpickled")
    return shape, fortran, dtype


def collate(samples: list[dict[str, Any]], shared: bool = False) -> dict[str, Any]:
    """Make a batch of what Prepare returned: image uint8 [B, C, H, W], label int64 [B], key list[str].

    The layout is that of the first sample: torch's channels_last, where pictures came out of the decoder as they are.
    What is not decoded yet is a list of uint8 tensors, with `box` [B, 5]. `shared`: images are put into shared memory
    at once, as torch's default_collate does in a worker, for loaders that send them as torch does.
    """
    batch: dict[str, Any] = {"key": [sample["key"] for sample in samples]}
    batch["label"] = torch.tensor([sample["label"] for sample in samples])
    images = [sample["image"] for sample in samples]
    if "box" in samples[0]:
        return {"image": images, "box": torch.tensor([sample["box"] for sample in samples]), **batch}
    rows = [image.transpose(1, 2, 0) for image in images]
    if rows[0].flags.c_contiguous:
        return {"image": stacked(rows, shared).permute(0, 3, 1, 2), **batch}
    return {"image": stacked(images, shared), **batch}


collate_shared = functools.partial(collate, shared=True)


def stacked(images: list[np.ndarray[Any, Any]], shared: bool) -> torch.Tensor:
    """Return uint8 images of one shape as a tensor."""
    shape = (len(images), *images[0].shape)
    if shared and get_worker_info() is not None:
        storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")  # type: ignore[no-untyped-call]
        batch = torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[call-overload]
    else:
        batch = torch.empty(shape, dtype=torch.uint8)
    np.stack(images, out=batch.numpy())
    return batch


def decode_on(batch: dict[str, Any], device: torch.device, size: int, channels: int) -> dict[str, Any]:
    """Decode the JPEGs of a batch on a GPU (nvJPEG), crop and flip them as `box` says: image uint8 [B, C, H, W].

    Differs from the other decoders by rounding: boxes are whole pixels, and the picture is not scaled when decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    boxes = batch["box"].tolist()
    pictures = []
    for picture, box in zip(decode_jpeg(batch["image"], mode, device=device), boxes, strict=True):
        left, top, right, bottom = (round(value) for value in box[:4])
        part = picture[None, :, top : max(bottom, top + 1), left : max(right, left + 1)].float()
        pictures.append(torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)[0])
    images = torch.stack(pictures).round_().clamp_(0, 255).to(torch.uint8)
    flips = batch["box"][:, 4].to(device).bool().view(-1, 1, 1, 1)
    found = {name: value for name, value in batch.items() if name != "box"}
    return {**found, "image": torch.where(flips, images.flip(3), images)}
