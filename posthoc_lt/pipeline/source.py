"""Every form that features come in, made one: a path, a set, a network with loaders, or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from posthoc_lt.device import resolve_device
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.extraction import extract_loaders
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.files import load_features
from posthoc_lt.head import Head

Source: TypeAlias = "str | os.PathLike[str] | FeatureSet | nn.Module | Head | tuple[Any, ...] | Any"


def as_features(
    source: Source, train: Any = None, val: Any = None, test: Any = None, *, device: str | torch.device = "auto"
) -> FeatureSet:
    """One `FeatureSet` from any of the forms that `rebalance` takes.

    Args:
        source: the path of a feature file; a FeatureSet; an ``nn.Module``, with loaders of (inputs,
            labels) as the splits; or a head, as `Head`, weight array (C, D) or (weight, bias), with
            splits (x, y) of shapes (N, D) and (N,).
        train: the train split; for a head also class counts (C,) alone.
        val: the validation split.
        test: the test split.
        device: where arithmetic runs.

    Raises:
        PosthocError: the form is none of these, or the parts do not fit together.
    """
    if isinstance(source, tuple) and train is None:
        return as_features(*source, device=device)
    place = resolve_device(device)
    if isinstance(source, nn.Module):
        if not (_is_loader(train) and _is_loader(val)):
            raise PosthocError(
                "a network without a train and a validation loader",
                "loaders that yield (inputs, labels)",
                "call rebalance(model, train_loader, val_loader)",
            )
        features = extract_loaders(source, train, val, test, device=device)
    elif isinstance(source, str | os.PathLike):
        features = load_features(Path(source))
    elif isinstance(source, FeatureSet):
        features = source
    else:
        features = _from_arrays(_as_head(source), train, val, test)
    # Fits and searches decide in float64, which Apple's GPUs do not have.
    return features.to(torch.device("cpu") if place.type == "mps" else place)


def _from_arrays(head: Head, train: Any, val: Any, test: Any) -> FeatureSet:
    counts = None
    if train is not None and not _is_pair(train):
        train, counts = None, _tensor(train, "train counts")
    return FeatureSet(
        head=head,
        train=_as_split(train, "train"),
        val=_as_split(val, "val"),
        test=_as_split(test, "test"),
        provenance={"source": "arrays"},
        train_counts=counts,
    )


def _as_head(source: Any) -> Head:
    if isinstance(source, Head):
        return source
    if _is_pair(source):
        return Head(_tensor(source[0], "the head's weight"), _tensor(source[1], "the head's bias"))
    return Head.without_bias(_tensor(source, "the head's weight"))


def _as_split(pair: Any, name: str) -> Features | None:
    if pair is None:
        return None
    if not _is_pair(pair):
        raise PosthocError(
            f"{name} of type {type(pair).__name__}", "a pair (features (N, D), labels (N,))", f"give {name}=(x, y)"
        )
    return Features(_tensor(pair[0], f"{name} features"), _tensor(pair[1], f"{name} labels"))


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise PosthocError(
            f"{what} of type {show(type(value).__name__)}",
            "a numpy array or a tensor of numbers",
            "call rebalance('feats.safetensors'), or rebalance((weight, bias), (x, y), (x_val, y_val))",
        ) from None


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_loader(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, Tensor | str)
