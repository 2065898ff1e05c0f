"""Conformal prediction sets whose coverage reaches the tail."""

from posthoc_lt.choices import KINDS
from posthoc_lt.conformal.sets import SetReport, evaluate_sets, prediction_sets
from posthoc_lt.conformal.side_car import FORMAT, load_thresholds, save_thresholds
from posthoc_lt.conformal.thresholds import Thresholds, fit_thresholds

__all__ = [
    "FORMAT",
    "KINDS",
    "SetReport",
    "Thresholds",
    "evaluate_sets",
    "fit_thresholds",
    "load_thresholds",
    "prediction_sets",
    "save_thresholds",
]
