"""Plots, one a file, the numbers of each prepared apart from their drawing."""

from posthoc_lt.report.plots.classes import plot_classes
from posthoc_lt.report.plots.confusion import plot_confusion
from posthoc_lt.report.plots.curve import plot_curve
from posthoc_lt.report.plots.norms import plot_norms
from posthoc_lt.report.plots.pareto import frontiers, plot_pareto
from posthoc_lt.report.plots.reliability import plot_reliability

__all__ = ["frontiers", "plot_classes", "plot_confusion", "plot_curve", "plot_norms", "plot_pareto", "plot_reliability"]
