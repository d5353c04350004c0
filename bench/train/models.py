"""The models: a small CNN for 28x28, ResNet-18 and -50, and `tiny`, which costs next to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

LAYERS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def build(name: str, classes: int, channels: int) -> nn.Module:
    """Return a model that takes float images [B, channels, H, W] and returns logits [B, classes].

    `name`: tiny, cnn, resnet18 or resnet50; a ResNet is torchvision's where that is installed. Raises ValueError.
    """
    if name == "tiny":
        return tiny(classes, channels)
    if name == "cnn":
        return cnn(classes, channels)
    if name not in LAYERS:
        raise ValueError(f"model {name!r} is none of tiny, cnn, {', '.join(LAYERS)}")
    if find_spec("torchvision") is None:
        return ResNet(name, classes, channels)
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(num_classes=classes)
    if channels != 3:
        model.conv1 = _stem(channels)
    return model


def tiny(classes: int, channels: int) -> nn.Module:
    """16 mean values of each channel, and a matrix: what a loader is measured with."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, classes))


def cnn(classes: int, channels: int) -> nn.Module:
    """Three convolutions for images of about 28x28."""

    def block(inside: int, outside: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(channels, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, classes),
    )  # fmt: skip


class Block(nn.Module):
    """The residual of ResNet: two convolutions of 3x3, or, with expansion 4, 1x1, 3x3 (with the stride) and 1x1."""

    def __init__(self, inside: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outside = width * expansion
        shapes: Sequence[tuple[int, int, int, int]]
        if expansion == 1:
            shapes = [(inside, width, 3, stride), (width, width, 3, 1)]
        else:
            shapes = [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
        self.depth = len(shapes)
        for i, (a, b, size, step) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, size, step, padding=size // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = self.relu(y) if i < self.depth else y
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet v1.5 with the names and shapes of torchvision's, so that either loads the other's weights."""

    def __init__(self, name: str, classes: int, channels: int = 3) -> None:
        super().__init__()
        expansion = 1 if name == "resnet18" else 4
        self.conv1, self.bn1 = _stem(channels), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        inside = 64
        for number, (width, count) in enumerate(zip((64, 128, 256, 512), LAYERS[name], strict=True), 1):
            blocks = []
            for i in range(count):
                blocks.append(Block(inside, width, 2 if number > 1 and i == 0 else 1, expansion))
                inside = width * expansion
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Any) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stem(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
