"""The value every method ends in: an affine classification head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.precision import full_precision

MASKED = -(2.0**13)
"""The constant logit of a masked class: no network's best logit is as low, and half precision holds it exactly."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]


def as_tensor(values: Tensor | ArrayLike, what: str) -> Tensor:
    """Numbers of any form (tensor, array, data frame, lists) as a tensor without gradient.

    Memory is shared where the form allows it, so that a memory-mapped array stays on disk.

    Raises:
        PosthocError: `values`, which the message calls `what`, hold no real numbers.

    >>> as_tensor([[1, 2]], "a weight")
    tensor([[1, 2]])
    """
    try:
        tensor = values.detach() if isinstance(values, Tensor) else _shared(np.asarray(values))
        if tensor.is_complex():
            raise TypeError("complex")
        tensor.new_zeros(1).float()  # torch stores more types, such as 4-bit floats, than it can compute with
    except (TypeError, ValueError, RuntimeError):
        raise PosthocError(
            f"{what} of type {show(type(values).__name__)} that does not hold real numbers",
            "a tensor, an array or a table of numbers; labels are class indices from 0 in the order of the head's rows",
            "convert it with numpy.asarray(…, dtype=float); number class names by the head's rows",
        ) from None
    return tensor


def _shared(array: NDArray[np.generic]) -> Tensor:
    with warnings.catch_warnings():
        # Read-only arrays (memory maps, data frames) are safe here: nothing writes into what it is given.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        try:
            return torch.from_numpy(array)
        except ValueError:  # negative strides or a foreign byte order, which torch does not have
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


@dataclass(frozen=True, eq=False, init=False)
class Head:
    """An affine classifier, ``logits = x Wᵀ + b``.

    Args:
        weight: W, shape (C, D), finite; a tensor, an array, a data frame or lists. float64 stays, all else
            becomes float32.
        bias: b, shape (C,), kept in the dtype of W. A head without bias carries zeros and says so in `has_bias`.
        has_bias: whether the layer it came from has a bias to fold into.

    Raises:
        PosthocError: no numbers, shapes that do not agree, or a value that is not finite.

    >>> head = Head(torch.eye(2), torch.tensor([0.0, 1.0]))
    >>> head(torch.tensor([[3.0, 1.0]]))
    tensor([[3., 2.]])
    """

    weight: Tensor
    bias: Tensor
    has_bias: bool

    def __init__(self, weight: Tensor | ArrayLike, bias: Tensor | ArrayLike, has_bias: bool = True) -> None:
        w, b = as_tensor(weight, "a weight"), as_tensor(bias, "a bias")
        if w.ndim != 2 or b.shape != w.shape[:1] or min(w.shape) < 1:
            raise PosthocError(
                f"a head with weight {tuple(w.shape)} and bias {tuple(b.shape)}",
                "weight (classes, dimensions) and bias (classes,)",
                "check which layer the head was read from",
            )
        dtype = w.dtype if w.dtype in (torch.float32, torch.float64) else torch.float32
        object.__setattr__(self, "weight", w.to(dtype).contiguous())
        object.__setattr__(self, "bias", b.to(w.device, dtype).contiguous())
        object.__setattr__(self, "has_bias", has_bias)
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
    def without_bias(cls, weight: Tensor | ArrayLike) -> Head:
        """The head of a layer that has no bias: zeros, remembered as absent."""
        w = as_tensor(weight, "a weight")
        return cls(w, w.new_zeros(w.shape[:1]), has_bias=False)

    def masking(self, classes: Tensor) -> Head:
        """The same head, never to predict `classes`, (C,) bool: their rows are 0, their biases `MASKED`.

        Finite on purpose: an infinite bias would turn softmax losses, exports and half precision into NaN.
        """
        if not bool(classes.any()):
            return self
        weight, bias = self.weight.masked_fill(classes[:, None], 0.0), self.bias.masked_fill(classes, MASKED)
        return replace(self, weight=weight, bias=bias)

    @property
    def masked(self) -> Tensor:
        """The classes (C,) bool that this head never predicts (`masking`)."""
        return (self.bias <= MASKED) & ~self.weight.any(dim=1)

    def to(self, place: torch.device | torch.dtype) -> Head:
        """The same head on another device or in another dtype."""
        weight, bias = self.weight.to(place), self.bias.to(place)
        return self if weight is self.weight and bias is self.bias else replace(self, weight=weight, bias=bias)

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: ArrayLike) -> Array: ...
    def __call__(self, x: Tensor | ArrayLike) -> Tensor | Array:
        """Logits (N, C) of features (N, D), in the head's dtype; a tensor gives a tensor, all else an array."""
        if not isinstance(x, Tensor):
            logits: Array = self(as_tensor(x, "features").to(self.weight.device)).cpu().numpy()
            return logits
        with full_precision():
            return torch.addmm(self.bias, x.to(self.weight.dtype), self.weight.T)

    def __repr__(self) -> str:
        bias = "" if self.has_bias else ", no bias"
        return f"Head({self.classes} classes, {self.dimensions} dimensions{bias})"

    def _repr_html_(self) -> str:
        lengths = torch.linalg.vector_norm(self.weight.double(), dim=1)
        figures = {"norm of a class's weights": lengths, **({"bias": self.bias.double()} if self.has_bias else {})}
        rows = "".join(
            f"<tr><td>{name}</td><td>{v.min():.4g}</td><td>{v.median():.4g}</td><td>{v.max():.4g}</td></tr>"
            for name, v in figures.items()
        )
        header = "".join(f"<th>{name}</th>" for name in ("", "smallest", "median", "largest"))
        bias = "" if self.has_bias else ", no bias"
        return (
            f"<p>Head: {self.classes} classes, {self.dimensions} dimensions{bias}</p>"
            f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
        )
