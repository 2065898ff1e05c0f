"""Every form that features come in, made one: a path, a set, a network with loaders, or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_lt.device import resolve_device
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.extraction import extract_loaders
from posthoc_lt.features import SPLITS, Features, FeatureSet
from posthoc_lt.files import load_features
from posthoc_lt.head import Head, as_tensor

Source: TypeAlias = "str | os.PathLike[str] | FeatureSet | nn.Module | Head | tuple[Any, ...] | Any"


def as_features(
    source: Source, train: Any = None, val: Any = None, test: Any = None, *, device: str | torch.device = "auto"
) -> FeatureSet:
    """One `FeatureSet` from any of the forms that `rebalance` takes.

    Args:
        source: the path of a feature file; a FeatureSet; an ``nn.Module``, with loaders of (inputs,
            labels) as the splits; or a head, as `Head`, weight array (C, D) or (weight, bias), with
            splits (x, y) of shapes (N, D) and (N,). The last two may come with their splits as one tuple.
        train: the train split; for a head also class counts (C,) alone.
        val: the validation split.
        test: the test split; its y may be None.
        device: where arithmetic runs.

    Raises:
        PosthocError: the form is none of these, the parts do not fit together, or splits share their samples.
    """
    given = {"train": train, "val": val, "test": test}
    if isinstance(source, tuple) and _is_bundle(source):
        source, given = source[0], _merged(source[1:], given)
    place = resolve_device(device)
    if isinstance(source, str | os.PathLike | FeatureSet):
        if extra := [name for name, value in given.items() if value is not None]:
            raise PosthocError(
                f"{listed(extra)} beside features that hold their own splits",
                "one or the other",
                "drop the extra arguments, or give the head with its splits",
            )
        features = source if isinstance(source, FeatureSet) else load_features(Path(source))
    elif isinstance(source, nn.Module):
        features = _from_loaders(source, given, device)
    else:
        features = _from_arrays(as_head(source), given)
    # Fits and searches decide in float64, which Apple's GPUs do not have.
    features = features.to(torch.device("cpu") if place.type == "mps" else place)
    features.require_apart()
    return features


def _is_bundle(source: tuple[Any, ...]) -> bool:
    """Whether a tuple is a network or a head with its splits, rather than (weight, bias)."""
    return len(source) > 2 or (len(source) > 0 and isinstance(source[0], nn.Module | Head | tuple))


def _merged(bundled: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    inside = dict(zip(SPLITS, bundled, strict=False))
    if len(bundled) > len(SPLITS) or any(given[name] is not None for name in inside):
        raise PosthocError(
            f"a tuple of {len(bundled) + 1} and a split that it holds already",
            "(source, train, val, test), each once",
            "call rebalance(source, train, val, test=test)",
        )
    return {**given, **inside}


def _from_loaders(model: nn.Module, given: dict[str, Any], device: str | torch.device) -> FeatureSet:
    for name, loader in given.items():
        if (loader is None and name != "test") or not (loader is None or _is_loader(loader)):
            raise PosthocError(
                f"a network with {name} of type {type(loader).__name__}",
                "a train and a validation loader that yield (inputs, labels)",
                "call rebalance(model, train_loader, val_loader)",
            )
    return extract_loaders(model, *given.values(), device=device)


def _from_arrays(head: Head, given: dict[str, Any]) -> FeatureSet:
    train, counts = given["train"], None
    if train is not None and not _is_pair(train):
        counts, train = as_tensor(train, "train counts"), None
    train, val, test = (
        _as_split(pair, name) for name, pair in (("train", train), ("val", given["val"]), ("test", given["test"]))
    )
    return FeatureSet(head, train, val, test, provenance={"source": "arrays"}, train_counts=counts)


def as_head(source: Any) -> Head:
    """A head from itself, its weight (C, D), or (weight, bias)."""
    if isinstance(source, Head):
        return source
    if _is_pair(source):
        return Head(source[0], source[1])
    return Head.without_bias(as_tensor(source, "a head's weight"))


def _as_split(pair: Any, name: str) -> Features | None:
    if pair is None:
        return None
    if not _is_pair(pair):
        raise PosthocError(
            f"{name} of type {type(pair).__name__}", "a pair (features (N, D), labels (N,))", f"give {name}=(x, y)"
        )
    return Features(pair[0], pair[1])


def _is_pair(value: Any) -> bool:
    """Whether this is (a matrix, something), rather than a matrix or a row of counts."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    first = value[0]
    return (first.ndim if isinstance(first, Tensor) else np.ndim(first)) == 2


def _is_loader(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, Tensor | str)
