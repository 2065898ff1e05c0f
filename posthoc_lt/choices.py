"""Words and numbers that the command line offers: apart from what they stand for, so that help costs no torch."""

GROUPS = ("many", "medium", "few")
"""The groups of classes, from the head of the distribution to its tail."""

WEIGHTED = "weighted-accuracy"
"""The metric whose class weights a `posthoc_lt.search.Goal` brings along."""

UTILITY = "utility"
"""The metric whose costs a `posthoc_lt.search.Goal` brings along."""

METRICS = (
    "balanced-accuracy",
    "accuracy",
    WEIGHTED,
    UTILITY,
    "macro-f1",
    "g-mean",
    "harmonic-mean",
    "worst-class",
    *GROUPS,
)
"""What validation can choose by: the names of `posthoc_lt.search.FIGURES`, in its order."""

RULES = ("guarded", "nll", "metric", "cross-fit")
"""How it chooses; see `posthoc_lt.search.choose`."""

KINDS = ("marginal", "classwise", "interpolated", "prevalence")
"""The kinds of prediction sets.

- ``marginal``: one floor from all samples. Covers 1 − α of samples like these, most of them of frequent classes.
- ``classwise``: a floor a class from its own samples. Covers 1 − α of *every* class, whatever the frequencies met
  later; a class without enough samples is in every set.
- ``interpolated``: ``weight·classwise + (1 − weight)·marginal`` (Interp-Q of Ding 2025, arXiv:2507.06867): far
  smaller sets already at weights just below 1. Covers 1 − 2α at least, by the union bound, mostly near 1 − α.
- ``prevalence``: one floor on p(y|x)/p(y) (PAS, same paper), which for a given size of sets serves the mean
  coverage of classes best. Covers 1 − α like ``marginal``.
"""

L2 = 1e-2
"""The penalty of a fitted head where none is given."""
