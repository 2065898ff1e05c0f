"""Class-balanced softmax, sigmoid and focal losses, and the start that the latter two need."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, a_class, reduce, require_labels

Kind: TypeAlias = Literal["softmax", "sigmoid", "focal"]


def class_balanced(
    logits: Tensor,
    y: Tensor,
    weight: Tensor,
    kind: Kind = "softmax",
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Class-balanced loss (Cui 2019, arXiv:1901.05555), ``v_y ℓ(z, y)`` with one of three ℓ.

    ``softmax``: cross-entropy. ``sigmoid``: ``−Σ_c log σ(±z_c)``, + where c = y: C binary problems.
    ``focal``: ``−Σ_c (1 − σ(±z_c))^γ log σ(±z_c)`` (Lin 2017, arXiv:1708.02002), which γ = 0 turns into
    ``sigmoid`` and large γ into a loss of the hard cases alone. The mean is over the batch, not over classes.
    For the latter two the last layer's bias starts at `initialise_bias`, free of weight decay (`parameter_groups`).

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        weight: v, (C,), as `posthoc_lt.priors.effective_number_weights` gives it.
        kind: ``softmax``, ``sigmoid`` or ``focal``.
        gamma: γ ≥ 0, for ``focal``.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: not one weight a class, a label that is no class, γ < 0, or no such kind.

    >>> class_balanced(torch.zeros(1, 3), torch.tensor([0]), torch.ones(3), kind="sigmoid").neg().exp()
    tensor(0.1250)
    """
    _check(kind, gamma)
    if kind == "softmax":
        return cross_entropy(logits, y, weight, reduction)
    require_labels(y, logits)
    toward = torch.where(functional.one_hot(y.long(), logits.shape[1]).bool(), logits, -logits)
    losses = -functional.logsigmoid(toward)
    if kind == "focal":
        # (1 − σ(t))^γ as exp(γ log σ(−t)): exact, and differentiable, where 1 − σ(t) rounds to 0.
        losses = losses * torch.exp(gamma * functional.logsigmoid(-toward))
    return reduce(losses.sum(dim=1) * a_class(weight, logits, "weight")[y], reduction)


class ClassBalanced(nn.Module):
    """`class_balanced` as a module; `weight` moves with it and is saved with it."""

    def __init__(
        self, weight: Tensor, kind: Kind = "softmax", gamma: float = 2.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        _check(kind, gamma)
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.kind, self.gamma, self.reduction = kind, gamma, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return class_balanced(logits, y, self.weight, self.kind, self.gamma, self.reduction)


@torch.no_grad()
def initialise_bias(layer: nn.Linear, log_prior: Tensor | None = None) -> None:
    """Start the sigmoid of every class at its prior, ``b_c = log(π_c/(1 − π_c))``.

    With π = 1/C, as the authors have it, that is −log(C − 1). From b = 0 the C − 1 negatives of each sample
    would make a first loss so large that training may diverge.

    Args:
        layer: the last layer, C outputs; its bias is overwritten.
        log_prior: log π, (C,); None takes 1/C for all.

    Raises:
        PosthocError: the layer has no bias or a single class, or not one prior a class is given.

    >>> initialise_bias(layer := nn.Linear(2, 3))
    >>> layer.bias.detach()
    tensor([-0.6931, -0.6931, -0.6931])
    """
    classes = layer.out_features
    if layer.bias is None or classes < 2:
        raise PosthocError(
            f"a last layer of {classes} outputs{' without a bias' if layer.bias is None else ''}",
            "two classes or more, and a bias to start at their priors",
            "make it nn.Linear(dimensions, classes)",
        )
    log_pi = torch.full((classes,), 1 / classes, dtype=torch.float64).log() if log_prior is None else log_prior
    prior = a_class(log_pi, layer.weight.new_empty(0, classes), "log prior")
    layer.bias.copy_(prior - torch.log(-torch.expm1(prior)))


def parameter_groups(model: nn.Module, layer: nn.Linear, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser: weight decay on all of a model but the bias of its last layer.

    Args:
        model: what is trained.
        layer: its last layer, or the model itself.
        weight_decay: for all other parameters.

    Raises:
        PosthocError: the layer has no bias, or is not the model's.

    >>> layer = nn.Linear(2, 3)
    >>> [group["weight_decay"] for group in parameter_groups(layer, layer, 5e-4)]
    [0.0005, 0.0]
    """
    others = [p for p in model.parameters() if p is not layer.bias]
    if layer.bias is None or len(others) == len(list(model.parameters())):
        raise PosthocError(
            "a last layer without a bias, or of another model",
            "the model's own last layer, which has one",
            "give the layer object that the model holds, such as model.fc",
        )
    return [{"params": others, "weight_decay": weight_decay}, {"params": [layer.bias], "weight_decay": 0.0}]


def _check(kind: str, gamma: float) -> None:
    if kind not in ("softmax", "sigmoid", "focal"):
        raise PosthocError(f"loss kind {show(kind)!r}", "softmax, sigmoid or focal", "correct its name")
    if not gamma >= 0:
        raise PosthocError(f"gamma = {gamma}", "a number >= 0", "give 2.0, or 0 for the sigmoid loss")
