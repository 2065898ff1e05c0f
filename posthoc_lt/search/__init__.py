"""Choosing a knob on validation data: exact intervals, the step curve they add up to, the rule."""

from posthoc_lt.search.choose import METRICS, RULES, Choice, check_selection, choose
from posthoc_lt.search.crossfit import cross_fit, stratified_folds
from posthoc_lt.search.curve import Curve, step_curve
from posthoc_lt.search.intervals import Intervals, winning_intervals

__all__ = [
    "METRICS",
    "RULES",
    "Choice",
    "Curve",
    "Intervals",
    "check_selection",
    "choose",
    "cross_fit",
    "step_curve",
    "stratified_folds",
    "winning_intervals",
]
