"""Choosing a knob on validation data: exact intervals, the step curve they add up to, the rule."""

from posthoc_lt.choices import RULES, UTILITY, WEIGHTED
from posthoc_lt.family import BOUNDS
from posthoc_lt.search.choose import Choice, choose, misses
from posthoc_lt.search.crossfit import cross_fit
from posthoc_lt.search.curve import Curve, step_curve
from posthoc_lt.search.figures import FIGURES, Constraint, value
from posthoc_lt.search.folds import stratified_folds
from posthoc_lt.search.goal import Goal
from posthoc_lt.search.intervals import Intervals, winning_intervals
from posthoc_lt.search.pareto import Trade, pareto
from posthoc_lt.search.unlabelled import match_prior

__all__ = [
    "BOUNDS",
    "FIGURES",
    "RULES",
    "UTILITY",
    "WEIGHTED",
    "Choice",
    "Constraint",
    "Curve",
    "Goal",
    "Intervals",
    "Trade",
    "choose",
    "cross_fit",
    "match_prior",
    "misses",
    "pareto",
    "step_curve",
    "stratified_folds",
    "value",
    "winning_intervals",
]
