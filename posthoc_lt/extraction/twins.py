"""Which of several networks with the same tensors a checkpoint is of, told by labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt.checkpoint import (
    Architecture,
    Transform,
    TwinsError,
    identify,
    load_network,
    plainest,
    run_network,
)
from posthoc_lt.data import Data, Samples
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.features import SPLITS

ROUNDS = (16, 32, 64, 128)
"""How many images are looked at in all; more only where fewer do not decide."""

MOST = 6
"""How many networks are tried at most."""

LANDSLIDE = 0.1
"""How much higher the mean log-likelihood of the one that is taken must be, in nats."""

ALIKE = 0.01
"""How far, in nats, the log-likelihoods of networks that agree in effect are apart on average."""

_BATCH = 32
_SPREAD = 0.01  # of the probability, over all classes, so that no single image decides


class Score(NamedTuple):
    """How a network fares on N labelled images.

    Args:
        name: the network's.
        likelihood: (N,) log-likelihoods of the true classes, float64.
        predicted: (N,) classes.
        y: (N,) true classes.
    """

    name: str
    likelihood: Tensor
    predicted: Tensor
    y: Tensor

    @property
    def right(self) -> int:
        """How many predictions are right."""
        return int((self.predicted == self.y).sum())

    def after(self, before: Score | None) -> Score:
        """On these images and those of `before`."""
        if before is None:
            return self
        return Score(self.name, *(torch.cat(pair) for pair in zip(before[1:], self[1:], strict=True)))

    def __str__(self) -> str:
        return f"{self.right / len(self.y):.0%} as {self.name}"


def settle(
    twins: TwinsError,
    data: Data,
    transform: Callable[[Architecture], Transform],
    *,
    skip: bool = False,
) -> tuple[Architecture, str]:
    """The one of several networks under which a checkpoint classifies its own images clearly best.

    One network of each function is built, one at a time, given the weights, and run with its own transform on up to
    128 images, drawn with equal classes and by a fixed seed. Of two, one is clearly better where its log-likelihood of
    the true class, a hundredth of the probability spread over all classes, is higher by 0.1 and by three standard
    errors of the paired difference (by four while there are more images), and at least as many predictions are right.
    It must be clearly better than every other (or agree in effect with it: the same predictions, likelihoods within
    0.01), and than guessing. One that does not run on images of the size that was asked for was not trained on them.

    The images are train's where there are any, then val's, then test's. That the network knows train images by heart
    is no harm here but the plainest evidence, since it knows them only as what it was trained as. Even on test, a
    choice between a few functions for the user's own weights, which no near miss can decide, adds nothing to a figure
    that `--arch` would not.

    Args:
        twins: the checkpoint and the networks that its tensors fit.
        data: the images.
        transform: how they are prepared for a network.
        skip: leave out images that cannot be read.

    Returns:
        The architecture, its note telling what decided, and the images that did, such as ``32 train images``.

    Raises:
        TwinsError: they did not.
        PosthocError: an image cannot be read, or labels do not fit the network.
    """
    if len(twins.groups) > MOST:
        raise twins.because(f"more of them than the {MOST} that are tried on images")
    names = [plainest(group) for group in twins.groups]
    split = next((name for name in SPLITS if _labelled(data, name)), None)
    if split is None:
        raise twins.because("there are no labelled images to tell")
    order = balanced(data.splits[split])
    scores: dict[str, Score] = {}
    for start, stop in pairwise((0, *ROUNDS)):
        part = order[start:stop]
        found = {name: _score(twins, name, data, split, part, transform, skip) for name in names}
        scores = {name: score.after(scores.get(name)) for name, score in found.items() if score is not None}
        last = stop >= min(len(order), ROUNDS[-1])
        best = foremost(list(scores.values()), last=last)
        if best is not None:
            images = f"{len(best.y)} {split} images"
            idle = [name for name in names if name not in scores]
            note = _told(best, list(scores.values()), idle, twins.groups[names.index(best.name)], images)
            return replace(identify(twins.checkpoint, best.name), note=note), images
        if last:
            break
    told = f"right are {listed(scores.values(), MOST)}" if scores else "none of the networks runs on them"
    raise twins.because(f"{len(order)} {split} images do not tell: {told}")


def foremost(scores: Sequence[Score], *, last: bool = True) -> Score | None:
    """The network that is clearly better than every other and than guessing, or None.

    Args:
        scores: on the same images, the plainest name first.
        last: no more images will be looked at: three standard errors will do then, where before it takes four, and
            others may be taken to agree with it in effect.
    """
    if not scores or len(scores[0].y) < ROUNDS[0]:
        return None
    y = scores[0].y
    guess = float(torch.bincount(y).max()) / len(y)
    chance = len(y) * guess + 3 * math.sqrt(len(y) * guess * (1 - guess))
    for each in scores:
        rivals = [other for other in scores if other is not each]
        beaten = all(_beats(each, other, 3 if last else 4) or (last and _alike(each, other)) for other in rivals)
        if beaten and each.right > chance:
            return each
    return None


def _beats(a: Score, b: Score, errors: float = 3) -> bool:
    gap, error = _gap(a, b)
    return gap > max(LANDSLIDE, errors * error) and a.right >= b.right


def _alike(a: Score, b: Score) -> bool:
    return torch.equal(a.predicted, b.predicted) and float((a.likelihood - b.likelihood).abs().mean()) < ALIKE


def _gap(a: Score, b: Score) -> tuple[float, float]:
    """The mean difference of log-likelihoods and its standard error."""
    d = a.likelihood - b.likelihood
    return float(d.mean()), float(d.std()) / math.sqrt(len(d))


def _labelled(data: Data, split: str) -> bool:
    samples = data.splits.get(split)
    return samples is not None and len(samples) > 0 and (samples.labels is not None or samples.own_code)


def balanced(samples: Samples, seed: int = 0) -> list[int]:
    """At most as many indices as the last of `ROUNDS`, every beginning of them as equal in classes as can be."""
    shuffled = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    if samples.labels is not None:
        labels = samples.labels[shuffled]
        by_class = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels)
        turn = torch.empty_like(labels)
        turn[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
        shuffled = shuffled[torch.argsort(turn, stable=True)]
    chosen: list[int] = shuffled[: ROUNDS[-1]].tolist()
    return chosen


def _score(
    twins: TwinsError,
    name: str,
    data: Data,
    split: str,
    indices: list[int],
    transform: Callable[[Architecture], Transform],
    skip: bool,
) -> Score | None:
    """How one network fares, or None where it does not run on images of this size."""
    try:
        architecture = identify(twins.checkpoint, name)
        network = load_network(twins.checkpoint, architecture)
    except PosthocError as error:
        raise twins.because(f"{name} cannot be tried on images: {error.given}") from error
    inputs, y = data.reader(split, transform(architecture), skip=skip).stack(indices)
    if y is None:
        raise twins.because("there are no labelled images to tell")
    try:
        logits = torch.cat([run_network(network, part) for part in torch.split(inputs, _BATCH)])
    except PosthocError:
        return None
    data.require_classes(logits.shape[1])
    if int(y.max()) >= logits.shape[1]:  # labels that are known only now
        raise twins.because(f"label {int(y.max())} is none of the network's {logits.shape[1]} classes")
    likelihood = (1 - _SPREAD) * logits.double().softmax(1).nan_to_num(0) + _SPREAD / logits.shape[1]
    return Score(name, likelihood.log().gather(1, y[:, None]).flatten(), logits.argmax(1), y)


def _told(best: Score, scores: Sequence[Score], idle: Sequence[str], group: Sequence[str], images: str) -> str:
    same = [name for name in group if name != best.name]
    beaten, alike = [], []
    for other in scores:
        gap, error = _gap(best, other)
        if _beats(best, other):
            beaten.append(f"{other} (log-likelihood lower by {gap:.2f} an image, standard error {error:.2f})")
        elif other is not best:
            alike.append(other.name)
    parts = (
        f"Taken as {best.name}",
        f", which computes the same as {listed(same)}" if same else "",
        f". Other networks have the same tensors, but of {images} {best} are right",
        f", against {' and '.join(beaten)}" if beaten else "",
        f"; {listed(alike)} agrees with it on all of them" if alike else "",
        f"; {listed(idle)} does not run on images of this size" if idle else "",
        ". --arch takes another.",
    )
    return "".join(parts)
