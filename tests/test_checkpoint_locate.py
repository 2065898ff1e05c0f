"""The head is found by proof, in networks of many shapes, and not found where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import capture, find_head
from posthoc_lt.checkpoint.locate import difference
from posthoc_lt.errors import PosthocError


class Output(dict[str, Tensor]):
    """As Hugging Face models answer: a mapping with attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Net(nn.Module):
    """Two linear layers of equal size, of which `last` makes the output, whatever their order of definition."""

    def __init__(self, last: str = "b", finish: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.b = nn.Linear(5, 5)
        self.a = nn.Linear(5, 5)
        self.unused = nn.Linear(5, 5)
        self.last, self.finish = last, finish

    def forward(self, x: Tensor) -> Any:
        first = "a" if self.last == "b" else "b"
        hidden = self.get_submodule(first)(x.flatten(1)).relu()
        return self.finish(self.get_submodule(self.last)(hidden))


X = torch.randn(4, 1, 5)


@pytest.mark.parametrize("last", ["a", "b"])
@pytest.mark.parametrize(
    "finish",
    [lambda z: z, lambda z: Output(logits=z), lambda z: {"logits": z}, lambda z: z.view(-1, 5), lambda z: z + 0],
)
def test_the_layer_that_gives_the_output_is_found(last: str, finish: Callable[[Tensor], Any]) -> None:
    net = Net(last, finish).eval()
    located = find_head(net, X)
    layer = net.get_submodule(last)
    assert located.name == last
    assert torch.equal(located.head.weight, layer.get_parameter("weight"))
    assert torch.equal(located.head.bias, layer.get_parameter("bias"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_head_without_bias_says_so() -> None:
    head = find_head(nn.Sequential(nn.Flatten(), nn.Linear(5, 3, bias=False)), X).head
    assert not head.has_bias
    assert not head.bias.any()


def test_the_located_head_is_a_copy() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    head = find_head(net, X).head
    before = head.weight.clone()
    nn.init.zeros_(net.get_parameter("1.weight"))
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize(
    "finish",
    [lambda z: z.softmax(1), lambda z: 16 * z, lambda z: z.div_(2), lambda z: z[:, :4], lambda z: z.flip(1)],
    ids=["softmax", "scaled", "scaled in place", "cut", "turned"],
)
def test_an_output_that_no_layer_gives_lists_the_candidates(finish: Callable[[Tensor], Any]) -> None:
    with pytest.raises(PosthocError) as caught:
        find_head(Net("b", finish).eval(), X)
    assert "unused (5 → 5), a (5 → 5), b (5 → 5)" in str(caught.value)


def test_a_network_without_linear_layers() -> None:
    with pytest.raises(PosthocError, match="linear layers: none"):
        find_head(nn.Sequential(nn.Flatten(), nn.ReLU()), X)


@pytest.mark.parametrize("finish", [lambda z: (z, z), lambda z: z[:, :, None], lambda z: {"scores": z}])
def test_an_output_of_another_form(finish: Callable[[Tensor], Any]) -> None:
    with pytest.raises(PosthocError, match="logits of shape"):
        find_head(Net("b", finish).eval(), X)


def test_inputs_that_the_network_does_not_take() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(PosthocError, match=r"inputs of shape \(2, 7\).*--input-size") as caught:
        find_head(net, torch.zeros(2, 7))
    assert "\n" not in str(caught.value)


def test_capture_gives_what_the_head_reads() -> None:
    net = Net("b").eval()
    with capture(net, "b") as run:
        features, logits = run(X)
        again, _ = run(X[:2])
    hidden = net.a(X.flatten(1)).relu()
    assert torch.equal(features, hidden)
    assert torch.equal(again, hidden[:2])
    assert torch.equal(logits, net(X))
    assert not net.b._forward_pre_hooks


def test_capture_takes_keyword_inputs_and_leaves_no_hook_after_an_error() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(input=x)
            return logits

    net = Keyword()
    with capture(net, "fc") as run:
        assert torch.equal(run(X[:, 0])[0], X[:, 0])
    with pytest.raises(PosthocError), capture(net, "fc") as run:
        run(torch.zeros(2, 9))
    assert not net.fc._forward_pre_hooks


def test_a_head_that_does_not_run_is_refused() -> None:
    net = Net("b").eval()
    with pytest.raises(PosthocError, match="layer unused"), capture(net, "unused") as run:
        run(X)


def test_difference_is_relative_to_the_largest_logit() -> None:
    assert difference(torch.tensor([[1.0, -10.0]]), torch.tensor([[1.5, -10.0]])) == 0.05
