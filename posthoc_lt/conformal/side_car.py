"""Thresholds in a file of their own, beside the head's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from posthoc_lt.choices import KINDS
from posthoc_lt.conformal.scores import identity
from posthoc_lt.conformal.thresholds import Thresholds
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files import replacing
from posthoc_lt.files.container import read_container, write_container
from posthoc_lt.head import Head

FORMAT, VERSION = "posthoc-lt-conformal", "1"
_REMAKE = "make it with: posthoc-lt conformal"


def save_thresholds(thresholds: Thresholds, path: Path, force: bool = False) -> None:
    """Write thresholds to a file of their own, beside the head's, whole or not at all.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    tensors = {
        "floor": thresholds.floor,
        "supported": thresholds.supported.long(),
        "samples": thresholds.samples,
    }
    if thresholds.prevalence is not None:
        tensors["prevalence"] = thresholds.prevalence
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "kind": thresholds.kind,
        "alpha": json.dumps(thresholds.alpha),
        "weight": json.dumps(thresholds.weight),
        "head": thresholds.head,
    }
    with replacing(path, force) as temporary:
        write_container(temporary, tensors, metadata)


def load_thresholds(path: Path, head: Head | None = None) -> Thresholds:
    """Read thresholds, their checksums verified; with `head`, only if they were made for that very head.

    Raises:
        PosthocError: no such file, another kind of file, cut short or changed, or made for another head.
    """
    path = Path(path)
    tensors, metadata = read_container(path, FORMAT, VERSION, _REMAKE)
    kind, alpha, weight = metadata.get("kind", ""), _number(metadata, "alpha"), _number(metadata, "weight")
    names = {"floor", "samples", "supported"} | ({"prevalence"} if kind == "prevalence" else set())
    alike = len({tensor.shape for tensor in tensors.values()}) == 1 and all(t.ndim == 1 for t in tensors.values())
    if tensors.keys() != names or not alike or kind not in KINDS or not (0 < alpha < 1 and 0 <= weight <= 1):
        raise PosthocError(f"{show(path)}, which lacks a part or holds parts that do not fit", "the file", _REMAKE)
    if head is not None and metadata.get("head") != identity(head):
        raise PosthocError(
            f"{show(path)}, which was made for another head",
            "the thresholds of this head: they cover nothing with another",
            _REMAKE,
        )
    return Thresholds(
        floor=tensors["floor"],
        kind=kind,
        alpha=alpha,
        weight=weight,
        supported=tensors["supported"].bool(),
        samples=tensors["samples"],
        prevalence=tensors.get("prevalence"),
        head=metadata.get("head", ""),
    )


def _number(metadata: Mapping[str, str], key: str) -> float:
    try:
        return float(metadata.get(key, "nan"))
    except ValueError:
        return math.nan
