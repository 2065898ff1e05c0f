"""From tensors to a network that runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from posthoc_lt.checkpoint.identify import FORMS, Architecture
from posthoc_lt.checkpoint.kinds import kind_named
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.errors import PosthocError, listed, show


def load_network(checkpoint: Checkpoint, architecture: Architecture) -> nn.Module:
    """The network with the checkpoint's weights, float32, in evaluation mode and without gradients.

    A file that holds its own network gives that one, as it is.
    Every tensor must find its place and its shape. The wrappers' prefixes (``module.`` and the like) are tried
    without and with, since a network's own parts may bear such a name.

    Raises:
        PosthocError: a tensor is missing, unexpected, of another shape, or of whole numbers where weights belong.
    """
    own = kind_named(checkpoint.format).network
    if own is not None:
        return own(checkpoint.path)
    checkpoint = checkpoint.renamed(architecture.renames)
    network = architecture.factory().float()
    mismatches = []
    for _, state in checkpoint.spellings():
        mismatch = _mismatch(network, state)
        if not any(mismatch):
            return _loaded(network, state, checkpoint, architecture)
        mismatches.append(mismatch)
    raise _refused(checkpoint, architecture, min(mismatches, key=_Mismatch.size).told())


class _Mismatch(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    retyped: list[str]

    def size(self) -> int:
        return sum(map(len, self))

    def told(self) -> str:
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.reshaped),
            ("that hold no real numbers", self.retyped),
        )
        return "; ".join(f"{len(keys)} {what}: {listed(keys, 3)}" for what, keys in parts if keys)


def _mismatch(network: nn.Module, state: Mapping[str, Tensor]) -> _Mismatch:
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    # Checkpoints older than torch 0.4.1 have no such counters, and loading does without.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    retyped = [  # whose values torch would convert without a word
        f"{name} {state[name].dtype}"
        for name in wanted
        if name in state and wanted[name].is_floating_point() and not state[name].is_floating_point()
    ]
    return _Mismatch(missing, unexpected, reshaped, retyped)


def _loaded(
    network: nn.Module, state: dict[str, Tensor], checkpoint: Checkpoint, architecture: Architecture
) -> nn.Module:
    try:
        try:
            network.load_state_dict(state)
        except ValueError:  # torchvision's MNASNet wants the version of its names told, and these are the present ones
            network.load_state_dict(_versioned(state, network))
    except (RuntimeError, ValueError) as error:
        raise _refused(checkpoint, architecture, show(error)) from None
    return network.eval().requires_grad_(False)


def _versioned(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # where torch keeps versions
    return versioned


def _refused(checkpoint: Checkpoint, architecture: Architecture, why: str) -> PosthocError:
    return PosthocError(
        f"{show(checkpoint.path)}, whose tensors do not fit {show(architecture.name)} ({why})",
        "the architecture that the checkpoint was trained with",
        f"give {FORMS}, with the same number of classes",
    )
