"""Samplers for imbalanced classes, for any `torch.utils.data.DataLoader`: which samples an epoch is made of.

| sampler | draws class c with frequency | how |
|---|---|---|
| `InstanceBalancedSampler` | n_c/N | each sample once an epoch, shuffled |
| `ClassAwareSampler` | 1/C | a cycle over classes, a cycle within each |
| `PowerSampler` | n_c^q / Σ n_k^q, square-root by default | independent draws |
| `ProgressivelyBalancedSampler` | from the first's to the second's over the epochs | independent draws |

All are from Kang 2020 (arXiv:1910.09217). The same labels, seed and epoch give the same indices on every machine
and in every process, so that `replicas` processes that share a seed divide an epoch among themselves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from posthoc_lt.errors import PosthocError

Indices: TypeAlias = NDArray[np.int64]


class EpochSampler(Sampler[int]):
    """Indices of one epoch after another, decided by the seed and the number of the epoch alone.

    Call `set_epoch` before each epoch, as with `torch.utils.data.DistributedSampler`; without it every pass
    gives the same indices.

    Args:
        labels: (N,) integer class of each sample, a tensor, an array or a list.
        samples: draws an epoch over all replicas together; N by default.
        seed: >= 0.
        replicas: processes that divide an epoch, each taking every replicas-th index; a rest is dropped.
        rank: which of them this is, counted from 0.

    Raises:
        PosthocError: no labels, or a number that is out of its range.
    """

    def __init__(
        self, labels: ArrayLike, *, samples: int | None = None, seed: int = 0, replicas: int = 1, rank: int = 0
    ) -> None:
        classes = np.asarray(labels)
        if classes.ndim != 1 or not len(classes) or classes.dtype.kind not in "iu":
            raise PosthocError(
                f"labels of shape {classes.shape} and type {classes.dtype}",
                "one integer class a sample, and at least one sample",
                "give the labels of the data set, in its order",
            )
        self.samples = len(classes) if samples is None else samples
        for name, value, low in (("samples", self.samples, replicas), ("seed", seed, 0), ("replicas", replicas, 1)):
            _at_least(name, value, low)
        if not 0 <= rank < replicas:
            raise PosthocError(
                f"rank {rank} of {replicas} replicas", f"a rank from 0 to {replicas - 1}", "count ranks from 0"
            )
        self.seed, self.replicas, self.rank, self.epoch = seed, replicas, rank, 0
        self.counts: Indices
        """Samples of each class that has any, in the order of the classes."""
        _, self.counts = np.unique(classes, return_counts=True)
        self._by_class: Indices = np.argsort(classes, kind="stable")
        self._first = np.cumsum(self.counts) - self.counts

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of `epoch`, counted from 0.

        Raises:
            PosthocError: it is below 0.
        """
        _at_least("epoch", epoch, 0)
        self.epoch = epoch

    def __len__(self) -> int:
        """Indices that a pass gives to this replica."""
        return self.samples // self.replicas

    def __iter__(self) -> Iterator[int]:
        """The indices of this epoch."""
        drawn = self.draw()[self.rank : self.replicas * len(self) : self.replicas]
        return iter(drawn.tolist())

    @abstractmethod
    def draw(self) -> Indices:
        """The indices of this epoch for all replicas, (samples,)."""

    def _random(self, *path: int) -> np.random.Generator:
        """Random numbers of their own for every path, as the seed decides them."""
        return np.random.default_rng((self.seed, *path))

    def _members(self, c: int) -> Indices:
        """The indices of the samples of the c-th class."""
        return self._by_class[self._first[c] : self._first[c] + self.counts[c]]

    def _draw_from(self, probability: NDArray[np.float64]) -> Indices:
        """Independent draws: a class with the probability given, then one of its samples, all alike."""
        random = self._random(self.epoch)
        c = random.choice(len(self.counts), self.samples, p=probability)
        drawn: Indices = self._by_class[self._first[c] + random.integers(self.counts[c])]
        return drawn


class InstanceBalancedSampler(EpochSampler):
    """Every sample as often as any other: each once an epoch, in an order of its own.

    More draws than samples start the next shuffle, fewer take a part of one.

    >>> sorted(InstanceBalancedSampler([0, 0, 1]))
    [0, 1, 2]
    """

    def draw(self) -> Indices:
        """The indices of this epoch for all replicas, (samples,)."""
        size = len(self._by_class)
        shuffles = [self._random(self.epoch, k).permutation(size) for k in range(-(-self.samples // size))]
        return np.concatenate(shuffles)[: self.samples]


class ClassAwareSampler(EpochSampler):
    """Every class as often as any other: the class-aware cycle of Kang's code (after Shen 2016, arXiv:1512.05830).

    Classes come in a shuffled cycle, each giving `run` samples in a row from a shuffled cycle of its own, and an
    epoch goes on where the one before it stopped. So within a cycle of ``run·C`` draws every class comes up exactly
    `run` times, and every sample of a class once before any of them twice. ``run`` is 4 in the authors' settings;
    their sampler is C·max n long, but their loop breaks off after ⌊N/batch⌋ steps, whence N here.

    Args:
        labels, samples, seed, replicas, rank: as for `EpochSampler`.
        run: samples in a row from one class.

    Raises:
        PosthocError: no labels, or a number that is out of its range.

    >>> drawn = list(ClassAwareSampler([0, 0, 0, 1], samples=4, run=2))
    >>> drawn.count(3)
    2
    """

    def __init__(self, labels: ArrayLike, *, run: int = 4, **shared: Any) -> None:
        super().__init__(labels, **shared)
        _at_least("run", run, 1)
        self.run = run

    def draw(self) -> Indices:
        """The indices of this epoch for all replicas, (samples,)."""
        classes = len(self.counts)
        position = self.epoch * self.samples + np.arange(self.samples, dtype=np.int64)
        turn, item = np.divmod(position, self.run)
        cycle, place = np.divmod(turn, classes)
        first, last = int(cycle[0]), int(cycle[-1])
        order = np.stack([self._random(0, k).permutation(classes) for k in range(first, last + 1)])
        # A class has one turn a cycle, so its visits are known without having gone through earlier epochs.
        visits = np.stack([self._visits(c, first * self.run, (last + 1) * self.run) for c in range(classes)])
        drawn: Indices = visits[order[cycle - first, place], (cycle - first) * self.run + item]
        return drawn

    def _visits(self, c: int, start: int, stop: int) -> Indices:
        """What the c-th class gives at its visits from `start` to `stop`."""
        members = self._members(c)
        first = start // len(members)
        shuffles = [self._random(1, c, k).permutation(members) for k in range(first, -(-stop // len(members)))]
        return np.concatenate(shuffles)[start - first * len(members) : stop - first * len(members)]


class PowerSampler(EpochSampler):
    """Class c with probability ``n_c^q / Σ n_k^q``, then any of its samples: independent draws with replacement.

    q = ½ is square-root sampling, q = 1 draws instances, q = 0 classes; q < 0 prefers rare classes.

    Args:
        labels, samples, seed, replicas, rank: as for `EpochSampler`.
        q: any finite number.

    Raises:
        PosthocError: no labels, or a number that is out of its range.

    >>> PowerSampler([0, 0, 0, 0, 1]).probability
    array([0.66666667, 0.33333333])
    """

    def __init__(self, labels: ArrayLike, *, q: float = 0.5, **shared: Any) -> None:
        super().__init__(labels, **shared)
        if not np.isfinite(q):
            raise PosthocError(f"sampler exponent q = {q}", "a finite number", "give 0 (classes), 0.5 or 1 (instances)")
        self.q = q

    @property
    def probability(self) -> NDArray[np.float64]:
        """Of each class that has a sample."""
        log_power = self.q * np.log(self.counts)
        power = np.exp(log_power - log_power.max())
        share: NDArray[np.float64] = power / power.sum()
        return share

    def draw(self) -> Indices:
        """The indices of this epoch for all replicas, (samples,)."""
        return self._draw_from(self.probability)


class ProgressivelyBalancedSampler(EpochSampler):
    """From instances to classes: class c with probability ``(1 − λ) n_c/N + λ/C``, λ = t/(T − 1) in epoch t of T.

    λ as in the authors' code, from exactly 0 to exactly 1; a single epoch draws instances, and epochs past
    the last draw classes. Independent draws with replacement.

    Args:
        labels, samples, seed, replicas, rank: as for `EpochSampler`.
        epochs: T.

    Raises:
        PosthocError: no labels, or a number that is out of its range.

    >>> sampler = ProgressivelyBalancedSampler([0, 0, 0, 1], epochs=3)
    >>> sampler.set_epoch(1)
    >>> sampler.probability
    array([0.625, 0.375])
    """

    def __init__(self, labels: ArrayLike, *, epochs: int, **shared: Any) -> None:
        super().__init__(labels, **shared)
        _at_least("epochs", epochs, 1)
        self.epochs = epochs

    @property
    def probability(self) -> NDArray[np.float64]:
        """Of each class that has a sample, in this epoch."""
        late = min(self.epoch / max(self.epochs - 1, 1), 1.0)
        share: NDArray[np.float64] = (1 - late) * self.counts / self.counts.sum() + late / len(self.counts)
        return share

    def draw(self) -> Indices:
        """The indices of this epoch for all replicas, (samples,)."""
        return self._draw_from(self.probability)


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise PosthocError(f"{name} = {value}", f"{low} or more", f"give {name}={low}")
