"""Finding the classification head in a network, by proof rather than by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint.form import HeadForm, pooled
from posthoc_lt.checkpoint.program import Program
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.head import Head

CPU_TOLERANCE = 1e-5
"""How far, relative to the largest logit, two float32 ways to the same logits may differ on a CPU."""

_CUDA_TOLERANCE = 1e-3  # TF32 keeps ten bits
_MOST_HEADS = 4


@dataclass(frozen=True, eq=False)
class LocatedHead:
    """The last layer or layers of a network, as `HeadForm` names them (``fc``, ``head+head_dist``), and their values.

    Args:
        name: for one linear layer its module name, so that its weight is ``{name}.weight``.
        head: the affine head that they make.
    """

    name: str
    head: Head


class OutOfMemoryError(PosthocError):
    """The device has no memory for a batch of this size."""


class _Seen(NamedTuple):
    """What a layer took and gave, a row a sample."""

    x: Tensor
    output: Tensor


def find_head(module: nn.Module, batch: Tensor) -> LocatedHead:
    """The layer whose output is the network's output, proved on one batch.

    Every module with a matrix (or a 1×1 convolution) as its weight is watched while the batch runs. The one whose
    output, averaged over positions where there are any, is the logits, and whose weight and bias give these logits
    again from its captured input, is the head; else two or more whose mean output is the logits, as in distilled
    transformers; else one that gives them from normalised or squashed inputs and weights, as cosine classifiers do, or
    together with a parameter of a factor a class.

    Args:
        module: a network in evaluation mode; it is left as it was.
        batch: a few real inputs, on the network's device.

    Raises:
        PosthocError: the network does not run on the batch, or no such layer gives its output.

    >>> find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 1, 2, 2)).name
    '1'
    """
    if isinstance(module, Program):
        return _found_in(module, batch)
    layers = {name: layer for name, layer in module.named_modules() if _may_be_head(layer)}
    seen: dict[str, _Seen] = {}

    def watch(name: str, weight: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            x = _first(args, kwargs)
            seen.pop(name, None)
            if isinstance(x, Tensor) and isinstance(output, Tensor) and x.is_floating_point() and x.ndim >= 2:
                seen[name] = _Seen(pooled(x, weight), pooled(output.detach(), weight))

        return hook

    watched = [(layer, watch(name, _weight(layer))) for name, layer in layers.items()]
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer, hook in watched]
    try:
        logits = run_network(module, batch)
    finally:
        for handle in hooks:
            handle.remove()
    vectors = {name: value for name, value in module.named_parameters() if value.numel() == logits.shape[1]}
    for form in _candidates(seen, logits, vectors):
        if (head := _proved(form, layers, seen, logits, vectors.get(form.factors))) is not None:
            return LocatedHead(str(form), head.to(torch.device("cpu")))
    raise _not_found(module, layers, logits)


def _found_in(program: Program, batch: Tensor) -> LocatedHead:
    """The last layer of a program whose weight and bias give the program's logits from what the layer takes."""
    layers, logits = program.layers(), run_network(program, batch)
    for name, layer in reversed(list(layers.items())):
        if len(_weight(layer)) != logits.shape[1]:
            continue
        try:
            with program.watched(name) as run, torch.no_grad():
                x = pooled(run(batch)[0], _weight(layer))
        except RuntimeError:  # not the last layer: what comes after it does not take what it gives now
            continue
        if (head := _proved(HeadForm((name,)), layers, {name: _Seen(x, logits)}, logits)) is not None:
            return LocatedHead(name, head.to(torch.device("cpu")))
    raise _not_found(program, layers, logits)


def _may_be_head(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim not in (2, 4):
        return False
    return weight.ndim == 2 or (weight.shape[2:] == (1, 1) and getattr(layer, "groups", 1) == 1)


def _candidates(seen: Mapping[str, _Seen], logits: Tensor, vectors: Iterable[str]) -> Iterator[HeadForm]:
    """The forms whose layers' outputs are the logits, or may be times one of the vectors; the last to run first."""
    outputs = {name: output for name, (_, output) in reversed(list(seen.items())) if output.shape == logits.shape}
    same = [name for name, output in outputs.items() if _close(output, logits)]
    yield from (HeadForm((name,)) for name in same)
    for count in range(2, min(len(outputs), _MOST_HEADS) + 1):
        names = tuple(reversed(list(outputs)[:count]))
        if _close(torch.stack([outputs[name] for name in names]).mean(dim=0), logits):
            yield HeadForm(names)
    yield from (HeadForm((name,), cosine=True, columns=columns) for name in same for columns in (False, True))
    yield from (HeadForm((name,), cosine=True, squashed=True) for name in same)
    beside = [each for each in vectors if each.rpartition(".")[0] not in outputs or not each.endswith(".bias")]
    yield from (HeadForm((name,), factors=each) for name in outputs for each in beside)


def _proved(
    form: HeadForm,
    layers: Mapping[str, nn.Module],
    seen: Mapping[str, _Seen],
    logits: Tensor,
    factors: Tensor | None = None,
) -> Head | None:
    """The head of this form, where it gives the logits from what the layers took; None where it does not."""
    weights = [_weight(layers[name]) for name in form.layers]
    if form.columns and weights[0].ndim != 2:
        return None
    features = form.features([seen[name].x for name in form.layers], weights)
    biases = [_bias(layers[name]) for name in form.layers]
    if len({bias is None for bias in biases}) > 1:
        return None
    try:
        head = form.head(weights, biases, factors=factors)
    except PosthocError:
        return None
    if head.classes != logits.shape[1] or head.dimensions != features.shape[1]:
        return None
    sound = logits.isfinite().all(dim=1)  # NaN rows prove nothing; whoever reads features counts them
    x, z = features[sound].double(), logits[sound].double()
    if form.cosine:
        product = head.to(torch.float64)(x)
        scale = float((product * z).sum() / (product * product).sum().clamp(min=1e-30))
        head = form.head(weights, biases, scale)
        if scale <= 0:
            return None
    return head if difference(head.to(torch.float64)(x), z) <= tolerance(logits.device) else None


@contextmanager
def capture(module: nn.Module, name: str) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Within the block: a function from a batch to (the features that head `name` reads (N, D), the logits (N, C)).

    Without a name the network has no head: what it gives is the features.
    The network is left without hooks.

    >>> with capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "1") as run:
    ...     features, logits = run(torch.ones(2, 1, 2, 2))
    >>> tuple(features.shape), tuple(logits.shape)
    ((2, 4), (2, 3))
    """
    if not name:
        yield lambda batch: (x := run_network(module, batch), x)
        return
    form = HeadForm.parse(name)
    if isinstance(module, Program):
        yield from _captured(module, form)
        return
    layers = [module.get_submodule(layer) for layer in form.layers]
    weights = [_weight(layer) for layer in layers]
    seen: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[index] = _first(args, kwargs)

        return hook

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        seen.clear()
        logits = run_network(module, batch)
        inputs = [seen[index] for index in range(len(layers)) if index in seen]
        if len(inputs) < len(layers) or any(x.ndim < 2 or len(x) != len(logits) for x in inputs):
            raise PosthocError(
                f"layer {show(name)}, which did not take one row of features a sample",
                "a head that runs once on every batch",
                "hand over a network whose last layer always runs, without test-time augmentation",
            )
        return form.features(inputs, weights), logits

    handles = [layer.register_forward_pre_hook(keep(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def _captured(program: Program, form: HeadForm) -> Iterator[Callable[[Tensor], tuple[Tensor, Tensor]]]:
    (name,) = form.layers
    weight = _weight(program.layers()[name])
    with program.watched(name) as watched:

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []

            def keep(part: Tensor) -> object:
                x, output = watched(part)
                seen.append(x)
                return output

            logits = run_network(keep, batch)
            return form.features(seen, [weight]), logits

        yield run


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
def run_network(module: Callable[[Tensor], object], batch: Tensor) -> Tensor:
    """The network's logits (N, C) for a batch, float32.

    Raises:
        PosthocError: it fails, or gives no logits.
    """
    try:
        output = module(batch)
    except PosthocError:
        raise
    except Exception as error:  # the network may be anyone's code
        if _is_memory(error):
            raise OutOfMemoryError(
                f"a batch of {len(batch)}, too large for the device's memory",
                "more memory",
                "free some, or give --device cpu",
            ) from None
        raise PosthocError(
            f"inputs of shape {tuple(batch.shape)}, on which the network fails ({show(error)})",
            "inputs of the size and channels that it was trained on",
            "give --input-size, or check --arch",
        ) from error
    return _logits(output)


def _is_memory(error: Exception) -> bool:
    """Whether there was no memory: torch has a kind of error for a device's, and none for the CPU's."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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


def _close(a: Tensor, b: Tensor) -> bool:
    sound = b.isfinite().all(dim=1)
    return difference(a[sound], b[sound]) <= tolerance(b.device)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _bias(layer: nn.Module) -> Tensor | None:
    bias = getattr(layer, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value.detach() if isinstance(value, Tensor) else value


def _not_found(module: nn.Module, layers: Mapping[str, nn.Module], logits: Tensor) -> PosthocError:
    last = list(layers.items())[::-1]
    seen = [f"{name} {_size(_weight(layer))}" for name, layer in last]
    alike = next((name for name, layer in last if len(_weight(layer)) == logits.shape[1]), None)
    after = f"; {show(alike)} has as many outputs, but something after it, such as a ReLU or softmax, changes them"
    return PosthocError(
        f"{type(module).__name__}, whose output {tuple(logits.shape)} no layer gives by an affine map "
        f"(linear layers: {listed(seen) if seen else 'none'}{after if alike else ''})",
        "a network that ends in a linear layer, a 1×1 convolution or a cosine classifier, and returns its output",
        "return the logits themselves, without softmax or scaling, from --arch module:factory",
    )


def _size(weight: Tensor) -> str:
    return f"({weight.shape[1]} → {weight.shape[0]})"
