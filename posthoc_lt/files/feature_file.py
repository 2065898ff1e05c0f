"""The feature file, schema 1: every split, the head and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import SPLITS, Features, FeatureSet
from posthoc_lt.files.container import FEATURES, Pieces
from posthoc_lt.files.shards import SHARD_BYTES, read_stored, writing
from posthoc_lt.head import Head

_VERSION = "1"
_REMAKE = "make it with: posthoc-lt extract --ckpt model.pt"
_OURS = frozenset({"format", "version", "classes", "has_bias", "checksums"})


def save_features(features: FeatureSet, path: Path, force: bool = False, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a feature file, whole or not at all; past `shard_bytes` as shards with an index.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    tensors = {}
    for name, split in features.splits().items():
        tensors[f"{name}.features"] = split.x
        if split.y is not None:
            tensors[f"{name}.labels"] = split.y
    with writing(Path(path), tensors | _few(features), _metadata(features), force, shard_bytes):
        pass


@contextmanager
def writing_features(
    bare: FeatureSet,
    splits: Mapping[str, Pieces],
    path: Path,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    inside: Path | None = None,
) -> Iterator[FeatureSet]:
    """Write a feature file of which no split is in memory; as read back it comes before it gets its name.

    Args:
        bare: all but the splits.
        splits: ``train.features``, ``train.labels`` and so on.
        path, force, shard_bytes: as `save_features`'.
        inside: the folder for temporary files, beside or below `path`.

    Raises:
        PosthocError: as `save_features` and `load_features`, or the parts do not fit together.
    """
    with writing(path, {**splits, **_few(bare)}, _metadata(bare), force, shard_bytes, inside) as (tensors, metadata):
        yield _feature_set(path, tensors, metadata)


def _few(features: FeatureSet) -> dict[str, Tensor]:
    """The tensors that are small."""
    head = features.head
    tensors = {"head.weight": head.weight}
    if head.has_bias or head.bias.any():  # a method gives a bias to the head of a layer that has none
        tensors["head.bias"] = head.bias
    if features.train_counts is not None:
        tensors["train.counts"] = features.train_counts
    return tensors


def _metadata(features: FeatureSet) -> dict[str, str]:
    return {
        **features.provenance,
        "format": FEATURES,
        "version": _VERSION,
        "classes": json.dumps(list(features.classes), ensure_ascii=False),
        "has_bias": "true" if features.head.has_bias else "false",
    }


def load_features(path: Path) -> FeatureSet:
    """Read a feature file, or the shards that stand for it; memory-mapped, every checksum verified first.

    Raises:
        PosthocError: no such file, not a feature file, cut short or changed, or holding NaN.
    """
    path = Path(path)
    return _feature_set(path, *read_stored(path, FEATURES, _VERSION, _REMAKE))


def _feature_set(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FeatureSet:
    if "head.weight" not in tensors:
        raise PosthocError(f"{show(path)}, which has no head.weight", "a feature file with its head", _REMAKE)
    features = FeatureSet(
        head=_head(tensors["head.weight"], tensors.get("head.bias"), metadata),
        **{name: _split(tensors, name) for name in SPLITS},
        classes=_classes(path, metadata),
        provenance={key: value for key, value in metadata.items() if key not in _OURS},
        train_counts=tensors.get("train.counts"),
    )
    for name, split in features.splits().items():
        _refuse_nonfinite(path, name, split)
    return features


def _head(weight: Tensor, bias: Tensor | None, metadata: Mapping[str, str]) -> Head:
    if bias is None:
        return Head.without_bias(weight)
    return Head(weight, bias, metadata.get("has_bias") != "false")


def _split(tensors: Mapping[str, Tensor], name: str) -> Features | None:
    x = tensors.get(f"{name}.features")
    return None if x is None else Features(x, tensors.get(f"{name}.labels"))


def _classes(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PosthocError(f"{show(path)}, whose class names are not a JSON list of strings", "the file", _REMAKE)
    return tuple(names)


def _refuse_nonfinite(path: Path, name: str, split: Features) -> None:
    bad = sum(int((~x.isfinite().all(dim=1)).sum()) for _, x in split.chunks(1, torch.float32))
    if bad:
        raise PosthocError(
            f"{show(path)}, whose {name} features hold NaN or infinity in {bad} of {len(split)} rows",
            "finite features",
            "extract again in float32, and check the images and the checkpoint for a diverged run",
        )
