"""Finding the classification head in a network, by proof rather than by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.head import Head

CPU_TOLERANCE = 1e-5
"""How far, relative to the largest logit, two float32 ways to the same logits may differ on a CPU."""

_CUDA_TOLERANCE = 1e-3  # TF32 keeps ten bits


@dataclass(frozen=True, eq=False)
class LocatedHead:
    """The last layer of a network: its module name, so that its weight is ``{name}.weight``, and its values."""

    name: str
    head: Head


def find_head(module: nn.Module, batch: Tensor) -> LocatedHead:
    """The linear layer whose output is the network's output, proved on one batch.

    Every `nn.Linear` is watched while the batch runs. The one whose output is the logits, and whose weight and bias
    give these logits again from its captured input, is the head.

    Args:
        module: a network in evaluation mode; it is left as it was.
        batch: a few real inputs, on the network's device.

    Raises:
        PosthocError: the network does not run on the batch, or no linear layer gives its output.

    >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 1, 2, 2)).name
    '1'
    """
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            outputs[name] = (_first(args, kwargs), output)

        return hook

    hooks = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        logits = _run(module, batch)
    finally:
        for handle in hooks:
            handle.remove()
    for name in reversed(outputs):
        x, output = outputs[name]
        if x.ndim == 2 and output.shape == logits.shape and _equal(output.float(), logits):
            head = read_head(layers[name])
            sound = logits.isfinite().all(dim=1)  # NaN rows prove nothing; whoever reads features counts them
            if difference(head.to(torch.float64)(x[sound].double()), logits[sound]) <= tolerance(logits.device):
                return LocatedHead(name, head.to(torch.device("cpu")))
    raise _not_found(module, layers, logits)


def read_head(layer: nn.Linear) -> Head:
    """The values of a linear layer, copied, float32, on the layer's device."""
    weight = layer.weight.detach().float().clone()
    if layer.bias is None:
        return Head.without_bias(weight)
    return Head(weight, layer.bias.detach().float().clone())


@contextmanager
def capture(module: nn.Module, name: str) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Within the block: a function from a batch to (the input of layer `name` (N, D), the logits (N, C)).

    The network is left without hooks.

    >>> with capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "1") as run:
    ...     features, logits = run(torch.ones(2, 1, 2, 2))
    >>> tuple(features.shape), tuple(logits.shape)
    ((2, 4), (2, 3))
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_first(args, kwargs))

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        logits = _run(module, batch)
        if not seen or seen[-1].ndim != 2 or len(seen[-1]) != len(logits):
            raise PosthocError(
                f"layer {show(name)}, which did not take one row of features a sample",
                "a head that runs once on every batch",
                "hand over a network whose last layer always runs, without test-time augmentation",
            )
        return seen[-1], logits

    handle = module.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield run
    finally:
        handle.remove()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two logit matrices, relative to the largest logit of `b`.

    >>> difference(torch.tensor([[1.0, 8.0]]), torch.tensor([[2.0, 8.0]]))
    0.125
    """
    if not b.numel():
        return 0.0
    b = b.double()
    return float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30))


def tolerance(device: torch.device) -> float:
    """The greatest `difference` that rounding explains on `device`."""
    return CPU_TOLERANCE if device.type == "cpu" else _CUDA_TOLERANCE


@torch.no_grad()
def _run(module: nn.Module, batch: Tensor) -> Tensor:
    try:
        output = module(batch)
    except torch.cuda.OutOfMemoryError:
        raise PosthocError(
            f"a batch of {len(batch)}, too large for the device's memory", "a smaller batch", "give --batch-size 32"
        ) from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise PosthocError(
            f"inputs of shape {tuple(batch.shape)}, on which the network fails ({show(error)})",
            "inputs of the size and channels that it was trained on",
            "give --input-size, or check --arch",
        ) from error
    return _logits(output)


def _logits(output: object) -> Tensor:
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise PosthocError(
            f"a network whose output is {shape}",
            "logits of shape (samples, classes)",
            "wrap it in a module that returns its logits, and give that as --arch module:factory",
        )
    return output.float()


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["input"]
    return value.detach()


def _not_found(module: nn.Module, layers: Mapping[str, nn.Linear], logits: Tensor) -> PosthocError:
    seen = [f"{name} ({layer.in_features} → {layer.out_features})" for name, layer in list(layers.items())[::-1]]
    return PosthocError(
        f"{type(module).__name__}, whose output {tuple(logits.shape)} no nn.Linear gives "
        f"(linear layers: {listed(seen) if seen else 'none'})",
        "a network that ends in one linear layer and returns its output",
        "return the logits themselves, without softmax or scaling, from --arch module:factory",
    )
