"""A head named on the command line, held to the features it is used with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.files import SavedHead, load_head
from posthoc_lt.pipeline.result import origin


def open_head(path: Path | None, features: FeatureSet) -> SavedHead:
    """The saved head, or the features' own, as ``baseline``, where no path is given.

    Raises:
        PosthocError: the file is no head, or a head of another checkpoint or shape.
    """
    if path is None:
        return SavedHead(features.head, {**origin(features), "method": "baseline"})
    saved = load_head(path)
    require_origin(saved, features, path)
    return saved


def require_origin(saved: SavedHead, features: FeatureSet, path: Path) -> None:
    """Refuse a head that was fitted on the features of another checkpoint, or is of another shape.

    Raises:
        PosthocError: it was.
    """
    require_same_checkpoint(saved.provenance, features, path, "a head fitted on")
    if saved.head.weight.shape != features.head.weight.shape:
        raise PosthocError(
            f"{show(path)}, a head of shape {tuple(saved.head.weight.shape)}",
            f"one of shape {tuple(features.head.weight.shape)}, as these features' own",
            "fit it again on these features",
        )


def require_same_checkpoint(theirs: Mapping[str, str], features: FeatureSet, path: Path, what: str) -> None:
    """Refuse a file, `what` it is, whose provenance names another checkpoint than the features.

    Raises:
        PosthocError: it does.
    """
    for key in ("checkpoint_sha256", "head_name"):
        own, other = features.provenance.get(key), theirs.get(key)
        if own is not None and other is not None and own != other:
            raise PosthocError(
                f"{show(path)}, {what} another checkpoint's features ({key} {show(other, 16)}, not {show(own, 16)})",
                "files of the same checkpoint",
                "make it again from these features' checkpoint, or give the features that it belongs to",
            )


def labelled_val(features: FeatureSet, purpose: str) -> Features:
    """The labelled validation split.

    Raises:
        PosthocError: there is none.
    """
    if features.val is None or features.val.y is None or not len(features.val):
        raise PosthocError(
            "features without a labelled validation split",
            f"validation samples {purpose}",
            "extract again with a val/ folder",
        )
    return features.val


def without_samples(features: FeatureSet, split: Features) -> list[str]:
    """The classes of which a labelled split has no sample, by name: no figure includes them."""
    empty = (split.counts(features.head.classes) == 0).tolist()
    return [name for name, lacks in zip(features.classes, empty, strict=True) if lacks]


def judging_split(features: FeatureSet) -> tuple[str, Features]:
    """Test where it is labelled, else val, whose figures flatter; by name."""
    if features.test is not None and features.test.y is not None and len(features.test):
        return "test", features.test
    return "val", labelled_val(features, "to judge on")
