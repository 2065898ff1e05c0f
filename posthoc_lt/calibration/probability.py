"""The probability head: an ordinary affine head whose softmax are calibrated probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.calibration.fit import Calibration
from posthoc_lt.calibration.samples import distribution, finite_log_prior
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.head import Head


def probability_head(
    head: Head, calibration: Calibration, log_prior: Tensor, deploy_prior: Tensor | None = None
) -> Head:
    """The head whose softmax are calibrated probabilities, ``W' = aW, b' = ab − c log π + log π_deploy``.

    Its argmax is the Bayes decision under π_deploy, and need not be that of a head chosen for accuracy: the
    two are exported apart.

    Args:
        head: the head that was calibrated.
        calibration: a and c.
        log_prior: log π, (C,), as given to `calibrate`.
        deploy_prior: π_deploy, (C,), in any unit (counts will do), > 0 but for masked classes; None for equal
            frequencies.

    Returns:
        A head in the place and dtype of `head`, which masks what `head` masks. Its bias is needed even where
        `head` has none to fold it into.

    Raises:
        PosthocError: shapes do not fit, or a frequency is not positive, so that its logarithm is infinite.

    >>> probability_head(Head(torch.eye(2), torch.zeros(2)), Calibration(2.0, 1.0), torch.zeros(2)).weight
    tensor([[2., 0.],
            [0., 2.]])
    """
    share = distribution(torch.ones(head.classes) if deploy_prior is None else deploy_prior, head, "deployment prior")
    masked = head.masked.cpu()
    share = share.masked_fill(masked, 1 / head.classes)
    empty = (share == 0).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"a deployment prior of 0 for class {listed(empty)}",
            "a positive frequency a class",
            "give a small one, such as 0.0001, to classes hardly ever met",
        )
    shift = share.log() - calibration.prior_strength * finite_log_prior(log_prior, head)
    weight, bias = (calibration.scale * part.cpu().double() for part in (head.weight, head.bias))
    return Head(weight.to(head.weight), (bias + shift).to(head.bias), head.has_bias).masking(head.masked)
