"""Full-batch fitting on cached features: a certified minimiser, and the convex problems that methods solve by it."""

from posthoc_lt.solver.logistic import fit_logistic
from posthoc_lt.solver.minimise import minimise
from posthoc_lt.solver.moments import Moments, moments
from posthoc_lt.solver.penalties import L2_PATH, Certified, Solution, path, penalties
from posthoc_lt.solver.scaling import fit_scaling

__all__ = [
    "L2_PATH",
    "Certified",
    "Moments",
    "Solution",
    "fit_logistic",
    "fit_scaling",
    "minimise",
    "moments",
    "path",
    "penalties",
]
