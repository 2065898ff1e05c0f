"""Class frequencies that no file holds: a deployment's, from unlabelled samples, and the network's own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posthoc_lt.calibration import calibrate, correct_bias
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.priors import PSEUDO_COUNT, Shares, ZeroCount, log_prior
from posthoc_lt.search import stratified_folds
from posthoc_lt.shift import EstimatedPrior, estimate_prior, model_prior

JACKKNIFE = 10
"""Parts of validation, each left out once to see how far the calibration is known."""


def deployment_prior(
    features: FeatureSet, samples: Features, *, head: Head | None = None, zero_count: ZeroCount = "refuse"
) -> EstimatedPrior:
    """The class frequencies of a deployment, from samples of it whose labels nobody knows.

    The head is calibrated on val first, class by class (`posthoc_lt.calibration.correct_bias`), for posteriors that
    are not calibrated say nothing about frequencies; then see `posthoc_lt.shift.estimate_prior`, past 100 classes
    regularised. Its interval holds the chance in the samples and, by the jackknife of 10 parts of val, each left out of
    the calibration once, var = 9/10 Σ(ρ_(k) − ρ̄)², that in the calibration, which on small validation sets is the
    larger.

    Args:
        features: the train counts, the head, and a labelled val to calibrate on.
        samples: of the deployment, extracted from the same checkpoint; labels are not looked at.
        head: the head whose posteriors are used; the untouched one by default.
        zero_count: for classes without a train sample, as for logit adjustment.

    Raises:
        PosthocError: there is no labelled val, a class has no train sample, or the samples do not tell
            the classes' frequencies apart.
    """
    val = features.val
    if val is None or val.y is None or not len(val):
        raise PosthocError(
            "features without a labelled validation split",
            "validation samples to calibrate on, without which unlabelled samples say nothing about frequencies",
            "extract again with a val/ folder, or give the frequencies in a file",
        )
    prior, used = log_prior(features.counts, zero_count), head or features.head
    if zero_count == "mask":
        used = used.masking(features.counts.to(used.weight.device) == 0)

    def estimate(val: Features, variance: Tensor | None = None) -> EstimatedPrior:
        calibration = calibrate(used, val, prior)
        corrected = correct_bias(used, val, prior, calibration)
        fitted = replace(calibration, prior_strength=1.0)
        return estimate_prior(used, samples, corrected, calibration=fitted, variance=variance)

    fold = stratified_folds(val.labels, min(JACKKNIFE, len(val)))
    if len(val) == 1:
        return estimate(val)
    parts = range(int(fold.max()) + 1)
    without = torch.stack([estimate(val.subset((fold != part).nonzero().flatten())).prior for part in parts])
    return estimate(val, without.var(dim=0, correction=0) * (len(parts) - 1))


def estimated_shares(found: EstimatedPrior) -> Shares:
    """An estimate as a method takes it, a class without any sample like it counted as half a sample."""
    return Shares(tuple(found.prior.clamp(min=PSEUDO_COUNT / found.samples).tolist()), "em")


def network_shares(features: FeatureSet) -> Shares:
    """The network's own class frequencies, from its confusions on val; see `posthoc_lt.shift.model_prior`.

    Raises:
        PosthocError: there is no labelled val, or it lacks a class.
    """
    if features.val is None or features.val.y is None or not len(features.val):
        raise PosthocError(
            "features without a labelled validation split",
            "validation samples of every class, on which the network's own frequencies show",
            "extract again with a val/ folder, or take the train counts as prior",
        )
    return Shares(tuple(model_prior(features.head, features.val).tolist()), "model")
