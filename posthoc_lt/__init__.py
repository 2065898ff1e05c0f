"""Rebalance a trained long-tailed classifier without retraining it.

Names load on first use, so that the command line starts without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posthoc_lt import losses
    from posthoc_lt.errors import PosthocError
    from posthoc_lt.evaluation import Evaluation, evaluate
    from posthoc_lt.extraction import extract
    from posthoc_lt.features import Features, FeatureSet
    from posthoc_lt.files import load_features, load_head, save_features, save_head
    from posthoc_lt.head import Head
    from posthoc_lt.methods import METHODS
    from posthoc_lt.pipeline.fit import Fitted, fit
    from posthoc_lt.pipeline.rebalance import compare, rebalance
    from posthoc_lt.pipeline.result import Comparison, Result

__version__ = "0.1.0"

_HOMES = {
    "Comparison": "pipeline",
    "Evaluation": "evaluation",
    "FeatureSet": "features",
    "Fitted": "pipeline",
    "fit": "pipeline",
    "Features": "features",
    "Head": "head",
    "METHODS": "methods",
    "PosthocError": "errors",
    "Result": "pipeline",
    "compare": "pipeline",
    "evaluate": "evaluation",
    "extract": "extraction",
    "load_features": "files",
    "load_head": "files",
    "rebalance": "pipeline",
    "save_features": "files",
    "save_head": "files",
}

__all__ = [
    "METHODS",
    "Comparison",
    "Evaluation",
    "FeatureSet",
    "Features",
    "Fitted",
    "Head",
    "PosthocError",
    "Result",
    "compare",
    "evaluate",
    "extract",
    "fit",
    "load_features",
    "load_head",
    "losses",
    "rebalance",
    "save_features",
    "save_head",
]


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("posthoc_lt.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'posthoc_lt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"posthoc_lt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
