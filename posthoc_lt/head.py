"""The value every method ends in: an affine classification head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError

Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


@dataclass(frozen=True, eq=False)
class Head:
    """An affine classifier, ``logits = x Wᵀ + b``.

    Args:
        weight: W, shape (C, D), float32 or float64, finite.
        bias: b, shape (C,), the same dtype. A head without bias carries zeros and says so in `has_bias`.
        has_bias: whether the layer it came from has a bias to fold into.

    Raises:
        PosthocError: shapes do not agree, or a value is not finite.

    >>> head = Head(torch.eye(2), torch.tensor([0.0, 1.0]))
    >>> head(torch.tensor([[3.0, 1.0]]))
    tensor([[3., 2.]])
    """

    weight: Tensor
    bias: Tensor
    has_bias: bool = True

    def __post_init__(self) -> None:
        weight, bias = self.weight.detach(), self.bias.detach()
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or min(weight.shape) < 1:
            raise PosthocError(
                f"a head with weight {tuple(weight.shape)} and bias {tuple(bias.shape)}",
                "weight (classes, dimensions) and bias (classes,)",
                "check which layer the head was read from",
            )
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        object.__setattr__(self, "weight", weight.to(dtype).contiguous())
        object.__setattr__(self, "bias", bias.to(weight.device, dtype).contiguous())
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise PosthocError(
                "a head with NaN or infinite values",
                "finite weights and biases",
                "check the checkpoint for a diverged run, or the method's options",
            )

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.weight.shape[0]

    @property
    def dimensions(self) -> int:
        """D, the number of features."""
        return self.weight.shape[1]

    @classmethod
    def without_bias(cls, weight: Tensor) -> Head:
        """The head of a layer that has no bias: zeros, remembered as absent."""
        return cls(weight, weight.new_zeros(weight.shape[:1]), has_bias=False)

    def to(self, place: torch.device | torch.dtype) -> Head:
        """The same head on another device or in another dtype."""
        return replace(self, weight=self.weight.to(place), bias=self.bias.to(place))

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: Array) -> Array: ...
    def __call__(self, x: Tensor | Array) -> Tensor | Array:
        """Logits (N, C) of features (N, D), in the head's dtype; an array in gives an array out."""
        if isinstance(x, np.ndarray):
            logits: Array = self(torch.from_numpy(x).to(self.weight.dtype)).numpy()
            return logits
        return torch.addmm(self.bias, x.to(self.weight.dtype), self.weight.T)

    def __repr__(self) -> str:
        bias = "" if self.has_bias else ", no bias"
        return f"Head({self.classes} classes, {self.dimensions} dimensions{bias})"
