"""From features to a rebalanced head: fit, choose, compare."""

from posthoc_lt.pipeline.fit import Fitted, fit
from posthoc_lt.pipeline.rebalance import compare, rebalance
from posthoc_lt.pipeline.result import Comparison, Result
from posthoc_lt.pipeline.source import as_features

__all__ = ["Comparison", "Fitted", "Result", "as_features", "compare", "fit", "rebalance"]
