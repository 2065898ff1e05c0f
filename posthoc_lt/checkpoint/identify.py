"""Which network a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, plan
from posthoc_lt.checkpoint.fingerprint import Known, Match, index_versions, matches
from posthoc_lt.checkpoint.own_code import own_factory
from posthoc_lt.checkpoint.preprocessing import (
    IMAGENET,
    Preprocessing,
    configured,
    default_preprocessing,
    stored_preprocessing,
)
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.checkpoint.zoo import importable, input_channels, timm_model, torchvision_factory
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
        renames: the network's tensor names to the checkpoint's, where they differ.
        note: what a user should know of how it was chosen; empty where it was given or is the only one.
    """

    name: str
    factory: Callable[[], nn.Module]
    preprocessing: Preprocessing
    renames: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class Candidate(NamedTuple):
    """An architecture that a checkpoint's tensors fit.

    Args:
        name: as `identify` takes it.
        heads: the module names of its classifiers, as the checkpoint has them.
        function: candidates of equal number compute the same.
    """

    name: str
    heads: tuple[str, ...]
    function: int


def candidates(checkpoint: Checkpoint) -> list[Candidate]:
    """Every known architecture that fits, from names and shapes alone: nothing is built, no library is needed."""
    shape = plan(checkpoint.state)
    if shape is not None:
        return [Candidate(f"{_BUILT_IN}{shape.depth}", (shape.head,), 0)]
    return [
        Candidate(known.name, _own_names(known, renames), known.function)
        for known, renames in matches(checkpoint.state)
    ]


def _own_names(known: Known, renames: Mapping[str, str]) -> tuple[str, ...]:
    weights = (f"{head}.weight" for head in known.heads)
    return tuple(renames.get(weight, weight).removesuffix(".weight") for weight in weights)


def identify(checkpoint: Checkpoint, arch: str | None = None) -> Architecture:
    """The architecture of a checkpoint: from its tensors alone, or as `arch` says.

    Without `arch`, the CIFAR ResNets (1512.03385) and the image classifiers of timm and torchvision are known by
    tensor names and shapes; of several that compute the same the plainest name is taken. Otherwise ``timm:NAME`` and
    ``torchvision:NAME`` build that model with as many classes as the checkpoint has, and ``module:factory`` calls
    your own function, importable from the current folder, without arguments.

    Raises:
        PosthocError: the tensors fit nothing known, or networks that compute differently, or the architecture
            cannot be had.
    """
    if arch is None and plan(checkpoint.state) is None:
        return _found(checkpoint)
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


def _found(checkpoint: Checkpoint) -> Architecture:
    """The one architecture of the index that fits, or the plainest name of several that compute the same."""
    fitting = matches(checkpoint.state)
    if not fitting:
        raise _unknown(checkpoint)
    names = [match.known.name for match in fitting]
    if len({match.known.function for match in fitting}) > 1:
        raise PosthocError(
            f"{show(checkpoint.path)}, whose tensors fit networks that compute differently: {_by_function(fitting)}",
            "to know which of them it was trained as",
            f"give that one, such as --arch {names[0]}",
        )
    chosen = next((match for match in fitting if importable(match.known.name)), fitting[0])
    architecture = identify(checkpoint.renamed(chosen.renames), chosen.known.name)
    same = [name for name in names if name != chosen.known.name]
    note = f"Taken as {chosen.known.name}, which computes the same as {listed(same)}." if same else ""
    return replace(architecture, renames=chosen.renames, note=note)


def _by_function(fitting: list[Match]) -> str:
    groups: dict[int, list[str]] = {}
    for match in fitting:
        groups.setdefault(match.known.function, []).append(match.known.name)
    return "; ".join(" = ".join(names) for names in groups.values())


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
    versions = " or ".join(f"{name} {version}" for name, version in index_versions().items())
    last = [f"{key} {tuple(state[key].shape)}" for key in list(state)[-3:]]
    return PosthocError(
        f"{show(checkpoint.path)} with {len(state)} tensors, beginning {listed(list(state), 3)} and ending "
        f"{listed(last)}, which is no CIFAR ResNet and none of {versions}",
        "to know the architecture",
        f"give {FORMS}",
    )
