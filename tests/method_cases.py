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
from posthoc_lt.priors import Shares

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


def arrays(head: Head) -> tuple[Array, Array]:
    return head.weight.double().numpy(), head.bias.double().numpy()


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def _untouched(p: Problem, knob: float) -> tuple[Array, Array]:
    return p.w, p.b


def _adjusted(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, np.array([p.b[c] - tau * np.log((p.y == c).mean()) for c in range(len(p.b))])


def _for_train(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, np.array([p.b[c] + (1 - tau) * np.log((p.y == c).mean()) for c in range(len(p.b))])


OTHER = Shares((1, 2, 3, 4), "other")


def _other(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, np.array([p.b[c] + (1 - tau) * np.log((c + 1) / 10) for c in range(len(p.b))])


def _constant_off(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, p.b + tau * np.log(len(p.b))


def _smoothed(p: Problem, tau: float) -> tuple[Array, Array]:
    return p.w, np.array([p.b[c] - tau * np.log(((p.y == c).sum() + 0.5) / (len(p.y) + 2)) for c in range(len(p.b))])


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


def sample_weights(p: Problem, balanced: bool = False, q: float | None = None, beta: float = 0.0) -> Array:
    """n_y^(q−1) / (1 − β^n_y), over its sum."""
    exponent = q if q is not None else 0.0 if balanced else 1.0
    n = np.array([(p.y == y).sum() for y in p.y], dtype=np.float64)
    weights = n ** (exponent - 1) / ((1 - beta**n) if beta else 1)
    return np.asarray(weights / weights.sum())


def variance_unit(p: Problem, w: Array) -> float:
    mean = sum(wi * xi for wi, xi in zip(w, p.x, strict=True))
    return float(sum(wi * ((xi - mean) ** 2).mean() for wi, xi in zip(w, p.x, strict=True)))


def penalty_unit(p: Problem, balanced: bool) -> float:
    """σ²: the weighted variance of a feature, averaged over features."""
    return variance_unit(p, sample_weights(p, balanced))


def logistic_gradient(
    balanced: bool = False, q: float | None = None, beta: float = 0.0, adjusted: bool = False, towards: float = 0.0
) -> Gradient:
    def gradient(p: Problem, l2: float, weight: Array, bias: Array) -> Array:
        w, classes = sample_weights(p, balanced, q, beta), len(bias)
        share = np.array([w[p.y == c].sum() for c in range(classes)])
        trained = bias + np.log(share) if adjusted else bias
        g_weight, g_bias = l2 * variance_unit(p, w) * (weight - towards * p.w), np.zeros_like(bias)
        for wi, xi, yi in zip(w, p.x, p.y, strict=True):
            residual = wi * (softmax(weight @ xi + trained) - np.eye(classes)[yi])
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


def affine_gradient(p: Problem, l2: float, weight: Array, bias: Array) -> Array:
    """In the factors and offsets, which are read off the rows and biases; all-zero heads have the start's gradient."""
    if not weight.any():
        s, beta = np.ones(len(p.b)), np.zeros(len(p.b))
    else:
        s = (weight * p.w).sum(axis=1) / (p.w**2).sum(axis=1)
        beta = bias - s * p.b
    g_scale, g_offset = l2 * (s - 1), l2 * beta
    for wi, xi, yi in zip(sample_weights(p, True), p.x, p.y, strict=True):
        z = p.w @ xi + p.b
        residual = wi * (softmax(s * z + beta) - np.eye(len(s))[yi])
        g_scale, g_offset = g_scale + residual * z, g_offset + residual
    away = weight - s[:, None] * p.w if weight.any() else 0 * weight
    return np.concatenate([g_scale, g_offset, away.ravel()])


def _discriminant(p: Problem, shrinkage: float) -> tuple[Array, Array]:
    """S⁻¹μ and −½μᵀS⁻¹μ, less their means over classes."""
    means, _ = class_means(p, "un")
    within = np.mean([np.outer(x - means[y], x - means[y]) for x, y in zip(p.x, p.y, strict=True)], axis=0)
    size = p.x.shape[1]
    shrunk = (1 - shrinkage) * within + shrinkage * np.trace(within) / size * np.eye(size)
    weight: Array = np.linalg.solve(shrunk, means.T).T
    bias = np.array([-(w * m).sum() / 2 for w, m in zip(weight, means, strict=True)])
    common = means.mean(axis=0)
    shift: Array = np.linalg.solve(shrunk, common)
    return weight - shift, bias + shift @ common / 2


def _ridge(p: Problem, l2: float) -> tuple[Array, Array]:
    """The normal equations of the augmented problem, the bias's column without penalty."""
    d = np.diag(sample_weights(p, True))
    x = np.column_stack([p.x, np.ones(len(p.x))])
    penalty = l2 * penalty_unit(p, True) * np.diag([1.0] * p.x.shape[1] + [0.0])
    found = np.linalg.solve(x.T @ d @ x + penalty, x.T @ d @ np.eye(len(p.b))[p.y])
    return np.asarray(found[:-1].T), np.asarray(found[-1])


def _by_frequency(p: Problem, gamma: float) -> tuple[Array, Array]:
    pi = np.array([(p.y == c).mean() for c in range(len(p.b))])
    return np.array([w / f**gamma for w, f in zip(p.w, pi, strict=True)]), p.b / pi**gamma


def _both(gamma: float) -> Formula:
    def formula(p: Problem, tau: float) -> tuple[Array, Array]:
        norms = np.array([float(np.sqrt(sum(v * v for v in row))) for row in p.w])
        ratio = (norms / np.prod(norms) ** (1 / len(norms))) ** gamma
        frequency = np.array([(p.y == c).mean() for c in range(len(p.b))])
        return np.array([row / r for row, r in zip(p.w, ratio, strict=True)]), p.b / ratio - tau * np.log(frequency)

    return formula


def _mixed_with_near(p: Problem, mix: float) -> tuple[Array, Array]:
    weight, bias = _near(p, 0.0)
    size = [
        np.sqrt(np.mean([(z - z.mean()) @ (z - z.mean()) for z in p.x @ w.T + b]))
        for w, b in ((p.w, p.b), (weight, bias))
    ]
    factor = size[0] / size[1]
    return (1 - mix) * p.w + mix * factor * weight, (1 - mix) * p.b + mix * factor * bias


def mixed_gradient(balanced: bool, l2: float) -> Gradient:
    """The other head's, taken out of the mix."""

    def gradient(p: Problem, mix: float, weight: Array, bias: Array) -> Array:
        other = (weight - (1 - mix) * p.w) / mix, (bias - (1 - mix) * p.b) / mix
        return logistic_gradient(balanced)(p, l2, *other)

    return gradient


TAUS = (-0.5, 0.0, 0.7, 1.0, 2.0)

CASES = (
    Case("affine", gradient=affine_gradient, needs_features=True, needs_every_class=True),
    Case("baseline", formula=_untouched),
    *(
        Case("blend", {"other": other, "l2": 0.02}, (0.3, 1.0), None, gradient, True, True)
        for other, gradient in (("crt", mixed_gradient(True, 0.02)), ("refit", mixed_gradient(False, 0.02)))
    ),
    Case("blend", {"other": "ncm"}, (0.0, 0.3, 1.0), _mixed_with_near, needs_features=True, needs_every_class=True),
    Case("refit", gradient=logistic_gradient(balanced=False), needs_features=True, needs_every_class=True),
    Case("crt", gradient=logistic_gradient(balanced=True), needs_features=True, needs_every_class=True),
    *(
        Case("crt", options, gradient=gradient, needs_features=True, needs_every_class=True)
        for options, gradient in (
            ({"sampler": "square-root"}, logistic_gradient(q=0.5)),
            ({"sampler": "instance", "loss": "logit-adjusted"}, logistic_gradient(q=1.0, adjusted=True)),
            ({"sampler": "instance", "loss": "class-balanced"}, logistic_gradient(q=1.0, beta=0.9999)),
            ({"towards": "checkpoint"}, logistic_gradient(balanced=True, towards=1.0)),
        )
    ),
    Case("crt", {"l2": 0.02}, gradient=logistic_gradient(balanced=True), needs_features=True, needs_every_class=True),
    Case("logit-adjust", knobs=TAUS, formula=_adjusted, needs_every_class=True),
    Case("logit-adjust", {"target_prior": "train"}, knobs=TAUS, formula=_for_train, needs_every_class=True),
    Case("logit-adjust", {"prior": OTHER, "target_prior": OTHER}, knobs=TAUS, formula=_other),
    Case("logit-adjust", {"prior": "uniform"}, knobs=TAUS, formula=_constant_off),
    Case("logit-adjust", {"zero_count": "smooth"}, knobs=TAUS, formula=_smoothed),
    Case("logit-adjust", {"zero_count": "mask"}, knobs=TAUS, formula=_adjusted),
    Case("lda", formula=_discriminant, needs_features=True, needs_every_class=True),
    Case("lda", {"shrinkage": 0.0}, formula=_discriminant, needs_features=True, needs_every_class=True),
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
    Case("offsets", knobs=TAUS, formula=_adjusted, needs_every_class=True),
    Case("ridge", formula=_ridge, needs_features=True, needs_every_class=True),
    Case("scale", knobs=TAUS, formula=_by_frequency, needs_every_class=True),
    Case("tau-norm", knobs=TAUS, formula=_normed(keep=0, scale=0)),
    Case("tau-norm", {"bias": "keep"}, knobs=TAUS, formula=_normed(keep=1, scale=0)),
    Case("tau-norm", {"bias": "scale"}, knobs=TAUS, formula=_normed(keep=0, scale=1)),
    *(
        Case("tau-norm-adjust", {"gamma": gamma}, knobs=TAUS, formula=_both(gamma), needs_every_class=True)
        for gamma in (0.0, 0.7, 2.0)
    ),
)
