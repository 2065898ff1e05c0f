"""Losses for imbalanced classes, for any training loop: functions, and the same as modules.

They take class weights and log priors as tensors, which `posthoc_lt.priors` makes from class counts:

>>> import torch
>>> from posthoc_lt.priors import effective_number_weights, log_prior
>>> counts = torch.tensor([90, 10])
>>> adjusted = LogitAdjusted(log_prior(counts))
>>> focal = ClassBalanced(effective_number_weights(counts, beta=0.99), kind="focal")
"""

from posthoc_lt.losses.class_balanced import (
    ClassBalanced,
    Kind,
    class_balanced,
    initialise_bias,
    parameter_groups,
)
from posthoc_lt.losses.cross_entropy import CrossEntropy, cross_entropy
from posthoc_lt.losses.equalised import Equalised, equalised
from posthoc_lt.losses.label_aware_smoothing import LabelAwareSmoothing, label_aware_smoothing
from posthoc_lt.losses.ldam import LDAM, ldam
from posthoc_lt.losses.logit_adjusted import LogitAdjusted, logit_adjusted
from posthoc_lt.losses.pairwise_margin import PairwiseMargin, pairwise_margin
from posthoc_lt.losses.reduction import Reduction
from posthoc_lt.losses.vector_scaling import VectorScaling, vector_scaling

__all__ = [
    "LDAM",
    "ClassBalanced",
    "CrossEntropy",
    "Equalised",
    "Kind",
    "LabelAwareSmoothing",
    "LogitAdjusted",
    "PairwiseMargin",
    "Reduction",
    "VectorScaling",
    "class_balanced",
    "cross_entropy",
    "equalised",
    "initialise_bias",
    "label_aware_smoothing",
    "ldam",
    "logit_adjusted",
    "pairwise_margin",
    "parameter_groups",
    "vector_scaling",
]
