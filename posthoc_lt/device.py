"""Where arithmetic runs: a name such as ``auto``, resolved once to a torch device."""

from __future__ import annotations

import torch

from posthoc_lt.errors import PosthocError, show

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The torch device for `name`; ``auto`` takes CUDA where there is one, else the CPU.

    Raises:
        PosthocError: the name is unknown, or this machine has no such device.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PosthocError(
            f"device {show(name)!r}", "one of " + ", ".join(DEVICES), "drop --device to take the best there is"
        ) from None
    if not _present(device.type):
        raise PosthocError(
            f"device {show(name)!r}, which this machine (or this build of torch) does not have",
            "a device that is present",
            "drop --device, or give --device cpu",
        )
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # which another thread would not know
    return device


def _present(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu"
