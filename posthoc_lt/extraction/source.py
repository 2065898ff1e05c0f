"""What there is to extract, opened and told apart from what was extracted before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from posthoc_lt.checkpoint import Architecture, Checkpoint, Transform, TwinsError, identify, read
from posthoc_lt.data import Data, DataSpec, Reader, fingerprint, limited, open_data, printable
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.extraction.twins import settle
from posthoc_lt.extraction.views import View, require_views
from posthoc_lt.features import FeatureSet
from posthoc_lt.fitting import fitted_head_note

IDENTITY = (
    "checkpoint_sha256",
    "weights",
    "arch",
    "transform",
    "data_fingerprint",
    "limit",
    "counts_given",
    "fitted_head",
    "views",
    "view_seed",
)
"""The provenance that decides what the features are: where all of it agrees, a cache is up to date."""


@dataclass(frozen=True, eq=False)
class Source:
    """What there is to extract: a checkpoint with its architecture, and the images.

    Args:
        checkpoint: as read.
        architecture: as identified.
        preprocessing: the architecture's, with what the user changed.
        data: the images, limited where asked.
        provenance: strings for the feature file, all known before the network runs.
        train_counts: (C,) train images a class where `limit` leaves some out, since groups and priors are
            those of what the network was trained on; shorter where the last classes have none.
        skip: leave out images that cannot be read.
        l2: the penalty of a head to be fitted, for a network that has none.
        views: how often train is run through, the first time as it is and then augmented.
        seed: of the augmentation.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    preprocessing: Transform
    data: Data
    provenance: Mapping[str, str]
    train_counts: Tensor | None = None
    skip: bool = False
    l2: float | None = None
    views: int = 1
    seed: int = 0

    def split(self, name: str) -> Reader:
        """The images of one split, as the network takes them."""
        return self.data.reader(name, self.preprocessing, self.preprocessing.collate, skip=self.skip)

    def readers(self) -> dict[str, Reader]:
        """Every split, by name."""
        return {name: self.split(name) for name in self.data.splits}

    def passes(self) -> dict[str, Reader]:
        """What the network is run over, by the name of the split; views of train bear its name and a number."""
        views = {
            f"train.{view}": View(
                self.data.splits["train"], self.preprocessing, self.data.exif, self.skip, self.seed, view
            )
            for view in range(1, self.views)
        }
        return {**self.readers(), **views}

    def whole_counts(self, classes: int, readers: Mapping[str, Reader]) -> Tensor | None:
        """The counts of all that the network was trained on, where the train features are only a part of it."""
        counts = self.train_counts
        if counts is None:
            part = "train" in readers and bool(readers["train"].skipped)
            return self.data.counts("train", classes) if part else None
        named = "counts_given" in self.provenance
        return counts if named else nn.functional.pad(counts, (0, classes - len(counts)))


def open_source(
    ckpt: Path | str,
    data: DataSpec | Path | str = "data",
    *,
    arch: str | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    counts: Sequence[int] | None = None,
    skip: bool = False,
    weights: str | None = None,
    allow_pickle: bool = False,
    l2: float | None = None,
    views: int = 1,
    known: Mapping[str, str] | None = None,
) -> Source:
    """Read the checkpoint and list the images; arguments as `extract`'s, and the provenance of features that exist.

    No network is built or run, but where several that compute differently have the checkpoint's tensors: then labelled
    images settle which of them it is, or did so for the features that exist, and the architecture's note tells it.

    Raises:
        PosthocError: see `checkpoint.read`, `checkpoint.identify` and `data.open_data`.
    """
    checkpoint = read(ckpt, weights, allow_pickle=allow_pickle)
    spec = data if isinstance(data, DataSpec) else DataSpec(str(data))

    def transform(architecture: Architecture) -> Transform:
        return architecture.preprocessing.changed(mean, std, input_size)

    deciding = ""
    try:
        architecture = identify(checkpoint, arch)
        every = open_data(spec, architecture.classes)
    except TwinsError as twins:
        every = open_data(spec)
        architecture, deciding = _settled(twins, known or {}) or settle(twins, every, transform, skip=skip)
    _require_one_head(checkpoint, architecture, l2)
    require_views(views, every)
    preprocessing = transform(architecture)
    _require_kind(preprocessing.kind, every, architecture)
    images = limited(every, limit)
    provenance = {
        "source": every.kind,
        "checkpoint": printable(ckpt),
        "checkpoint_sha256": checkpoint.sha256,
        "arch": architecture.name,
        **({"arch_chosen_by": deciding} if deciding else {}),
        **({"weights": checkpoint.weights.key} if checkpoint.others else {}),
        "transform": preprocessing.to_json(),
        **spec.provenance(),
        "data_fingerprint": fingerprint(images, missing=skip),
        **({} if limit is None else {"limit": str(limit)}),
        **({} if l2 is None else {"fitted_head": fitted_head_note(l2)}),
        **({} if views == 1 else {"views": str(views), "view_seed": str(spec.seed)}),
        **({} if counts is None else {"counts_given": hashlib.sha256(repr(list(counts)).encode()).hexdigest()}),
    }
    train_counts = every.train_counts(counts, limit)
    return Source(checkpoint, architecture, preprocessing, images, provenance, train_counts, skip, l2, views, spec.seed)


def _require_kind(wanted: str, data: Data, architecture: Architecture) -> None:
    if data.kind != wanted:
        raise PosthocError(
            f"{show(data.place)}, which holds {data.kind}, for {architecture.name}, which takes {wanted}",
            wanted,
            f"give --data with {'a column path' if wanted == 'images' else 'columns text, label and split'}",
        )


def split_of(name: str) -> str:
    """The split that one of `Source.passes` belongs to.

    >>> split_of("train.2"), split_of("val")
    ('train', 'val')
    """
    return name.partition(".")[0]


def _settled(twins: TwinsError, known: Mapping[str, str]) -> tuple[Architecture, str] | None:
    """What images decided when the features that exist were made of the same checkpoint."""
    name, deciding = known.get("arch", ""), known.get("arch_chosen_by", "")
    fits = any(name in names for names in twins.groups)
    if not deciding or not fits or known.get("checkpoint_sha256") != twins.checkpoint.sha256:
        return None
    note = f"Taken as {name}, as {deciding} told when its features were extracted. --arch takes another."
    return replace(identify(twins.checkpoint, name), note=note), deciding


def _require_one_head(checkpoint: Checkpoint, architecture: Architecture, l2: float | None) -> None:
    if architecture.headless and l2 is None:
        raise PosthocError(
            f"{show(checkpoint.path)}, a {architecture.name}, which has no head",
            "a head, which every method starts from: logistic regression on train",
            "give --fit-head",
        )
    if l2 is not None and not architecture.headless:
        raise PosthocError(
            f"--fit-head for {show(checkpoint.path)}, which has a head", "that head as it is", "leave --fit-head out"
        )


def is_current(features: FeatureSet, source: Source, precision: str = "auto") -> bool:
    """Whether extracting `source` would give these features again: same checkpoint, network, transform and images."""
    return precision in ("auto", features.provenance.get("precision")) and all(
        features.provenance.get(key) == source.provenance.get(key) for key in IDENTITY
    )
