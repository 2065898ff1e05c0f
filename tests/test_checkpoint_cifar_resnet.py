"""The built-in CIFAR ResNets against a formula written out over the tensors, and against the original code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_path import load
from torch import Tensor
from torch.nn import functional as F

from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, Plan, plan


def randomised(shape: Plan, seed: int = 0) -> CifarResNet:
    """A network whose every tensor matters, batch statistics too."""
    torch.manual_seed(seed)
    network = CifarResNet(shape).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(-0.5, 1)
    return network


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    scale = weight / torch.sqrt(var + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def oracle(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """He et al.'s network, layer by layer in float64 from the tensors alone."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = torch.relu(norm(state, "bn1", F.conv2d(x.double(), state["conv1.weight"], padding=1)))
    stage = 1
    while f"layer{stage}.0.conv1.weight" in state:
        block = 0
        while (name := f"layer{stage}.{block}") + ".conv1.weight" in state:
            stride = 2 if stage > 1 and block == 0 else 1
            out = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = torch.relu(norm(state, f"{name}.bn1", out))
            out = norm(state, f"{name}.bn2", F.conv2d(out, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.shortcut.0.weight" in state:
                skip = norm(state, f"{name}.shortcut.1", F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride))
            else:
                skip = torch.zeros_like(out)
                first = (out.shape[1] - x.shape[1]) // 2
                skip[:, first : first + x.shape[1]] = x[:, :, ::stride, ::stride]
            x, block = torch.relu(out + skip), block + 1
        stage += 1
    head = "fc" if "fc.weight" in state else "linear"
    x, weight = x.mean(dim=(2, 3)), state[f"{head}.weight"]
    if x.shape[1] == weight.shape[0]:  # LDAM-DRW's NormedLinear: cosines, a column a class
        cosines: Tensor = (x / x.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=0))
        return cosines
    return x @ weight.T + state.get(f"{head}.bias", torch.zeros(1))


PLANS = {
    "20, head named fc as in MiSLAS": Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset(), 10, head="fc"),
    "20, cosine as in LDAM-DRW": Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset(), 10, bias=False, cosine=True),
    "20, colour": Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset(), 10),
    "20, grey, 100 classes": Plan(1, 16, (16, 32, 64), (3, 3, 3), frozenset(), 100),
    "32": Plan(3, 16, (16, 32, 64), (5, 5, 5), frozenset(), 10),
    "44": Plan(3, 16, (16, 32, 64), (7, 7, 7), frozenset(), 10),
    "56": Plan(3, 16, (16, 32, 64), (9, 9, 9), frozenset(), 10),
    "110": Plan(3, 16, (16, 32, 64), (18, 18, 18), frozenset(), 10),
    "20, option B": Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset({"layer2.0", "layer3.0"}), 10),
    "20, twice as wide": Plan(3, 32, (32, 64, 128), (3, 3, 3), frozenset(), 10),
    "20, no bias": Plan(3, 16, (16, 32, 64), (3, 3, 3), frozenset(), 10, bias=False),
    "18, four stages": Plan(3, 8, (8, 16, 32, 64), (2, 2, 2, 2), frozenset({"layer2.0", "layer3.0", "layer4.0"}), 7),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_is_read_off_the_tensors(name: str) -> None:
    shape = PLANS[name]
    assert plan(CifarResNet(shape).state_dict()) == shape
    assert shape.depth == int(name.split(",")[0])


@pytest.mark.parametrize("name", [name for name in PLANS if name not in ("44", "56", "110")])
def test_logits_are_the_papers_formula(name: str) -> None:
    network = randomised(PLANS[name])
    x = torch.randn(3, PLANS[name].in_channels, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(x).double(), oracle(network.state_dict(), x), rtol=1e-4, atol=1e-4)


def test_the_original_codes_weights_give_the_original_codes_logits() -> None:
    module = load("fashion_lt/resnet.py")
    original: Any = module.resnet20(num_classes=6, in_channels=3).eval()
    shape = plan(original.state_dict())
    assert shape is not None
    ours = CifarResNet(shape).eval()
    ours.load_state_dict(original.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), original(x))


def test_old_checkpoints_without_batch_counters_are_known() -> None:
    shape = PLANS["20, colour"]
    state = {k: v for k, v in CifarResNet(shape).state_dict().items() if not k.endswith("num_batches_tracked")}
    assert plan(state) == shape


@pytest.mark.parametrize("spoil", ["extra", "missing", "kernel", "gap", "transposed head", "no head", "empty"])
def test_what_fits_only_nearly_is_not_taken(spoil: str) -> None:
    state = dict(CifarResNet(PLANS["20, colour"]).state_dict())
    if spoil == "extra":
        state["aux.weight"] = torch.ones(2, 2)
    elif spoil == "missing":
        del state["layer2.1.bn2.weight"]
    elif spoil == "kernel":
        state["conv1.weight"] = torch.ones(16, 3, 7, 7)
    elif spoil == "gap":
        state = {k.replace("layer1.1.", "layer1.9."): v for k, v in state.items()}
    elif spoil == "transposed head":
        state["linear.weight"] = state["linear.weight"].T
    elif spoil == "no head":
        state = {k: v for k, v in state.items() if not k.startswith("linear")}
    else:
        state = {}
    assert plan(state) is None
