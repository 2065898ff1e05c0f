"""Probabilities one can act on: scale and prior strength fitted jointly, and how well they hold."""

from posthoc_lt.calibration.bias import correct_bias
from posthoc_lt.calibration.fit import SCALE_PRIOR, STRENGTH_PRIOR, Calibration, calibrate
from posthoc_lt.calibration.probability import probability_head
from posthoc_lt.calibration.report import CalibrationReport, calibration_report

__all__ = [
    "SCALE_PRIOR",
    "STRENGTH_PRIOR",
    "Calibration",
    "CalibrationReport",
    "calibrate",
    "calibration_report",
    "correct_bias",
    "probability_head",
]
