"""How a network's last layers make one affine head, and how a new head is put back into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.head import Head

_COSINES = {"cosine:": (False, False), "cosine-columns:": (True, False), "squashed-cosine:": (False, True)}
_FACTORS = "*"
_EQUAL_NORMS = 1e-4


@dataclass(frozen=True)
class HeadForm:
    """The layers whose mean output is the logits, and how each computes.

    - One layer, linear or a 1×1 convolution: logits = W x + b, x pooled over positions.
    - Several, as in distilled transformers: logits = mean of W_i x_i + b_i = [W_1 W_2 …] [x_1; x_2; …]/k + mean b_i.
    - ``cosine``: logits = s ŵ·x̂ with rows ŵ and features x̂ of norm 1 (`NormedLinear`, cosine classifiers).
    - ``squashed``: the same with features x/(1 + ‖x‖), as open long-tailed recognition has it (1904.05160).
    - ``factors``: logits = f ∘ (W x + b), a learned factor a class, as LWS (1910.09217) and MiSLAS (2104.00466) add.

    Args:
        layers: module names.
        cosine: the one layer normalises its weight and its input.
        columns: a cosine layer's weight is (D, C), a column a class, as LDAM-DRW has it.
        squashed: a cosine layer keeps the order of its inputs' norms.
        factors: the name of the parameter that the one layer's output is multiplied by; empty where none is.

    >>> str(HeadForm(("head", "head_dist"))), HeadForm.parse("cosine-columns:linear").columns
    ('head+head_dist', True)
    """

    layers: tuple[str, ...]
    cosine: bool = False
    columns: bool = False
    squashed: bool = False
    factors: str = ""

    def __str__(self) -> str:
        own = self.columns, self.squashed
        prefix = next(each for each, said in _COSINES.items() if said == own) if self.cosine else ""
        return prefix + "+".join(self.layers) + (_FACTORS + self.factors if self.factors else "")

    @classmethod
    def parse(cls, name: str) -> HeadForm:
        """The form that `str` wrote, which is how features name their head."""
        for prefix, said in _COSINES.items():
            if name.startswith(prefix):
                return cls((name.removeprefix(prefix),), True, *said)
        layers, _, factors = name.partition(_FACTORS)
        return cls(tuple(layers.split("+")), factors=factors)

    def parameters(self) -> list[str]:
        """The names of all that the head is made of, there or not; what a new head changes, and its factors."""
        own = [f"{layer}.{kind}" for layer in self.layers for kind in ("weight", "bias")]
        return [*own, self.factors] if self.factors else own

    def features(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """The features (N, D) of which the logits are an affine function, from what each layer takes."""
        rows = [pooled(x, weight) for x, weight in zip(inputs, weights, strict=True)]
        if self.squashed:
            norms: Tensor = torch.linalg.vector_norm(rows[0], dim=1, keepdim=True)
            return rows[0] / (1 + norms)
        if self.cosine:
            return F.normalize(rows[0], dim=1)
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1) / len(rows)

    def head(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scale: float = 1.0,
        factors: Tensor | None = None,
    ) -> Head:
        """The affine head (C, D) on these features; `scale` is a cosine layer's s, `factors` are those of the form."""
        flat = [weight.detach().flatten(1).float() for weight in weights]
        if self.cosine:
            return Head.without_bias(scale * F.normalize(flat[0].T if self.columns else flat[0], dim=1))
        f = torch.ones(len(flat[0])) if factors is None else factors.detach().flatten().float()
        f = f.to(flat[0].device)
        weight = torch.cat(flat, dim=1) * f[:, None]
        present = [bias.detach().float() * f for bias in biases if bias is not None]
        if len(present) < len(weights):
            return Head.without_bias(weight)
        return Head(weight, torch.stack(present).mean(dim=0))

    def values(self, head: Head, weights: Sequence[Tensor]) -> list[Tensor]:
        """What each layer's weight becomes, in the shape that it has.

        Raises:
            PosthocError: another number of classes or dimensions, or a head that a cosine layer cannot hold.
        """
        shapes = [tuple(weight.shape) for weight in weights]
        told = ", ".join(f"{layer}.weight of shape {shape}" for layer, shape in zip(self.layers, shapes, strict=True))
        flat = [weight.flatten(1).T if self.columns else weight.flatten(1) for weight in weights]
        widths = [weight.shape[1] for weight in flat]
        if {weight.shape[0] for weight in flat} != {head.classes} or sum(widths) != head.dimensions:
            raise PosthocError(
                f"a head of shape {tuple(head.weight.shape)} for {show(told)}",
                "a head fitted on the features of this very checkpoint",
                "extract its features and fit the head again",
            )
        if self.cosine:
            self._require_equal_norms(head)
        parts = torch.split(head.weight, widths, dim=1)
        turned = [part.T if self.columns else part for part in parts]
        return [part.reshape(shape) for part, shape in zip(turned, shapes, strict=True)]

    def _require_equal_norms(self, head: Head) -> None:
        norms = head.weight.norm(dim=1)
        if head.bias.any() or float(norms.max() - norms.min()) > _EQUAL_NORMS * float(norms.max()):
            raise PosthocError(
                f"a head whose rows differ in norm, or with a bias, for the cosine layer {show(self.layers[0])}, which "
                "brings every row to the same norm and adds none",
                "a layer that can hold it",
                "use the head file itself on normalised features, or put an nn.Linear into that layer's place "
                "in your code and train no further",
            )


def pooled(x: Tensor, weight: Tensor) -> Tensor:
    """One row a sample: the mean over an image's positions or a sequence's tokens, where there are any."""
    if x.ndim == 2:
        return x
    return x.flatten(2).mean(dim=2) if weight.ndim == 4 else x.flatten(1, -2).mean(dim=1)


def placed(name: str, head: Head, old: Mapping[str, Tensor], add_bias: bool = False) -> dict[str, Tensor]:
    """The head's layers with the new values: parameter names to tensors in the old ones' dtype and kind.

    Args:
        name: as `LocatedHead.name` has it.
        head: the new values.
        old: the network's parameters by name.
        add_bias: add a bias to a layer that has none.

    Raises:
        PosthocError: another shape, values beyond the dtype's range, a bias without a place, or a cosine layer that
            cannot hold the head.
    """
    form = HeadForm.parse(name)
    if form.factors:
        head = _without_factors(head, old[form.factors].detach().flatten().cpu(), form.factors)
    weights = [old[f"{layer}.weight"] for layer in form.layers]
    new: dict[str, Tensor] = {}
    for layer, weight, values in zip(form.layers, weights, form.values(head, weights), strict=True):
        key, bias = f"{layer}.weight", f"{layer}.bias"
        new[key] = cast_like(values, weight, key)
        if bias in old and not form.cosine:
            new[bias] = cast_like(head.bias, old[bias], bias)
        elif add_bias and not form.cosine:
            new[bias] = cast_like(head.bias, weight, bias)
        else:
            refuse_bias(head, layer)
    return new


def _without_factors(head: Head, factors: Tensor, name: str) -> Head:
    """What the layer must hold for its output, times the factors, to be the head's."""
    if not factors.all():
        raise PosthocError(
            f"a factor of 0 in {show(name)}, by which that class's logits are multiplied",
            "factors other than 0, under which every head can be put into the layer",
            "use the head file itself on the features",
        )
    f = factors.double()
    weight = (head.weight.double() / f[:, None]).to(head.weight)
    return Head(weight, (head.bias.double() / f).to(head.bias), has_bias=head.has_bias)


def refuse_bias(head: Head, name: str) -> None:
    """Refuse a head with a bias for a layer without one.

    Raises:
        PosthocError: the bias is not all zero.
    """
    if head.bias.any():
        raise PosthocError(
            f"a head with a bias, and layer {show(name)}, which has none to put it in",
            "a head without bias, or leave to add one",
            "choose a method that needs no bias, such as tau-norm, or give --add-bias, which adds "
            f"{show(name)}.bias and so needs bias=True in that layer of the code that loads the file",
        )


def cast_like(values: Tensor, old: Tensor, key: str) -> Tensor:
    """`values` as a tensor of its own, in the dtype and kind (plain or nn.Parameter) of `old`, on its device.

    Raises:
        PosthocError: a value is too large for that dtype.
    """
    new = values.detach().to(old.device, old.dtype, copy=True).contiguous()
    if not new.isfinite().all():
        raise PosthocError(
            f"values up to {float(values.abs().max()):.3g} for {show(key)}, stored as {old.dtype}",
            f"values within {torch.finfo(old.dtype).max:.3g}",
            "save the checkpoint in float32 first, or choose a smaller tau",
        )
    return torch.nn.Parameter(new, old.requires_grad) if isinstance(old, torch.nn.Parameter) else new
