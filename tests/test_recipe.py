"""The papers' SGD, step for step against a plain loop of torch's own parts, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from posthoc_lt import losses
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.priors import log_prior
from posthoc_lt.recipe import CRT_SCHEDULE, LWS_SCHEDULE, Schedule, sgd, sgd_scales
from posthoc_lt.sampling import ClassAwareSampler, InstanceBalancedSampler

N, D, C = (50, 20, 8), 6, 3
SHORT = Schedule(epochs=4, batch=16, lr=0.3, weight_decay=0.01)


def made(dtype: torch.dtype = torch.float64) -> Features:
    generator = torch.Generator().manual_seed(0)
    y = torch.repeat_interleave(torch.arange(C), torch.tensor(N))
    x = torch.randn(len(y), D, generator=generator, dtype=torch.float64)
    x[torch.arange(len(y)), y] += 2
    return Features(x.to(dtype), y)


def start(seed: int = 1) -> Head:
    generator = torch.Generator().manual_seed(seed)
    return Head(torch.randn(C, D, generator=generator).double(), torch.randn(C, generator=generator).double())


def plain_loop(model: nn.Module, features: Features, schedule: Schedule, sampler: ClassAwareSampler) -> None:
    """Stage two as anyone would write it: DataLoader, SGD, the authors' cosine, ⌊N/batch⌋ steps an epoch."""
    loader = DataLoader(
        TensorDataset(features.x, features.labels), batch_size=schedule.batch, sampler=sampler, drop_last=True
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1.0, momentum=0.9, weight_decay=schedule.weight_decay)
    for epoch in range(1, schedule.epochs + 1):
        sampler.set_epoch(epoch - 1)
        optimiser.param_groups[0]["lr"] = 0.5 * schedule.lr * (1 + math.cos(math.pi * epoch / schedule.epochs))
        steps = 0
        for x, y in loader:
            optimiser.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(x), y))
            optimiser.step()
            steps += 1
        assert steps == len(features) // schedule.batch


class Scaled(nn.Module):
    """The authors' form of LWS: a frozen linear layer, its outputs times a vector that starts at 1."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.scales = nn.Parameter(torch.ones(C, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T + self.bias) * self.scales


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_every_epoch_is_that_of_a_plain_loop(epochs: int) -> None:
    # A schedule cut short: the same peak rate, so that all four together see every step.
    schedule = Schedule(epochs=epochs, batch=16, lr=0.3, weight_decay=0.01)
    features, head = made(), start()
    linear = nn.Linear(D, C).double()
    linear.weight.data, linear.bias.data = head.weight.clone(), head.bias.clone()
    plain_loop(linear, features, schedule, ClassAwareSampler(features.labels, seed=5))
    fitted = sgd(features, C, schedule=schedule, start=head, dtype=torch.float64, seed=5)
    torch.testing.assert_close(fitted.weight, linear.weight.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fitted.bias, linear.bias.detach(), rtol=1e-12, atol=1e-12)


def test_scales_are_those_of_a_plain_loop() -> None:
    features, head = made(), start()
    model = Scaled(head)
    plain_loop(model, features, SHORT, ClassAwareSampler(features.labels, seed=5))
    fitted = sgd_scales(features, head, schedule=SHORT, dtype=torch.float64, seed=5)
    scales = model.scales.detach()
    assert (scales - 1).abs().min() > 1e-3
    torch.testing.assert_close(fitted.weight, scales[:, None] * head.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fitted.bias, scales * head.bias, rtol=1e-12, atol=1e-12)


def test_steps_by_hand_with_momentum_decay_and_a_loss_of_ones_own() -> None:
    features, head = made(), start()
    schedule = Schedule(epochs=3, batch=20, lr=0.2, momentum=0.8, weight_decay=0.05)
    sampler = InstanceBalancedSampler(features.labels, seed=7)
    prior = np.log(np.array(N) / sum(N))
    x, y = features.x.numpy(), features.labels.numpy()
    point = np.concatenate([head.weight.numpy(), head.bias.numpy()[:, None]], axis=1)
    velocity = np.zeros_like(point)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        index = np.array(list(sampler))
        for batch in index[: len(index) // 20 * 20].reshape(-1, 20):
            inputs = np.concatenate([x[batch], np.ones((20, 1))], axis=1)
            scores = inputs @ point.T + prior
            p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            p[np.arange(20), y[batch]] -= 1
            velocity = 0.8 * velocity + p.T @ inputs / 20 + 0.05 * point
            point = point - 0.1 * (1 + math.cos(math.pi * (epoch + 1) / 3)) * velocity
    fitted = sgd(
        features,
        C,
        schedule=schedule,
        sampler=sampler,
        loss=losses.LogitAdjusted(log_prior(torch.tensor(N))),
        start=head,
        dtype=torch.float64,
    )
    np.testing.assert_allclose(fitted.weight.numpy(), point[:, :-1], rtol=1e-11)
    np.testing.assert_allclose(fitted.bias.numpy(), point[:, -1], rtol=1e-11)


def test_the_last_epoch_changes_nothing() -> None:
    head = start()
    fitted = sgd(made(), C, schedule=Schedule(epochs=1, batch=16), start=head, dtype=torch.float64)
    assert torch.equal(fitted.weight, head.weight)
    assert torch.equal(sgd_scales(made(), head, schedule=Schedule(epochs=1), dtype=torch.float64).weight, head.weight)


def test_the_authors_settings() -> None:
    assert Schedule(epochs=10, batch=512, lr=0.2, momentum=0.9, weight_decay=5e-4) == CRT_SCHEDULE
    assert Schedule(epochs=5, batch=512, lr=0.2, momentum=0.9, weight_decay=5e-4) == LWS_SCHEDULE
    assert [CRT_SCHEDULE.rate(e) for e in (5, 10)] == [pytest.approx(0.1), 0.0]


def test_a_fresh_head_is_drawn_as_torch_draws_a_linear_layer() -> None:
    y = torch.arange(500)
    features = Features(torch.zeros(500, 400), y)
    fresh = sgd(features, 500, schedule=Schedule(epochs=1), seed=3)  # one epoch, at rate 0
    linear = nn.Linear(400, 500)
    for ours, theirs in ((fresh.weight, linear.weight), (fresh.bias, linear.bias)):
        assert ours.abs().max() <= 400**-0.5
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
        assert ours.mean().abs() < 5 * ours.std() / len(ours.flatten()) ** 0.5
    assert not torch.equal(sgd(features, 500, schedule=Schedule(epochs=1), seed=4).weight, fresh.weight)


def test_the_seed_decides_every_bit_and_the_global_generator_is_left_alone() -> None:
    features = made(torch.float32)
    torch.manual_seed(0)
    first, state = sgd(features, C, schedule=SHORT, seed=1), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    again, other = sgd(features, C, schedule=SHORT, seed=1), sgd(features, C, schedule=SHORT, seed=2)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.dtype == torch.float32


def test_memory_mapped_half_precision_features(tmp_path: Path) -> None:
    features = made(torch.float16)
    stored = np.memmap(tmp_path / "x", np.float16, "w+", shape=tuple(features.x.shape))
    stored[:] = features.x.numpy()
    mapped = Features(torch.from_numpy(stored), features.labels)
    expected = Features(features.x.float(), features.labels)
    assert torch.equal(sgd(mapped, C, schedule=SHORT).weight, sgd(expected, C, schedule=SHORT).weight)


def test_fewer_samples_than_a_batch_make_one_step_an_epoch() -> None:
    features, head = made(), start()
    whole = Schedule(epochs=4, batch=len(features))
    fitted = sgd(features, C, schedule=Schedule(epochs=4), start=head, dtype=torch.float64)
    assert torch.equal(fitted.weight, sgd(features, C, schedule=whole, start=head, dtype=torch.float64).weight)
    assert not torch.equal(fitted.weight, head.weight)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": float("inf")}, {"momentum": 1.0}, {"weight_decay": -1.0}],
)
def test_schedules_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PosthocError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Schedule(**wrong)


def test_features_that_do_not_do_are_refused() -> None:
    features = made()
    other = ClassAwareSampler(features.labels[1:])
    nan = Features(torch.full_like(features.x, float("nan")), features.labels)
    with pytest.raises(PosthocError, match="a split without labels"):
        sgd(Features(features.x), C)
    with pytest.raises(PosthocError, match="no labelled sample"):
        sgd(Features(features.x[:0], features.labels[:0]), C)
    with pytest.raises(PosthocError, match="label 2 for a head of 2 classes"):
        sgd(features, 2)
    with pytest.raises(PosthocError, match="no train sample of class 3, 4"):
        sgd(features, 5)
    with pytest.raises(PosthocError, match="3 classes to start from for 4 classes"):
        sgd(features, 4, start=start())
    with pytest.raises(PosthocError, match="features of 6 dimensions for a head of 2"):
        sgd_scales(features, Head(torch.ones(C, 2), torch.zeros(C)))
    with pytest.raises(PosthocError, match="a sampler of 77 samples for 78 features"):
        sgd(features, C, sampler=other)
    with pytest.raises(PosthocError, match="NaN or infinite"):
        sgd(nan, C, schedule=SHORT)
    with pytest.raises(PosthocError, match=r"lr = 1e\+30"):
        sgd_scales(features, start(), schedule=Schedule(lr=1e30))
