"""Data of a person's own code for `test_torchrun_extract`: at one image the second process meets what it is told to."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.extraction import passes

passes.PART_SECONDS = 0.0  # a part a batch, so that there is something to lose and to find
AT = {"interrupted": 40, "killed": 40, "full": 40, "torn": 50}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Trap:
    """Sixty images of 2 by 2; each of `AT` is in the second half, and none of the 8 that the head is proved on."""

    def __init__(self, split: str) -> None:
        self.x = torch.randn(60, 1, 2, 2, generator=torch.Generator().manual_seed(len(split)))
        self.targets = [index % 3 for index in range(60)]
        self.split = split

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        trap = os.environ.get("TRAP", "")
        if index == AT.get(trap) and self.split == "train" and os.environ.get("RANK") == "1":
            _spring(trap)
        return self.x[index], self.targets[index]


def _spring(trap: str) -> None:
    if trap == "torn":
        raise ValueError("torn")
    if trap == "interrupted":
        raise KeyboardInterrupt
    if trap == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if trap == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def splits(split: str) -> Any:
    return Trap(split) if split != "test" else None
