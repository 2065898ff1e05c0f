"""Heads of other forms: 1×1 convolutions, pooled heads, two heads averaged, cosine classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posthoc_lt.checkpoint import HeadForm, capture, find_head, fold, read, stored_head
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import apply
from posthoc_lt.head import Head

X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class PooledConv(nn.Module):
    """`first`: pool, then a 1×1 convolution; else the convolution at every position, then pool."""

    def __init__(self, first: bool, bias: bool = True) -> None:
        super().__init__()
        self.first = first
        self.body = nn.Conv2d(3, 5, 3)
        self.classify = nn.Conv2d(5, 4, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).relu()
        if self.first:
            return torch.flatten(self.classify(F.adaptive_avg_pool2d(x, 1)), 1)
        return torch.flatten(F.adaptive_avg_pool2d(self.classify(x), 1), 1)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x.flatten(2).transpose(1, 2))
        logits: Tensor = scores.mean(dim=1)
        return logits


class Distilled(nn.Module):
    """As DeiT's distilled transformers answer in evaluation."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4, bias=bias)
        self.head_dist = nn.Linear(7, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        logits: Tensor = (self.head(x[:, :5]) + self.head_dist(x[:, 5:12])) / 2
        return logits


class Cosine(nn.Module):
    def __init__(self, scale: float, columns: bool, width: int = 48) -> None:
        super().__init__()
        self.scale, self.columns = scale, columns
        self.weight = nn.Parameter(torch.randn((width, 4) if columns else (4, width)))

    def forward(self, x: Tensor) -> Tensor:
        w = F.normalize(self.weight, dim=0) if self.columns else F.normalize(self.weight, dim=1).T
        logits: Tensor = self.scale * (F.normalize(x, dim=1) @ w)
        return logits


class Squashed(Cosine):
    """As open long-tailed recognition's CosNorm_Classifier (1904.05160) computes."""

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.norm(x.clone(), 2, 1, keepdim=True)
        ex = (norm / (1 + norm)) * (x / norm)
        return torch.mm(self.scale * ex, (self.weight / torch.norm(self.weight, 2, 1, keepdim=True)).t())


class Scaled(nn.Module):
    """As LWS in classifier-balancing (1910.09217), in place, or in MiSLAS (2104.00466), with its (1, C) factors."""

    def __init__(self, inplace: bool, bias: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.fc = nn.Linear(48, 4, bias=bias)
        self.scales = nn.Parameter(torch.rand(4) + 0.5 if inplace else torch.rand(1, 4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1))
        if self.inplace:
            x *= self.scales
            return x
        return self.scales * x


def cosine(scale: float, columns: bool) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Cosine(scale, columns))


NETS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "conv after pooling": (lambda: PooledConv(True), "classify", 5),
    "conv without bias": (lambda: PooledConv(True, bias=False), "classify", 5),
    "conv before pooling": (lambda: PooledConv(False), "classify", 5),
    "linear on tokens": (Tokens, "head", 3),
    "distilled": (Distilled, "head+head_dist", 12),
    "distilled without bias": (lambda: Distilled(bias=False), "head+head_dist", 12),
    "cosine": (lambda: cosine(16.0, False), "cosine:1", 48),
    "cosine columns": (lambda: cosine(1.0, True), "cosine-columns:1", 48),
    "squashed cosine": (lambda: nn.Sequential(nn.Flatten(), Squashed(16.0, False)), "squashed-cosine:1", 48),
    "factors, in place": (lambda: Scaled(True), "fc*scales", 48),
    "factors": (lambda: Scaled(False), "fc*scales", 48),
    "factors without bias": (lambda: Scaled(False, bias=False), "fc*scales", 48),
}


def network(case: str) -> nn.Module:
    torch.manual_seed(0)
    return NETS[case][0]().eval().requires_grad_(False)


@pytest.mark.parametrize("case", NETS)
def test_the_head_is_found_and_gives_the_logits_in_float64(case: str) -> None:
    net = network(case)
    located = find_head(net, X)
    assert located.name == NETS[case][1]
    assert located.head.dimensions == NETS[case][2]
    with capture(net, located.name) as run:
        features, logits = run(X)
    assert torch.equal(logits, net(X))
    head = located.head
    again = features.double() @ head.weight.double().T + head.bias.double()
    assert torch.allclose(again, net.double()(X.double()), rtol=1e-5, atol=1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("case", [case for case in NETS if "cosine" not in case])
def test_a_new_head_is_what_the_network_then_computes(tmp_path: Path, case: str) -> None:
    net = network(case)
    located = find_head(net, X)
    torch.manual_seed(1)
    weight = torch.randn_like(located.head.weight)
    new = Head(weight, torch.randn(4)) if located.head.has_bias else Head.without_bias(weight)
    with capture(net, located.name) as run:
        features, _ = run(X)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt")
    content = fold(checkpoint, located.name, new)
    assert isinstance(content, dict)
    net.load_state_dict(content["state_dict"])
    for patched in (net, apply(network(case), located.name, new)):
        assert torch.allclose(patched(X), new(features), rtol=1e-5, atol=1e-5)
    stored = stored_head(checkpoint, located.name, new)
    exact = 0.0 if "factors" not in case else 1e-6  # divided by them in float32, and multiplied again
    torch.testing.assert_close(stored.weight, new.weight, rtol=exact, atol=0)
    torch.testing.assert_close(stored.bias, new.bias, rtol=exact, atol=0)


@pytest.mark.parametrize("case", ["cosine", "cosine columns", "squashed cosine"])
def test_a_cosine_layer_holds_a_head_of_equal_norms_and_no_other(case: str) -> None:
    net = network(case)
    located = find_head(net, X)
    scale = 1.0 if "columns" in case else 16.0
    assert torch.allclose(located.head.weight.norm(dim=1), torch.full((4,), scale), rtol=1e-5)
    turned = Head.without_bias(located.head.weight.flip(0))
    with capture(net, located.name) as run:
        features, _ = run(X)
    norm = X.flatten(1).norm(dim=1)
    assert torch.allclose(features.norm(dim=1), norm / (1 + norm) if "squashed" in case else torch.ones(6))
    assert torch.allclose(apply(net, located.name, turned)(X), turned(features), rtol=1e-5, atol=1e-5)
    uneven = turned.weight * torch.tensor([1.0, 2.0, 1.0, 1.0])[:, None]
    for head in (Head.without_bias(uneven), Head(turned.weight, torch.ones(4))):
        with pytest.raises(PosthocError, match=r"cosine layer 1.*head file"):
            apply(net, located.name, head)


def test_a_factor_of_nothing_takes_no_head() -> None:
    net = network("factors, in place")
    located = find_head(net, X)
    with torch.no_grad():
        net.get_parameter("scales")[1] = 0
    with pytest.raises(PosthocError, match="a factor of 0 in scales"):
        apply(net, located.name, located.head)


def test_a_convolution_followed_by_a_nonlinearity_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(PosthocError, match=r"no layer gives.*0 \(3 → 4\); 0 has as many outputs, but something after"):
        find_head(net, X)


@pytest.mark.parametrize("name", ["fc", "a+b", "cosine:fc", "cosine-columns:a.b", "squashed-cosine:a", "a.b*c.d"])
def test_names_are_read_as_written(name: str) -> None:
    assert str(HeadForm.parse(name)) == name


def test_an_added_bias_goes_into_every_averaged_head() -> None:
    net = network("distilled without bias")
    located = find_head(net, X)
    new = Head(located.head.weight, torch.arange(4.0))
    with pytest.raises(PosthocError, match="--add-bias"):
        apply(net, located.name, new)
    assert torch.allclose(apply(net, located.name, new, add_bias=True)(X), net(X) + new.bias, atol=1e-6)
