"""One offset a class on top of scale and prior strength: what estimates of class frequencies cannot do without."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.calibration.fit import Calibration
from posthoc_lt.calibration.samples import blocks, finite_log_prior, weighting
from posthoc_lt.features import Features
from posthoc_lt.head import Head

DEVIATION = 1.0
"""Of each offset around 0, in nats: weak, and enough to hold classes that few samples speak of."""

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def correct_bias(
    head: Head, features: Features, log_prior: Tensor, calibration: Calibration, deviation: float = DEVIATION
) -> Tensor:
    """Offsets g (C,) such that ``p(x|y) ∝ exp(a z_y − g_y)``, each class corrected by samples of its own.

    ``g = c log π − δ`` with δ minimising ``Σ NLL(a z − c log π + δ + log v) + Σ δ²/(2σ²)`` on labelled samples whose
    label frequencies are v. Then every class gets on average the probability that it has, which two numbers for all
    classes cannot see to, and which decides how far off an estimate of class frequencies is (bias-corrected
    temperature scaling, Alexandari 2020, arXiv:1901.06852). δ = 0 as σ → 0; a class without samples keeps δ = 0.

    Args:
        head: the head that was calibrated.
        features: N labelled samples that the network was not trained on, best those of the calibration.
        log_prior: log π, (C,), as given to `calibrate`.
        calibration: a and c.
        deviation: σ.

    Returns:
        (C,) float64: the log prior to give `posthoc_lt.shift.estimate_prior` with a prior strength of 1.

    Raises:
        PosthocError: shapes do not fit, or values are not finite.
    """
    prior = calibration.prior_strength * finite_log_prior(log_prior, head)
    taking_part = features.counts(head.classes).cpu().double() * ~head.masked.cpu()
    share, _ = weighting(head, features, taking_part)

    def objective(point: Vector) -> tuple[float, Vector]:
        offset = torch.from_numpy(point.copy())
        value, gradient = float(offset.square().sum()) / (2 * deviation**2), offset / deviation**2
        shift, parts = share.log() - prior + offset, []
        for _, z, y in blocks(head, features):
            log_p = torch.log_softmax(torch.add(shift.to(z.device), z, alpha=calibration.scale), dim=1).cpu()
            counted = taking_part[y.cpu()] > 0
            log_p, labels = log_p[counted], y.cpu()[counted]
            loss = -log_p.gather(1, labels[:, None]).sum()
            excess = log_p.exp().sum(dim=0) - torch.bincount(labels, minlength=head.classes)
            parts.append(torch.cat([loss[None], excess]))
        found = ranks.added(parts, torch.zeros(1 + head.classes, dtype=torch.float64))
        return value + float(found[0]), (gradient + found[1:]).numpy()

    found = minimize(objective, np.zeros(head.classes), jac=True, method="L-BFGS-B", options={"gtol": 1e-6})
    return prior - torch.from_numpy(found.x)
