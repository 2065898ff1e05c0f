"""TF32 and bfloat16 decide nothing, whatever the program around allows for its own training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from posthoc_lt import METHODS, Features, FeatureSet, Head, rebalance
from posthoc_lt.evaluation import evaluate
from posthoc_lt.fitting import fit_head
from posthoc_lt.pipeline import fit
from posthoc_lt.precision import full_precision

CPU = torch.device("cpu")


@pytest.fixture
def allowing() -> Iterator[Any]:
    """Sets what matrices in float32 are multiplied in, as a training script does, for the length of the test."""
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


def close_features() -> FeatureSet:
    """Classes so close that the last bits of a logit decide."""
    rng, counts = np.random.default_rng(0), np.array([60, 25, 9, 5])
    means = rng.normal(size=(4, 256))

    def split(counts: Any) -> Features:
        y = np.repeat(np.arange(4), counts)
        return Features(torch.tensor(means[y] + 3 * rng.normal(size=(len(y), 256))).float(), torch.tensor(y))

    head = Head(torch.tensor(means[:1] + 1e-3 * means).float(), torch.linspace(1e-3, 0, 4))
    return FeatureSet(head, split(counts), split([40] * 4), split([40] * 4))


class Allowed(TorchFunctionMode):
    """Notes every product of matrices in float32 that may be made in less."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.loose = 0, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("addmm", "mm", "matmul", "__matmul__", "linear", "bmm", "einsum"):
            self.products += 1
            tensors = [each for each in args if isinstance(each, torch.Tensor)]
            if any(each.dtype == torch.float32 for each in tensors) and not _exact():
                self.loose.add(name)
        return func(*args, **(kwargs or {}))


def _exact() -> bool:
    switches = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    told = {getattr(switch, "fp32_precision", "ieee") for switch in switches}
    return told <= {"ieee", "none"} and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("method", METHODS)
def test_no_product_of_a_fit_or_a_search_is_made_in_less(allowing: Any, method: str) -> None:
    allowing("medium")
    features = close_features()
    with torch.autocast("cpu", torch.bfloat16), Allowed() as seen:
        fit(method, features)
    assert seen.products > 0
    assert seen.loose == set()


def surroundings() -> dict[str, tuple[str, AbstractContextManager[object]]]:
    return {
        "high": ("high", nullcontext()),
        "medium": ("medium", nullcontext()),
        "autocast": ("highest", torch.autocast("cpu", torch.bfloat16)),
    }


@pytest.mark.parametrize("around", ["high", "medium", "autocast"])
def test_what_is_chosen_is_the_same_to_the_bit(allowing: Any, around: str) -> None:
    features = close_features()
    names = ["logit-adjust", "tau-norm", "crt", "lda", "ridge"]
    alone = rebalance(features, methods=names, device=CPU)
    precision, block = surroundings()[around]
    allowing(precision)
    with block:
        other = rebalance(features, methods=names, device=CPU)
        head = fit_head(features.train)
    assert torch.get_float32_matmul_precision() == precision
    assert not torch.is_autocast_enabled("cpu")
    assert (other.method, other.knobs) == (alone.method, alone.knobs)
    for one, two in zip(alone.fitted, other.fitted, strict=True):
        assert torch.equal(one.head.weight, two.head.weight), one.name
        assert torch.equal(one.head.bias, two.head.bias), one.name
        assert one.test is not None
        assert two.test is not None
        assert torch.equal(one.test.predicted, two.test.predicted), one.name
    allowing("highest")
    assert torch.equal(fit_head(features.train).weight, head.weight)


def test_bfloat16_would_have_decided() -> None:
    """Else the tests above could not fail: in bfloat16 the same logits have other winners."""
    features = close_features()
    assert features.val is not None
    x, head = features.val.x, features.head
    exact = evaluate(head, features.val, features.counts).predicted
    with torch.autocast("cpu", torch.bfloat16):
        loose = torch.addmm(head.bias, x, head.weight.T).argmax(dim=1)
        assert torch.equal(evaluate(head, features.val, features.counts).predicted, exact)
    assert not torch.equal(loose, exact)


def test_what_was_set_comes_back_when_something_fails(allowing: Any) -> None:
    allowing("medium")
    with pytest.raises(RuntimeError, match="shapes"), full_precision():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert torch.get_float32_matmul_precision() == "medium"
