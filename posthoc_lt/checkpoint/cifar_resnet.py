"""The CIFAR ResNets (20, 32, 44, 56, 110, …), known by their tensors alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")


@dataclass(frozen=True)
class Plan:
    """The shape of a CIFAR ResNet.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        stem: channels after the first convolution.
        stages: channels of each stage, most often (16, 32, 64); each but the first halves the image.
        blocks: residual blocks of each stage; 3, 5, 7, 9 or 18 in the paper.
        projected: the blocks with a convolution in their shortcut (option B), such as ``layer2.0``; others that
            change shape take every second pixel and pad with zero channels (option A).
        classes: C.
        bias: whether the last layer has one.
        head: its name, most often ``linear`` or ``fc``.
        cosine: the last layer normalises its weight, a column a class, and its input, as LDAM-DRW's `NormedLinear`.
    """

    in_channels: int
    stem: int
    stages: tuple[int, ...]
    blocks: tuple[int, ...]
    projected: frozenset[str]
    classes: int
    bias: bool = True
    head: str = "linear"
    cosine: bool = False

    @property
    def depth(self) -> int:
        """Layers that the paper counts: two a block, the first convolution and the last layer."""
        return 2 * sum(self.blocks) + 2


def plan(state: Mapping[str, Tensor]) -> Plan | None:
    """The plan that a state dict fits exactly, name for name and shape for shape, or None.

    >>> shape = Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset(), 10)
    >>> plan(CifarResNet(shape).state_dict()) == shape
    True
    """
    found = [(int(m[1]), int(m[2])) for m in map(_BLOCK.fullmatch, state) if m]
    stages = range(1, 1 + max((stage for stage, _ in found), default=0))
    blocks = tuple(sum(stage == wanted for stage, _ in found) for wanted in stages)
    head = next((name for name in ("linear", "fc", "classifier") if f"{name}.weight" in state), "linear")
    first, last = state.get("conv1.weight"), state.get(f"{head}.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 2 or not blocks or len(stages) > 8:
        return None
    if any((stage, block) not in found for stage in stages for block in range(blocks[stage - 1])) or 0 in blocks:
        return None
    width = state[f"layer{len(stages)}.0.conv1.weight"].shape[0]
    cosine = last.shape[0] == width != last.shape[1] and f"{head}.bias" not in state
    guess = Plan(
        in_channels=first.shape[1],
        stem=first.shape[0],
        stages=tuple(state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in stages),
        blocks=blocks,
        projected=frozenset(k.removesuffix(".shortcut.0.weight") for k in state if k.endswith(".shortcut.0.weight")),
        classes=last.shape[1 if cosine else 0],
        bias=f"{head}.bias" in state,
        head=head,
        cosine=cosine,
    )
    return guess if _fits(guess, state) else None


def _fits(guess: Plan, state: Mapping[str, Tensor]) -> bool:
    with torch.device("meta"):
        wanted = CifarResNet(guess).state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # absent before torch 0.4.1
    if not wanted.keys() - counters <= state.keys() <= wanted.keys():
        return False
    return all(tensor.shape == wanted[name].shape for name, tensor in state.items())


class CifarResNet(nn.Module):
    """The small ResNet of He et al. 2016 (1512.03385, §4.2), of any plan.

    >>> CifarResNet(Plan(1, 16, (16, 32), (1, 1), frozenset(), 5))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 5])
    """

    def __init__(self, shape: Plan) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape.in_channels, shape.stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(shape.stem)
        self.stages = len(shape.stages)
        before = shape.stem
        for stage, (channels, count) in enumerate(zip(shape.stages, shape.blocks, strict=True), start=1):
            layers = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(_Block(before, channels, stride, f"layer{stage}.{block}" in shape.projected))
                before = channels
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.head = shape.head
        last = _Cosine(before, shape.classes) if shape.cosine else nn.Linear(before, shape.classes, bias=shape.bias)
        self.add_module(shape.head, last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of images (N, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.get_submodule(self.head)(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


class _Cosine(nn.Module):
    """Cosines between features and a column a class; a scale that training put into the loss changes no prediction."""

    def __init__(self, before: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(before, classes).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class _Block(nn.Module):
    def __init__(self, before: int, channels: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.extra = stride, max(0, channels - before)
        self.shortcut = nn.Sequential()
        if projected:
            self.shortcut.append(nn.Conv2d(before, channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        if len(self.shortcut):
            projected: Tensor = self.shortcut(x)
            return projected
        half = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
