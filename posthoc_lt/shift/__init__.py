"""Label shift: which class frequencies a deployment has, and which ones a network has made its own."""

from posthoc_lt.shift.deployment import CONCENTRATION, Calibrated, EstimatedPrior, estimate_prior
from posthoc_lt.shift.network import model_prior

__all__ = ["CONCENTRATION", "Calibrated", "EstimatedPrior", "estimate_prior", "model_prior"]
