"""Which network a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, plan
from posthoc_lt.checkpoint.own_code import own_factory
from posthoc_lt.checkpoint.preprocessing import (
    IMAGENET,
    Preprocessing,
    configured,
    default_preprocessing,
    stored_preprocessing,
)
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.checkpoint.zoo import input_channels, timm_model, torchvision_factory
from posthoc_lt.errors import PosthocError, listed, show

FORMS = "--arch timm:NAME, --arch torchvision:NAME, or --arch module:factory for your own code"
_BUILT_IN = "cifar-resnet"


@dataclass(frozen=True, eq=False)
class Architecture:
    """A network to be built, and how its images are prepared.

    Args:
        name: ``cifar-resnet20``, ``timm:…``, ``torchvision:…`` or ``module:factory``; `identify` takes it back.
        factory: builds the network, its weights still arbitrary.
        preprocessing: the checkpoint's own where it says so, else the architecture's.
    """

    name: str
    factory: Callable[[], nn.Module]
    preprocessing: Preprocessing


def identify(checkpoint: Checkpoint, arch: str | None = None) -> Architecture:
    """The architecture of a checkpoint: from its tensors alone, or as `arch` says.

    Without `arch`, the CIFAR ResNet family (1512.03385) is known by tensor names and shapes. Otherwise ``timm:NAME``
    and ``torchvision:NAME`` build that model with as many classes as the checkpoint has, and ``module:factory``
    calls your own function, importable from the current folder, without arguments.

    Raises:
        PosthocError: the tensors fit nothing known, or the named architecture cannot be had.
    """
    kind, _, name = (arch or _BUILT_IN).partition(":")
    if kind.startswith(_BUILT_IN) and not name:
        return _built_in(checkpoint, arch)
    if kind == "timm" and name:
        return _timm(checkpoint, name)
    if kind == "torchvision" and name:
        factory = torchvision_factory(name, checkpoint.state)
        default = Preprocessing(*IMAGENET, input_size=224, crop=0.875)
        return Architecture(f"torchvision:{name}", factory, _stored(checkpoint, 3) or default)
    if kind and name:
        channels = input_channels(checkpoint.state)
        preprocessing = _stored(checkpoint, channels) or default_preprocessing(channels, IMAGENET)
        return Architecture(f"{kind}:{name}", own_factory(kind, name), preprocessing)
    raise PosthocError(f"architecture {show(arch)!r}", FORMS, "give --arch in one of these forms")


def _built_in(checkpoint: Checkpoint, arch: str | None) -> Architecture:
    shape = plan(checkpoint.state)
    if shape is None or arch not in (None, _BUILT_IN, f"{_BUILT_IN}{shape.depth}"):
        raise _unknown(checkpoint)
    preprocessing = _stored(checkpoint, shape.in_channels) or default_preprocessing(shape.in_channels)
    return Architecture(f"{_BUILT_IN}{shape.depth}", lambda: CifarResNet(shape), preprocessing)


def _timm(checkpoint: Checkpoint, name: str) -> Architecture:
    factory, config, channels = timm_model(name, checkpoint.state)
    preprocessing = _stored(checkpoint, channels) or configured(config, channels)
    return Architecture(f"timm:{name}", factory, preprocessing or default_preprocessing(channels, IMAGENET))


def _stored(checkpoint: Checkpoint, channels: int) -> Preprocessing | None:
    return stored_preprocessing(checkpoint.metadata, channels)


def _unknown(checkpoint: Checkpoint) -> PosthocError:
    state = checkpoint.state
    last = [f"{key} {tuple(state[key].shape)}" for key in list(state)[-3:]]
    return PosthocError(
        f"{show(checkpoint.path)} with {len(state)} tensors, beginning {listed(list(state), 3)} and ending "
        f"{listed(last)}, which is none of the built-in CIFAR ResNets",
        "to know the architecture",
        f"give {FORMS}",
    )
