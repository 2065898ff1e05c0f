"""The case table: one row a method, with a slow float64 formula that knows nothing of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A small long-tailed problem in plain numpy."""

    w: Array
    b: Array
    x: Array
    y: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        return np.array([(self.y == c).sum() for c in range(len(self.b))])

    def head(self, dtype: torch.dtype = torch.float64, has_bias: bool = True) -> Head:
        return Head(torch.tensor(self.w, dtype=dtype), torch.tensor(self.b, dtype=dtype), has_bias)

    def training(self, dtype: torch.dtype = torch.float64) -> Training:
        features = Features(torch.tensor(self.x, dtype=dtype), torch.tensor(self.y))
        return Training(torch.tensor(self.counts), features)


def problem(seed: int = 0, counts: tuple[int, ...] = (40, 17, 8, 3), dimensions: int = 5) -> Problem:
    """Overlapping Gaussian classes, float16-exact, off the origin, with a head that favours the first."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(counts), dimensions)) + 0.7
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = (means[y] + rng.normal(size=(len(y), dimensions))).astype(np.float16).astype(np.float64)
    w = (means * rng.uniform(0.3, 1.5, size=(len(counts), 1))).astype(np.float32).astype(np.float64)
    b = np.log(counts / np.sum(counts)).astype(np.float32).astype(np.float64)
    return Problem(w, b, x, y)


Formula: TypeAlias = Callable[[Problem, float], tuple[Array, Array]]
"""From a problem and a knob value to (W', b')."""
Gradient: TypeAlias = Callable[[Problem, float, Array, Array], Array]
"""From a problem, a knob value and a fitted (W', b') to the gradient of the method's stated objective."""


@dataclass(frozen=True)
class Case:
    """One method with one set of options.

    Args:
        method: its name in METHODS.
        options: the fields that differ from their defaults.
        knobs: knob values to compare at; a Path is compared at all of its own instead.
        formula: the expected head, or
        gradient: the expected objective's gradient.
        needs_features: whether counts alone must be refused.
        needs_every_class: whether a class without train samples must be refused.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: tuple[float | None, ...] = (None,)
    formula: Formula | None = None
    gradient: Gradient | None = None
    needs_features: bool = False
    needs_every_class: bool = False

    def __str__(self) -> str:
        return "-".join([self.method, *(str(value) for value in self.options.values())])


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def _untouched(p: Problem, knob: float) -> tuple[Array, Array]:
    return p.w, p.b


def _adjusted(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, np.array([p.b[c] - tau * np.log((p.y == c).mean()) for c in range(len(p.b))])


def _normed(keep: float, scale: float) -> Formula:
    def formula(p: Problem, tau: float) -> tuple[Array, Array]:
        norms = [float(np.sqrt(sum(v * v for v in row))) for row in p.w]
        weight = np.array([row / n**tau for row, n in zip(p.w, norms, strict=True)])
        bias = [keep * b + scale * b / n**tau for b, n in zip(p.b, norms, strict=True)]
        return weight, np.array(bias)

    return formula


def class_means(p: Problem, transform: str) -> tuple[Array, Array]:
    """Kang's centroids, and what is subtracted before."""
    centre = p.x.mean(axis=0) if transform == "cl2n" else np.zeros(p.x.shape[1])
    rows = [v - centre for v in p.x]
    if transform != "un":
        rows = [v / np.sqrt((v**2).sum()) for v in rows]
    means = [np.mean([v for v, y in zip(rows, p.y, strict=True) if y == c], axis=0) for c in range(len(p.b))]
    return np.array(means), centre


def _near(p: Problem, knob: float) -> tuple[Array, Array]:
    means, _ = class_means(p, "un")
    return 2 * means, np.array([-(m**2).sum() for m in means])


def _near_by_angle(transform: str) -> Formula:
    def formula(p: Problem, knob: float) -> tuple[Array, Array]:
        means, centre = class_means(p, transform)
        units = np.array([m / np.sqrt((m**2).sum()) for m in means])
        return units, np.array([-(u * centre).sum() for u in units])

    return formula


def sample_weights(p: Problem, balanced: bool) -> Array:
    if balanced:
        return np.array([1 / (len(p.b) * (p.y == y).sum()) for y in p.y])
    return np.full(len(p.y), 1 / len(p.y))


def penalty_unit(p: Problem, balanced: bool) -> float:
    """σ²: the weighted variance of a feature, averaged over features."""
    w = sample_weights(p, balanced)
    mean = sum(wi * xi for wi, xi in zip(w, p.x, strict=True))
    return float(sum(wi * ((xi - mean) ** 2).mean() for wi, xi in zip(w, p.x, strict=True)))


def logistic_gradient(balanced: bool) -> Gradient:
    def gradient(p: Problem, l2: float, weight: Array, bias: Array) -> Array:
        g_weight, g_bias = l2 * penalty_unit(p, balanced) * weight, np.zeros_like(bias)
        for wi, xi, yi in zip(sample_weights(p, balanced), p.x, p.y, strict=True):
            residual = wi * (softmax(weight @ xi + bias) - np.eye(len(bias))[yi])
            g_weight, g_bias = g_weight + np.outer(residual, xi), g_bias + residual
        return np.concatenate([g_weight.ravel(), g_bias])

    return gradient


def scaling_gradient(p: Problem, l2: float, weight: Array, bias: Array) -> Array:
    """In the factors s, which are read off the rows; the rest of the gradient is what no factor explains."""
    s = (weight * p.w).sum(axis=1) / (p.w**2).sum(axis=1)
    gradient = l2 * s
    for wi, xi, yi in zip(sample_weights(p, True), p.x, p.y, strict=True):
        z = p.w @ xi + p.b
        gradient = gradient + wi * (softmax(s * z) - np.eye(len(s))[yi]) * z
    return np.concatenate([gradient, (weight - s[:, None] * p.w).ravel(), bias - s * p.b])


TAUS = (-0.5, 0.0, 0.7, 1.0, 2.0)

CASES = (
    Case("baseline", formula=_untouched),
    Case("refit", gradient=logistic_gradient(balanced=False), needs_features=True, needs_every_class=True),
    Case("crt", gradient=logistic_gradient(balanced=True), needs_features=True, needs_every_class=True),
    Case("crt", {"l2": 0.02}, gradient=logistic_gradient(balanced=True), needs_features=True, needs_every_class=True),
    Case("logit-adjust", knobs=TAUS, formula=_adjusted, needs_every_class=True),
    Case("logit-adjust", {"target": "train"}, knobs=TAUS, formula=_untouched, needs_every_class=True),
    Case("lws", gradient=scaling_gradient, needs_features=True, needs_every_class=True),
    Case("ncm", formula=_near, needs_features=True, needs_every_class=True),
    *(
        Case(
            "ncm",
            {"distance": "cosine", "transform": transform},
            formula=_near_by_angle(transform),
            needs_features=True,
            needs_every_class=True,
        )
        for transform in ("un", "l2n", "cl2n")
    ),
    Case("tau-norm", knobs=TAUS, formula=_normed(keep=0, scale=0)),
    Case("tau-norm", {"bias": "keep"}, knobs=TAUS, formula=_normed(keep=1, scale=0)),
    Case("tau-norm", {"bias": "scale"}, knobs=TAUS, formula=_normed(keep=0, scale=1)),
)
