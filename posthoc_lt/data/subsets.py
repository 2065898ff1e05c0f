"""Parts of data: at most so many samples, or validation samples held out of train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from posthoc_lt.data.dataset import Data
from posthoc_lt.data.samples import Subset
from posthoc_lt.errors import PosthocError, show


def limited(data: Data, limit: int | None) -> Data:
    """At most `limit` samples a split, every class in its proportion and, where `limit` allows, present.

    Within a class they are taken at even distances, so that the choice is the same every time.

    Raises:
        PosthocError: `limit` is below 1.
    """
    if limit is None:
        return data
    if limit < 1:
        raise PosthocError(f"limit {limit}", "a whole number above 0", "drop --limit to take every sample")
    splits = {
        name: samples if limit >= len(samples) else Subset(samples, _thin(len(samples), samples.labels, limit))
        for name, samples in data.splits.items()
    }
    return replace(data, splits=splits)


def held_out(data: Data, share: float, seed: int = 0) -> Data:
    """A share of train as val, of every class in proportion, drawn by `seed`.

    A class of n samples gives round(share·n), at least 1 and at most n − 1; a class of one gives none.
    This is validation data only for a network that was not trained on these very samples.

    Raises:
        PosthocError: the share is not in (0, 1), or there is a val already, no train, or no class with two samples.
    """
    if not 0 < share < 1:
        raise PosthocError(f"a share of {share} held out", "one above 0 and below 1", "give --holdout 0.1")
    train = data.splits.get("train")
    if train is None or train.labels is None or "val" in data.splits:
        what = "with val samples of its own" if "val" in data.splits else "without a labelled train split"
        raise PosthocError(
            f"{show(data.place)} {what}, and --holdout",
            "labelled train samples, known without reading them, and no val",
            "drop --holdout",
        )
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(train), dtype=torch.bool)
    order, counts = torch.argsort(train.labels, stable=True), torch.bincount(train.labels)
    for own in torch.split(order, counts[counts > 0].tolist()):
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        mask[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    if not mask.any():
        raise PosthocError(
            f"{show(data.place)}, whose train classes have one sample each",
            "a class with two samples, one to hold out",
            "drop --holdout",
        )
    parts = {"train": Subset(train, _where(~mask)), "val": Subset(train, _where(mask))}
    return replace(data, splits={**parts, **{name: data.splits[name] for name in data.splits if name != "train"}})


def _where(mask: Tensor) -> list[int]:
    found: list[int] = mask.nonzero().flatten().tolist()
    return found


def _thin(total: int, labels: Tensor | None, limit: int) -> list[int]:
    if labels is None:
        return [i * total // limit for i in range(limit)]
    order = torch.argsort(labels, stable=True).tolist()
    counts = Counter(labels.tolist())
    quota, chosen, start = _quota(counts, limit), [], 0
    for label in sorted(counts):
        wanted, size = quota.get(label, 0), counts[label]
        chosen += [order[start + i * size // wanted] for i in range(wanted)]
        start += size
    return sorted(chosen)


def _quota(counts: Mapping[int, int], limit: int) -> dict[int, int]:
    """Proportional shares by largest remainder, one at least for as many classes as `limit` allows."""
    order = sorted(counts, key=lambda label: (-counts[label], label))
    shares = {label: min(1, counts[label]) for label in order[:limit]}
    left, total = limit - len(shares), sum(counts.values()) - len(shares)
    exact = {label: left * (counts[label] - 1) / max(total, 1) for label in shares}
    for label in shares:
        shares[label] += int(exact[label])
    rest = sorted(shares, key=lambda label: (int(exact[label]) - exact[label], -counts[label], label))
    for label in rest[: limit - sum(shares.values())]:
        shares[label] += 1
    return shares
