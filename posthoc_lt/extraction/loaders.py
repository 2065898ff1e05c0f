"""Features of a network that is in memory, from its loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import capture, find_head
from posthoc_lt.device import resolve_device
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction.loop import Forward, collect, no_samples, together
from posthoc_lt.extraction.network import PROOF_BATCH
from posthoc_lt.features import FeatureSet
from posthoc_lt.progress import bar


def extract_loaders(
    model: nn.Module, train: Any, val: Any = None, test: Any = None, *, device: str | torch.device = "auto"
) -> FeatureSet:
    """Run a network that is in memory once over its loaders; the network is left as it was.

    Args:
        model: any network that ends in one `nn.Linear` and returns its output.
        train: a loader that yields (inputs, labels), every sample once, without random augmentation; or None.
        val: likewise.
        test: likewise.
        device: where the network runs meanwhile.

    Raises:
        PosthocError: no loader, batches of another form, no such last layer, or NaN features.
    """
    loaders = {"train": train, "val": val, "test": test}
    loaders = {name: loader for name, loader in loaders.items() if loader is not None}
    if not loaders:
        raise PosthocError("no loader", "a loader of (inputs, labels)", "give extract_loaders(model, train, val)")
    place = resolve_device(device)
    splits, drawn = {}, []
    with _borrowed(model, place):
        batches = {name: _pairs(name, loader) for name, loader in loaders.items()}
        first = next(iter(batches))
        inputs, batches[first] = _peek(first, batches[first])
        located = find_head(model, inputs.to(place))
        with capture(model, located.name) as run:
            forward = Forward(run, place)
            for name, pairs in batches.items():
                total = length_hint(getattr(loaders[name], "dataset", ())) or None
                with bar(name, total, "samples") as shown:
                    splits[name] = collect(name, pairs, forward, shown.update)
                if total not in (None, len(splits[name])) and getattr(loaders[name], "batch_sampler", None) is not None:
                    drawn.append(f"{name}: {len(splits[name])} of {total}")
    provenance = {"source": "memory", "head_name": located.name, "precision": forward.precision}
    provenance |= {"drawn": ", ".join(drawn)} if drawn else {}
    return together(located.head, splits, _class_names(loaders, located.head.classes), provenance)


@contextmanager
def _borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode on `device`; afterwards in the mode and on the device it came with."""
    modes = [(module, module.training) for module in model.modules()]
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    move = places != {device} and len(places) == 1  # a model spread over devices stays where it is
    try:
        model.eval()
        if move:
            model.to(device)
        yield
    finally:
        if move:
            model.to(next(iter(places)))
        for module, mode in modes:
            module.training = mode


def _pairs(name: str, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[0], Tensor):
            raise PosthocError(
                f"{name} batches of type {type(batch).__name__}",
                "pairs (inputs, labels) of tensors",
                "wrap the loader in one that yields (inputs, labels)",
            )
        yield batch[0], torch.as_tensor(batch[1])


def _peek(name: str, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """A few inputs of the first batch, and all batches still, since a loader may be readable only once."""
    first = next(batches, None)
    if first is None:
        raise no_samples(name)
    return first[0][:PROOF_BATCH], chain([first], batches)


def _class_names(loaders: Mapping[str, Any], count: int) -> tuple[str, ...]:
    for loader in loaders.values():
        names = getattr(getattr(loader, "dataset", None), "classes", ())
        if isinstance(names, list | tuple) and len(names) == count:
            return tuple(str(name) for name in names)
    return ()
