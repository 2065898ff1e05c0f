"""The papers' own second stage on cached features: momentum SGD, a cosine schedule, class-aware sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.losses import cross_entropy
from posthoc_lt.progress import through
from posthoc_lt.sampling import ClassAwareSampler, EpochSampler

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: by default as Kang 2020 (arXiv:1910.09217) re-trains on ImageNet-LT.

    In epoch e = 1 … T the rate is ``½ lr (1 + cos(πe/T))``, so that the last epoch changes nothing: the authors step
    the schedule before each epoch. An epoch has ⌊N/batch⌋ steps, at least one.

    Args:
        epochs: T.
        batch: samples a step, or all where there are fewer.
        lr: the rate that the schedule falls from; 0.2 for batches of 512, on Places-LT 0.1 for 256.
        momentum: 0 … 1.
        weight_decay: on every parameter trained, the bias too.

    Raises:
        PosthocError: a number that is out of its range.
    """

    epochs: int = 10
    batch: int = 512
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        sound = self.epochs >= 1 and self.batch >= 1 and self.lr > 0
        if not (sound and 0 <= self.momentum < 1 and self.weight_decay >= 0 and math.isfinite(self.lr)):
            raise PosthocError(
                f"an SGD schedule of {self}",
                "epochs and batch of 1 or more, lr above 0, momentum from 0 to below 1, weight_decay of 0 or more",
                "give Schedule() for the authors' settings",
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 1.

        >>> [round(Schedule(epochs=4, lr=1.0).rate(e), 3) for e in (1, 2, 3, 4)]
        [0.854, 0.5, 0.146, 0.0]
        """
        return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2


CRT_SCHEDULE, LWS_SCHEDULE = Schedule(), Schedule(epochs=5)


def sgd(
    features: Features,
    classes: int,
    *,
    schedule: Schedule = CRT_SCHEDULE,
    sampler: EpochSampler | None = None,
    loss: Loss = cross_entropy,
    start: Head | None = None,
    max_norm: float = math.inf,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Head:
    """Re-train a head by the authors' steps: cRT of Kang 2020 (arXiv:1910.09217), its ``--recipe paper``.

    Cross-entropy, class-aware sampling, momentum SGD and a fresh `torch.nn.Linear`, all by default. Two things differ
    from the authors' run, and cannot be had from cached features: they leave train augmentation on, and their frozen
    backbone stays in train mode, so that its BatchNorm statistics drift toward the resampled classes during this
    stage. The head is that of the last epoch, where they keep the epoch that is best on validation.

    Args:
        features: labelled train features, gathered batch by batch; may be memory-mapped.
        classes: C.
        schedule: epochs, batch, rate, momentum, weight decay.
        sampler: of the train labels; a `ClassAwareSampler` by default.
        loss: of logits (n, C) and labels (n,), such as a module of `posthoc_lt.losses`.
        start: the head to start from; by default one drawn as `torch.nn.Linear` does.
        max_norm: what a class's weights are shortened to after each step where they are longer, as MaxNorm does
            (Alshammari 2022, arXiv:2203.14197; its authors' code does so after each epoch).
        dtype: of the arithmetic and of the head.
        seed: decides start and order, and so, on one machine, every bit of the head.

    Raises:
        PosthocError: features without labels or samples or with labels beyond C, a start or a sampler that does not
            fit them, or steps that diverge.
    """
    start = _fresh(classes, features.dimensions, seed) if start is None else start
    if start.classes != classes:
        raise PosthocError(
            f"a head of {start.classes} classes to start from for {classes} classes",
            "a head with one row a class",
            "leave start out for a fresh one",
        )
    exact = start.to(dtype).to(features.device)
    weight, bias = (p.clone().requires_grad_() for p in (exact.weight, exact.bias))
    _descend(
        features,
        [weight, bias],
        lambda x, y: loss(torch.addmm(bias, x, weight.T), y),
        schedule,
        _suited(sampler, features, start, seed),
        max_norm,
    )
    return Head(weight.detach(), bias.detach())


def sgd_scales(
    features: Features,
    head: Head,
    *,
    schedule: Schedule = LWS_SCHEDULE,
    sampler: EpochSampler | None = None,
    loss: Loss = cross_entropy,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Head:
    """Learn one scale a class by the authors' steps: LWS of Kang 2020, ``s_c w_c, s_c b_c`` from s = 1.

    Only s is trained, with weight decay, for 5 epochs; the rest is as for `sgd`.

    Args:
        features: labelled train features.
        head: the untouched head, C classes.
        schedule, sampler, loss, dtype, seed: as for `sgd`.

    Raises:
        PosthocError: features or sampler that do not fit, or steps that diverge.
    """
    exact = head.to(dtype).to(features.device)
    scales = torch.ones_like(exact.bias).requires_grad_()
    _descend(
        features,
        [scales],
        lambda x, y: loss(scales * exact(x), y),
        schedule,
        _suited(sampler, features, head, seed),
    )
    factors = scales.detach()
    return Head(factors[:, None] * exact.weight, factors * exact.bias, head.has_bias)


def _fresh(classes: int, dimensions: int, seed: int) -> Head:
    """A head as `torch.nn.Linear` draws it, from random numbers of its own."""
    generator, bound = torch.Generator().manual_seed(seed), dimensions**-0.5
    weight, bias = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in ((classes, dimensions), (classes,))
    )
    return Head(weight, bias)


def _descend(
    features: Features,
    parameters: list[Tensor],
    objective: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    sampler: EpochSampler,
    max_norm: float = math.inf,
) -> None:
    """Take the schedule's steps on leaf parameters, in place, and keep the rows of the first within a length."""
    labels, dtype = features.labels.cpu(), parameters[0].dtype
    optimiser = torch.optim.SGD(
        parameters, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    for epoch in through(range(1, schedule.epochs + 1), "training", "epochs"):
        sampler.set_epoch(epoch - 1)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(epoch)
        for index in _batches(sampler, min(schedule.batch, len(sampler))):
            x = features.x[index].to(features.device, dtype)
            optimiser.zero_grad()
            torch.autograd.backward(objective(x, labels[index].to(features.device)))
            optimiser.step()
            if max_norm < math.inf:
                parameters[0].data.renorm_(p=2, dim=0, maxnorm=max_norm)
    if not all(p.isfinite().all() for p in parameters):
        raise PosthocError(
            f"SGD at lr = {schedule.lr:g} that ends in NaN or infinite values",
            "steps that converge, on finite features",
            "give a schedule with a lower lr, or scale the features",
        )


def _batches(sampler: Iterable[int], size: int) -> Iterator[Tensor]:
    """The sampler's indices by `size`, a rest dropped."""
    indices = torch.tensor(list(sampler))
    return iter(torch.split(indices[: len(indices) // size * size], size))


def _suited(sampler: EpochSampler | None, features: Features, head: Head, seed: int) -> EpochSampler:
    """The sampler, or the authors', once features, head and sampler are known to fit each other."""
    features.require_labelled(head)
    empty = (features.counts(head.classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"no train sample of class {listed(empty)}",
            "at least one train sample a class",
            "add samples, or use a method that needs only class counts",
        )
    sampler = sampler or ClassAwareSampler(features.labels.cpu(), seed=seed)
    if int(sampler.counts.sum()) != len(features):
        raise PosthocError(
            f"a sampler of {int(sampler.counts.sum())} samples for {len(features)} features",
            "a sampler of these features' labels",
            "make it from features.labels",
        )
    return sampler
