"""Numbers at the edges: finite figures or one clear error, and float32 within its stated bound of float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc_lt import METHODS, Features, FeatureSet, Head, PosthocError
from posthoc_lt.evaluation import evaluate
from posthoc_lt.family import Path
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.pipeline import Fitted, fit
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.priors import Shares

RULES = ("guarded", "nll", "metric", "cross-fit")


@dataclass(frozen=True)
class Hard:
    """A small problem that is hard on arithmetic; x = scale·(mean of its class + noise + offset)."""

    counts: tuple[int, ...] = (7, 4, 2)
    dimensions: int = 3
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    offset: float = 0.0
    head_scale: float = 1.0
    each: int = 2
    val: tuple[int, ...] | None = None
    test: tuple[int, ...] | None = None

    def features(self) -> FeatureSet:
        rng, classes = np.random.default_rng(0), len(self.counts)
        means = rng.normal(size=(classes, self.dimensions))

        def split(counts: tuple[int, ...]) -> Features:
            y = np.repeat(np.arange(classes), counts)
            x = self.scale * (means[y] + rng.normal(size=(len(y), self.dimensions)) + self.offset)
            return Features(torch.tensor(x).to(self.dtype), torch.tensor(y))

        head = Head(torch.tensor(self.head_scale * means).float(), torch.linspace(1, -1, classes))
        each = (self.each,) * classes
        train, val, test = (split(counts) for counts in (self.counts, self.val or each, self.test or each))
        return FeatureSet(head, train, val, test)


HARD = {
    "f16 with large norms": Hard(dtype=torch.float16, scale=1.2e4),
    "f16 subnormal": Hard(dtype=torch.float16, scale=1e-7),
    "f32 subnormal": Hard(scale=1e-42),
    "f64 tiny": Hard(dtype=torch.float64, scale=1e-310),
    "f64 huge": Hard(dtype=torch.float64, scale=1e300),
    "bf16 huge": Hard(dtype=torch.bfloat16, scale=1e37),
    "one class": Hard(counts=(5,)),
    "two classes": Hard(counts=(6, 2)),
    "one dimension": Hard(dimensions=1),
    "one sample a class": Hard(counts=(1, 1, 1), each=1),
    "no validation sample": Hard(val=(0, 0, 0)),
    "one validation sample": Hard(val=(0, 1, 0)),
    "no test sample": Hard(test=(0, 0, 0)),
    "one test sample": Hard(test=(0, 0, 1)),
    "no train sample": Hard(counts=(0, 0, 0)),
    "a class without a train sample": Hard(counts=(7, 4, 0)),
    "one class, one dimension, one sample": Hard(counts=(1,), dimensions=1, each=1),
    "all logits equal": Hard(head_scale=0.0),
    "logits beyond float32": Hard(scale=1e20, head_scale=1e30),
    "head subnormal": Hard(head_scale=1e-42),
}


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from numbers(each)


def figures(fitted: Fitted) -> list[float]:
    """Every number that a fitted method shows."""
    choice = fitted.choice
    shown: list[object] = [choice.knob, choice.plateau, choice.interval, choice.best, dict(choice.outer)]
    splits = [split for split in (fitted.val, fitted.test) if split is not None]
    shown += [split.block([str(c) for c in range(split.classes)], verbose=True) for split in splits]
    return list(numbers(shown))


def either(make: Callable[[], Fitted]) -> Fitted | None:
    """What was fitted, or None for one clear error."""
    try:
        return make()
    except PosthocError:
        return None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", HARD)
def test_finite_or_one_clear_error(case: str, method: str) -> None:
    features = HARD[case].features()
    fitted = either(lambda: fit(method, features))
    if fitted is not None:
        assert all(map(math.isfinite, figures(fitted)))
        if fitted.test is not None:
            assert 0 <= fitted.test.accuracy <= 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.knob is not None])
@pytest.mark.parametrize(
    "case", ["f16 with large norms", "all logits equal", "one class", "two classes", "one validation sample"]
)
def test_every_search_is_finite_or_one_clear_error(case: str, method: str, rule: str) -> None:
    features = HARD[case].features()
    fitted = either(lambda: fit(method, features, selection=Selection(rule=rule)))
    assert fitted is None or all(map(math.isfinite, figures(fitted)))


def test_most_hard_cases_are_solved_and_not_refused() -> None:
    """Else the tests above would pass on a package that refuses everything."""
    solved = {case: either(partial(fit, "logit-adjust", HARD[case].features())) is not None for case in HARD}
    assert [case for case, done in solved.items() if not done] == [
        "f64 huge",
        "no validation sample",
        "no train sample",
        "a class without a train sample",
        "logits beyond float32",
    ]


def test_logits_that_are_infinite_are_told() -> None:
    """Finite features and a finite head, whose product float32 does not hold: no figure is made of what it gives."""
    features = HARD["logits beyond float32"].features()
    assert features.test is not None
    assert features.head(features.test.x).isinf().any()
    with pytest.raises(PosthocError, match="so large that the logits overflow"):
        evaluate(features.head, features.test, features.counts)
    for rule in RULES:
        with pytest.raises(PosthocError, match="so large that the logits overflow"):
            fit("logit-adjust", features, selection=Selection(rule=rule))


def test_equal_logits_all_go_to_the_first_class() -> None:
    """As argmax has it, in every figure; so does the search, which no knob of a norm can help."""
    features = HARD["all logits equal"].features()
    head = Head(torch.ones(3, 3), torch.zeros(3))
    flat = replace(features, head=head)
    found = fit("tau-norm", flat)
    assert found.test is not None
    assert found.test.predicted.tolist() == [0] * 6
    assert found.test.balanced_accuracy == pytest.approx(1 / 3, abs=1e-15)
    assert found.test.nll == pytest.approx(math.log(3), rel=1e-12)
    adjusted = fit("logit-adjust", flat, knob=1.0)
    assert adjusted.test is not None
    assert adjusted.test.predicted.tolist() == [2] * 6  # the rarest


@pytest.mark.parametrize("rule", RULES)
def test_a_prior_of_1e_30_through_the_whole_search(rule: str) -> None:
    """The knob is chosen on lines that are 69 apart a unit; what is deployed is b − τ log π, by the formula."""
    features = Hard(each=9).features()
    shares = (1.0, 1e-30, 1.0)
    found = fit(LogitAdjust(prior=Shares(shares)), features, selection=Selection(rule=rule))
    tau = found.choice.knob
    assert tau is not None
    assert math.isfinite(tau)
    bias = features.head.bias.double().numpy() - tau * np.log(np.array(shares) / sum(shares))
    np.testing.assert_allclose(found.head.bias.double().numpy(), bias, rtol=1e-6, atol=1e-6)
    assert found.val is not None
    assert features.val is not None
    z = features.val.x.double().numpy() @ features.head.weight.double().numpy().T + bias
    assert found.val.predicted.tolist() == z.argmax(axis=1).tolist()


def test_priors_of_1e_30() -> None:
    shares = (1e-30, 1.0, 1e30)
    head = LogitAdjust(prior=Shares(shares), target_prior=Shares((1.0, 1.0, 1.0))).fit(
        Head(torch.eye(3), torch.zeros(3)), HARD["f16 subnormal"].features().training
    )
    found = head.at(1.0).bias.double().numpy()
    expected = [-math.log(share / sum(shares)) + math.log(1 / 3) for share in shares]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_no_share_may_be_smaller_than_what_a_number_holds() -> None:
    for share in (0.0, -1e-30, math.inf, math.nan):
        with pytest.raises(PosthocError, match="has none"):
            Shares((share, 1.0))
    assert Shares((5e-324, 1.0)).log(2).isfinite().all()


# float32 against float64

Array: TypeAlias = npt.NDArray[np.float64]
UNIT = 2.0**-24
"""Half the distance from 1 to the next float32."""


def bound(head: Head, x: Array) -> Array:
    """|z₃₂ − z₆₄| ≤ γ(Σ|x w| + |b|), γ = nu/(1 − nu), n = D + 1 terms in whatever order they are summed (Higham)."""
    n = head.dimensions + 1
    gamma = n * UNIT / (1 - n * UNIT)
    w, b = head.weight.double().numpy(), head.bias.double().numpy()
    return np.asarray(gamma * (np.abs(x) @ np.abs(w).T + np.abs(b)))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    dimensions=st.sampled_from([1, 3, 64, 700]),
    scale=st.sampled_from([1e-6, 1.0, 300.0, 1e4]),
    classes=st.integers(1, 9),
)
def test_float32_logits_and_predictions_are_those_of_float64(
    seed: int, dimensions: int, scale: float, classes: int
) -> None:
    """Predictions are the same wherever the best class leads by more than the bound allows."""
    rng = np.random.default_rng(seed)
    half = torch.tensor(scale * rng.normal(size=(50, dimensions))).half()
    weight, bias = (torch.tensor(rng.normal(size=shape)).float() for shape in ((classes, dimensions), classes))
    head = Head(weight, bias)
    x = half.double().numpy()
    exact = x @ head.weight.double().numpy().T + head.bias.double().numpy()
    error = bound(head, x)
    assert (np.abs(head(half).double().numpy() - exact) <= error).all()
    y = torch.tensor(rng.integers(classes, size=50))
    predicted = evaluate(head, Features(half, y), torch.ones(classes)).predicted.numpy()
    best = exact.argmax(axis=1)
    rest = exact + error
    rest[np.arange(50), best] = -np.inf
    clear = exact[np.arange(50), best] - error[np.arange(50), best] > rest.max(axis=1)
    assert (predicted == best)[clear].all()
    if dimensions < 700 and classes > 1:
        assert clear.mean() > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_a_head_in_float32_chooses_as_in_float64(method: str) -> None:
    """The whole way, fit, search and evaluation, on f16 features of norm 1e4."""
    single = HARD["f16 with large norms"].features()
    train, val, test = (Features(split.x.double(), split.y) for split in single.splits().values())
    double = FeatureSet(single.head.to(torch.float64), train, val, test)
    one, other = fit(method, single), fit(method, double)
    if one.choice.knob is not None and not isinstance(one.family, Path):  # whose heads may be the same but for rounding
        assert one.choice.knob == pytest.approx(other.choice.knob, rel=1e-5)
    gap = (one.head.weight.double() - other.head.weight).norm() / other.head.weight.norm()
    assert float(gap) < 1e-4
    assert one.test is not None
    assert other.test is not None
    assert torch.equal(one.test.predicted, other.test.predicted)
    assert one.test.nll == pytest.approx(other.test.nll, rel=1e-4)
