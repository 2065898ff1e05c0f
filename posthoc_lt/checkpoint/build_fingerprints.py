"""Build the index of known networks: ``python -m posthoc_lt.checkpoint.build_fingerprints`` (a few minutes).

Every name of timm's and torchvision's registries of image classifiers is built without memory for its weights, its
tensors hashed (see `fingerprint`), and, where several have the same tensors, its operations on an image listed to
tell which of them compute the same. Run it again where the libraries' versions change; it needs both of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from posthoc_lt.checkpoint.fingerprint import INDEX, fingerprint
from posthoc_lt.checkpoint.zoo import library, without_weights

CLASSES = 7919
"""A number of classes that is the size of nothing else, so that it marks the head."""

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "t", "detach", "alias", "clone", "contiguous", "lift_fresh")


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as torch has it
    """The operations that run within, with their settings and the parameters that they use, but for mere views."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        named = [*network.named_parameters(), *network.named_buffers()]
        self.names = {id(tensor): name for name, tensor in named}
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name not in _VIEWS:
            # Whether a mean keeps its dimensions is a matter of views.
            settings = args[:2] if name == "mean" else (*args, *sorted((kwargs or {}).items()))
            self.seen.append(f"{name}({', '.join(self._told(value) for value in settings)})")
        return func(*args, **(kwargs or {}))

    def _told(self, value: object) -> str:
        if isinstance(value, Tensor):
            return self.names.get(id(value), "x")
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._told, value))}]"
        return str(value) if isinstance(value, int | float | str | None) else type(value).__name__


def registry() -> Iterator[str]:
    """Every name of both libraries' image classifiers."""
    models = library("torchvision").models
    yield from (f"torchvision:{name}" for name in models.list_models(module=models))
    yield from (f"timm:{name}" for name in library("timm").list_models())


def skeleton(name: str, classes: int = CLASSES) -> nn.Module:
    """The network without memory for its weights."""
    kind, _, model = name.partition(":")
    models: Any = library(kind) if kind == "timm" else library(kind).models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "timm":
            return without_weights(lambda: models.create_model(model, pretrained=False, num_classes=classes))
        return without_weights(lambda: models.get_model(model, weights=None, num_classes=classes))


def entry(network: nn.Module) -> tuple[int, list[str]]:
    """A network's fingerprint without its head, and its head's module names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    head = [name for name, shape in shapes.items() if shape[:1] == (CLASSES,)]
    body = {name: shape for name, shape in shapes.items() if name not in head}
    return fingerprint(body), sorted({name.rpartition(".")[0] for name in head})


def image_size(network: nn.Module) -> int:
    """The side of the images that the network is made for."""
    config = getattr(network, "default_cfg", None) or {}
    return int(config.get("input_size", (3, 224, 224))[-1])


def operations(name: str, size: int) -> str:
    """A digest of what the network does to an image; equal for networks that compute the same."""
    network = skeleton(name).eval()
    try:
        with torch.no_grad(), torch.device("meta"), Operations(network) as run:
            network(torch.empty(1, 3, size, size))
    except Exception as error:  # a network that looks at values cannot run without any
        print(f"{name}: {type(error).__name__}", file=sys.stderr)
        return name
    return blake2b("\n".join(run.seen).encode()).hexdigest()


def functions(names: list[str]) -> list[int]:
    """A number for each of the names, equal where they compute the same."""
    if len(names) == 1:
        return [0]
    sizes = [image_size(skeleton(name)) for name in names]
    digests = [operations(name, min(sizes)) for name in names]
    order = list(dict.fromkeys(digests))
    return [order.index(digest) for digest in digests]


def build() -> dict[str, object]:
    """The whole index."""
    groups: dict[int, list[tuple[str, list[str]]]] = defaultdict(list)
    for name in registry():
        try:
            key, heads = entry(skeleton(name))
        except Exception as error:  # whatever a registry's name may need
            print(f"{name}: {type(error).__name__}: {str(error)[:80]}", file=sys.stderr)
            continue
        groups[key].append((name, heads))
    networks = {}
    for key, members in groups.items():
        numbers = functions([name for name, _ in members])
        networks[f"{key:016x}"] = [
            [name, heads, number] for (name, heads), number in zip(members, numbers, strict=True)
        ]
    versions = {kind: str(library(kind).__version__).partition("+")[0] for kind in ("timm", "torchvision")}
    return {"versions": versions, "networks": dict(sorted(networks.items()))}


def main() -> None:
    """Write the index."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(INDEX))
    arguments = parser.parse_args()
    text = json.dumps(build(), separators=(",", ":")).encode()
    arguments.out.write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
