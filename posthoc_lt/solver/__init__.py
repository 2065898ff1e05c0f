"""Full-batch fitting on cached features: a certified minimiser, and the convex problems that methods solve by it."""

from posthoc_lt.solver.blocks import is_large
from posthoc_lt.solver.logistic import fit_logistic, trace_logistic
from posthoc_lt.solver.minimise import minimise
from posthoc_lt.solver.moments import Moments, moments
from posthoc_lt.solver.penalties import Certified, Solution, path, penalties, solved_path
from posthoc_lt.solver.scaling import fit_scaling, trace_scaling

__all__ = [
    "Certified",
    "Moments",
    "Solution",
    "fit_logistic",
    "fit_scaling",
    "is_large",
    "minimise",
    "moments",
    "path",
    "penalties",
    "solved_path",
    "trace_logistic",
    "trace_scaling",
]
