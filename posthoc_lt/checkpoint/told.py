"""What a file says of its own architecture: to tell apart networks of equal tensors, and never more than a word."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence

from posthoc_lt.checkpoint.read import Checkpoint

_NAMED = ("arch", "architecture", "model_name", "model", "model_arch", "backbone", "net", "network")
_OPTIONS = ("args", "opt", "hyper_parameters", "hparams", "config", "cfg", "pretrained_cfg")
"""Where training code, timm's and torchvision's among it, keeps the name of the network that it builds."""

_PUBLISHED = re.compile(r"(.+)-([0-9a-f]{8})")


def told(checkpoint: Checkpoint, groups: Sequence[Sequence[str]]) -> tuple[int, str] | None:
    """The one of several groups of networks that a file's entries name, and which entry does; None where none does.

    A published file is as good as an entry: timm and torchvision put the beginning of its sha256 into its name.

    Args:
        checkpoint: as read.
        groups: names such as ``timm:resnet50``, those together that compute the same.
    """
    words = [*_entries(checkpoint.metadata, ""), *_published(checkpoint, groups)]
    found: dict[int, str] = {}
    for word, entry in words:
        for index, names in enumerate(groups):
            if any(word in (name, name.partition(":")[2]) for name in names):
                found.setdefault(index, entry)
    return found.popitem() if len(found) == 1 else None


def hint(checkpoint: Checkpoint, groups: Sequence[Sequence[str]]) -> str | None:
    """The network that a file's name begins with, the longest such: any file can be called so.

    Args:
        checkpoint: as read.
        groups: as `told` takes them.
    """
    return _named(checkpoint.path.stem, groups)


def _entries(said: Mapping[str, object], inside: str) -> Iterator[tuple[str, str]]:
    for key in _NAMED:
        if isinstance(value := said.get(key), str):
            # Hugging Face's timm/resnet50.a1_in1k is resnet50, trained as a1_in1k tells.
            yield value.removeprefix("timm/").partition(".")[0], f"{inside}{key}"
    for key in _OPTIONS if not inside else ():
        value = said.get(key)
        options = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(options, Mapping):
            yield from _entries(options, f"{key}.")


def _published(checkpoint: Checkpoint, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, str]]:
    parts = _PUBLISHED.fullmatch(checkpoint.path.stem)
    name = None if parts is None or not checkpoint.sha256.startswith(parts[2]) else _named(parts[1], groups)
    if name is not None:
        yield name, "the published name, with the file's own checksum in it,"


def _named(stem: str, groups: Sequence[Sequence[str]]) -> str | None:
    every = [name for names in groups for name in names]
    fitting = [name for name in every if re.match(re.escape(name.partition(":")[2]) + r"(?![A-Za-z0-9])", stem)]
    return max(fitting, key=len, default=None)
