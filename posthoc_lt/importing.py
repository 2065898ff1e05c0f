"""Features that already exist, made a feature set; and a feature set made plain arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posthoc_lt.checkpoint.formats import INDEX, recognise
from posthoc_lt.data import printable
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import SPLITS, Features, FeatureSet
from posthoc_lt.files.arrays import Array, read_arrays, write_npz
from posthoc_lt.fitting import fit_head, fitted_head_note
from posthoc_lt.head import Head, as_tensor


def import_features(
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    *,
    head: str | None = None,
    l2: float | None = None,
    counts: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> FeatureSet:
    """A feature set from files of arrays, which stay on disk where their format allows.

    Args:
        train, val, test: a file that holds features (N, D) of floats and labels (N,), told by their shapes, or by
            the names ``train.features train.labels`` and so on where it holds several splits; or two files,
            ``x.npy,y.npy``; or the ``.index.json`` of shards. Features alone are an unlabelled split.
        head: a file that holds the network's last layer, weight (C, D) and perhaps bias (C,); or two files.
        l2: for want of a head, fit one: multinomial logistic regression on train, `l2` its penalty in units of
            the feature variance (0.01 is usual). Large l2: nearly the class frequencies alone.
        counts: train samples a class, where there are no train labels.
        classes: C names.

    Raises:
        PosthocError: a file that cannot be read, arrays of other shapes, NaN, labels that are no class indices,
            neither a head nor `l2`, or both.
    """
    given = {name: what for name, what in zip(SPLITS, (train, val, test), strict=True) if what is not None}
    if not given:
        raise PosthocError("no features", "the file of a split", "give --train, --val or --test")
    splits = {name: _split(name, what) for name, what in given.items()}
    provenance = {"source": "import", **{f"imported_{name}": printable(what) for name, what in given.items()}}
    if (head is None) == (l2 is None):
        raise PosthocError(
            "features without a head" if head is None else "a head to read and a head to fit",
            "the network's last layer, which every method starts from, or one fitted on train; not both",
            "give --head with its weight and bias, or --fit-head",
        )
    if head is not None:
        used = _head(head, next(iter(splits.values())).dimensions)
        provenance["imported_head"] = printable(head)
        classes = classes or _names(head, used.classes)
    else:
        assert l2 is not None
        used = fit_head(splits.get("train"), l2)
        provenance["fitted_head"] = fitted_head_note(l2)
    whole = {name: splits.get(name) for name in SPLITS}
    return FeatureSet(
        used,
        **whole,
        classes=tuple(classes),
        provenance=provenance,
        train_counts=None if counts is None else torch.tensor(counts),
    )


def dump_features(features: FeatureSet, path: Path, force: bool = False) -> None:
    """Write a feature set as plain arrays, which `import_features` takes back.

    ``train.features train.labels val.* test.* head.weight head.bias classes`` and ``train.counts`` in an .npz file
    that ``numpy.load`` reads without pickle.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    arrays: dict[str, Array] = {}
    for name, split in features.splits().items():
        arrays[f"{name}.features"] = split.x
        if split.y is not None:
            arrays[f"{name}.labels"] = split.y
    if features.train_counts is not None:
        arrays["train.counts"] = features.train_counts
    arrays["head.weight"] = features.head.weight
    if features.head.has_bias or bool(features.head.bias.any()):
        arrays["head.bias"] = features.head.bias
    arrays["classes"] = np.array(features.classes)
    write_npz(path, arrays, force)


def _split(name: str, what: str) -> Features:
    arrays = _read(what)
    if mine := {key: array for key, array in arrays.items() if name in key.lower().replace("_", ".").split(".")}:
        arrays = mine
    matrices = {key: array for key, array in arrays.items() if array.ndim == 2}
    rows = {key: array for key, array in arrays.items() if array.ndim == 1}
    if len(matrices) == 1:
        samples = len(next(iter(matrices.values())))
        numbers = [key for key, array in rows.items() if not _is_text(array)]
        rows = {key: array for key, array in rows.items() if len(array) == samples or [key] == numbers}
    if len(matrices) != 1 or len(rows) > 1:
        raise PosthocError(
            f"--{name} {show(what)} with {_shapes(arrays)}",
            "one matrix of features (N, D) and at most one row of labels (N,)",
            f"name them {name}.features and {name}.labels, or give two files: --{name} x.npy,y.npy",
        )
    x = _narrow(as_tensor(next(iter(matrices.values())), f"{name} features"))
    y = None if not rows else _labels(name, as_tensor(next(iter(rows.values())), f"{name} labels"))
    found = Features(x, y)
    _refuse_nonfinite(name, what, found)
    return found


def _head(what: str, dimensions: int) -> Head:
    arrays = {key: array for key, array in _read(what).items() if array.ndim in (1, 2) and not _is_text(array)}
    weights = {key: array for key, array in arrays.items() if array.ndim == 2 and array.shape[1] == dimensions}
    weights = {key: w for key, w in weights.items() if key.endswith("head.weight")} or weights
    if len(weights) != 1:
        raise PosthocError(
            f"--head {show(what)} with {_shapes(arrays)}",
            f"one weight (classes, {dimensions}), as these features have {dimensions} dimensions, and perhaps its bias",
            "give a file of these two arrays alone, or two files: --head weight.npy,bias.npy",
        )
    ((key, weight),) = weights.items()
    named = arrays.get(key.removesuffix("weight") + "bias") if key.endswith("weight") else None
    others = [array for array in arrays.values() if array.shape == weight.shape[:1]]
    bias = named if named is not None else others[0] if len(others) == 1 else None
    if bias is None and len(others) > 1:
        raise PosthocError(f"--head {show(what)} with {_shapes(arrays)}", "one bias", "give --head weight.npy,bias.npy")
    return Head.without_bias(weight) if bias is None else Head(weight, bias)


def _names(what: str, classes: int) -> Sequence[str]:
    """The class names beside a head, where its file holds them."""
    texts = [array for array in _read(what).values() if _is_text(array) and array.shape == (classes,)]
    return [str(name) for name in texts[0]] if len(texts) == 1 else ()


def _read(what: str) -> Mapping[str, Array]:
    """The arrays of one file, or of several joined by commas under their own names."""
    paths = [what] if Path(what).exists() else what.split(",")
    found: dict[str, Array] = {}
    for path in paths:
        stem = f"{Path(path).stem}." if len(paths) > 1 else ""
        arrays = _of_shards(Path(path)) if path.endswith(INDEX) else read_arrays(path)
        found |= {(stem + key).removesuffix("."): array for key, array in arrays.items()}
    return found


def _of_shards(index: Path) -> Mapping[str, Array]:
    content = recognise(index).load(index).content
    assert isinstance(content, Mapping)
    return content


def _narrow(x: Tensor) -> Tensor:
    """float64 as float32, block by block in a temporary file, so that memory holds neither."""
    if x.dtype != torch.float64 or x.ndim != 2 or not len(x):
        return x
    try:
        with tempfile.TemporaryFile() as file:  # a full disk ends a process that writes through a memory map
            for _, block in Features(x).chunks(x.shape[1]):
                file.write(block.contiguous().numpy().data)
            file.flush()
            return as_tensor(np.memmap(file, np.float32, "r", shape=tuple(x.shape)), "features")
    except OSError as error:
        raise PosthocError(
            f"float64 features, for which no temporary file can be written ({error.strerror})",
            f"{x.numel() * 4 / 1e6:,.0f} MB of space for temporary files",
            "set TMPDIR to a folder with more, or save the features as float32",
        ) from None


def _labels(name: str, y: Tensor) -> Tensor:
    whole = y.to(torch.int64)
    if y.is_floating_point() and not torch.equal(whole.to(y), y):
        raise PosthocError(
            f"{name} labels {listed(y[whole.to(y) != y][:3].tolist())}", "whole numbers", "give class indices from 0"
        )
    return whole


def _refuse_nonfinite(name: str, what: str, split: Features) -> None:
    bad = [
        rows.start + row
        for rows, x in split.chunks(1)
        for row in (~x.isfinite().all(dim=1)).nonzero().flatten().tolist()
    ]
    if bad:
        raise PosthocError(
            f"--{name} {show(what)} with NaN or infinite features in {len(bad)} of {len(split)} rows (row "
            f"{listed(bad, 3)}, counted from 0)",
            "finite features",
            "drop these rows, or make the features again",
        )


def _is_text(array: Array) -> bool:
    return not isinstance(array, Tensor) and array.dtype.kind not in "fiub"


def _shapes(arrays: Mapping[str, Array]) -> str:
    return listed(f"{key or 'an array'} {tuple(array.shape)}" for key, array in arrays.items()) or "no arrays"
