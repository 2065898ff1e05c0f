"""Which network a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, plan
from posthoc_lt.checkpoint.fingerprint import Known, index_versions, matches
from posthoc_lt.checkpoint.kinds import kind_named
from posthoc_lt.checkpoint.own_code import own_factory
from posthoc_lt.checkpoint.preprocessing import (
    IMAGENET,
    Preprocessing,
    configured,
    default_preprocessing,
    stored_preprocessing,
)
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.checkpoint.tokens import Transform
from posthoc_lt.checkpoint.told import hint, told
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
        classes: their names in the network's order, where the checkpoint tells them.
        headless: the network gives features and no logits.
    """

    name: str
    factory: Callable[[], nn.Module]
    preprocessing: Transform
    renames: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    classes: tuple[str, ...] = ()
    headless: bool = False


class TwinsError(PosthocError):
    """A checkpoint's tensors fit networks that compute differently.

    Args:
        checkpoint: as read.
        groups: the names of these networks, those that compute the same together; the plainest first.
        why: why its images did not settle it either, where there were any.
    """

    def __init__(self, checkpoint: Checkpoint, groups: Sequence[Sequence[str]], why: str = "") -> None:
        every = "; ".join(" = ".join(names) for names in groups)
        named = hint(checkpoint, groups)
        example = f"perhaps, from the name of the file, --arch {named}" if named else f"such as --arch {groups[0][0]}"
        super().__init__(
            f"{show(checkpoint.path)}, whose tensors fit networks that compute differently: {every}"
            f"{why and f', and {why}'}",
            "to know which of them it was trained as",
            f"give that one, {example}",
        )
        self.checkpoint, self.groups = checkpoint, groups

    def because(self, why: str) -> TwinsError:
        """The same, with why images did not settle it."""
        return TwinsError(self.checkpoint, self.groups, why)


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
    tensor names and shapes; of several that compute the same the plainest name is taken, and of several that compute
    differently the one that the file itself names, where it does. Otherwise ``timm:NAME`` and
    ``torchvision:NAME`` build that model with as many classes as the checkpoint has, and ``module:factory`` calls
    your own function, importable from the current folder, without arguments.

    Raises:
        TwinsError: the tensors fit networks that compute differently.
        PosthocError: they fit nothing known, or the architecture cannot be had.
    """
    own = kind_named(checkpoint.format).network
    if own is not None:
        return _own(checkpoint, own, arch)
    if arch is None and plan(checkpoint.state) is None:
        return _found(checkpoint)
    kind, _, name = (arch or _BUILT_IN).partition(":")
    if kind.startswith(_BUILT_IN) and not name:
        return _built_in(checkpoint, arch)
    if kind in ("timm", "torchvision") and name:
        return _in_library(checkpoint, kind, name)
    if kind and name:
        channels = input_channels(checkpoint.state)
        preprocessing = _stored(checkpoint, channels) or default_preprocessing(channels, IMAGENET)
        return Architecture(f"{kind}:{name}", own_factory(kind, name), preprocessing)
    raise PosthocError(f"architecture {show(arch)!r}", FORMS, "give --arch in one of these forms")


def _own(checkpoint: Checkpoint, network: Callable[[Path], nn.Module], arch: str | None) -> Architecture:
    """The network that the file itself holds; how its images are prepared is most often not in it."""
    if arch not in (None, checkpoint.format):
        raise PosthocError(
            f"--arch {show(arch)} for {show(checkpoint.path)}, a {checkpoint.format} file, which holds its own network",
            "an architecture for a state dict alone",
            "leave --arch out",
        )
    kind = kind_named(checkpoint.format)
    prepared, classes = (None, ()) if kind.inputs is None else kind.inputs(checkpoint.path)
    known = prepared is not None
    note = f"{show(checkpoint.path)} holds its own network ({checkpoint.format}), which is run as it is"
    return Architecture(
        checkpoint.format,
        lambda: network(checkpoint.path),
        prepared or _assumed(checkpoint),
        note=f"{note}." if known else f"{note}; it does not tell how its images are prepared: see the transform.",
        classes=classes,
        headless=kind.headless,
    )


def _assumed(checkpoint: Checkpoint) -> Preprocessing:
    """The usual preprocessing, in the size that a file's own network takes."""
    shape = checkpoint.metadata.get("input_shape")
    channels, side = shape[1:3] if isinstance(shape, Sequence) and len(shape) == 4 else (None, None)
    channels = channels if isinstance(channels, int) else input_channels(checkpoint.state)
    preprocessing = default_preprocessing(channels, IMAGENET)
    return preprocessing.changed(input_size=side) if isinstance(side, int) else preprocessing


def _found(checkpoint: Checkpoint) -> Architecture:
    """The one architecture of the index that fits, or the plainest name of several that compute the same."""
    fitting = matches(checkpoint.state)
    if not fitting:
        raise _unknown(checkpoint)
    groups: dict[int, list[str]] = {}
    for match in fitting:
        groups.setdefault(match.known.function, []).append(match.known.name)
    twins = list(groups.values())
    said = told(checkpoint, twins)
    if len(twins) > 1 and said is None:
        raise TwinsError(checkpoint, twins)
    index, entry = said or (0, "")
    chosen = plainest(twins[index])
    same = [name for name in twins[index] if name != chosen]
    alike = f", which computes the same as {listed(same)}" if same else ""
    if len(twins) > 1:
        rest = [name for names in twins for name in names if name not in twins[index]]
        note = f"Taken as {chosen}{alike}, as {entry} of the file says: {listed(rest)} has the same tensors."
    else:
        note = f"Taken as {chosen}{alike}." if same else ""
    return replace(identify(checkpoint, chosen), note=note)


def plainest(names: Sequence[str]) -> str:
    """The first of networks that compute the same whose library is installed; the first where none is."""
    return next(filter(importable, names), names[0])


def _built_in(checkpoint: Checkpoint, arch: str | None) -> Architecture:
    shape = plan(checkpoint.state)
    if shape is None or arch not in (None, _BUILT_IN, f"{_BUILT_IN}{shape.depth}"):
        raise _unknown(checkpoint)
    preprocessing = _stored(checkpoint, shape.in_channels) or default_preprocessing(shape.in_channels)
    return Architecture(f"{_BUILT_IN}{shape.depth}", lambda: CifarResNet(shape), preprocessing)


def _in_library(checkpoint: Checkpoint, library: str, name: str) -> Architecture:
    arch = f"{library}:{name}"
    renames = next((match.renames for match in matches(checkpoint.state) if match.known.name == arch), {})
    state = checkpoint.renamed(renames).state
    if library == "torchvision":
        factory = torchvision_factory(name, state)
        default = Preprocessing(*IMAGENET, input_size=224, crop=0.875)
        return Architecture(arch, factory, _stored(checkpoint, 3) or default, renames)
    factory, config, channels = timm_model(name, state)
    preprocessing = _stored(checkpoint, channels) or configured(config, channels)
    return Architecture(arch, factory, preprocessing or default_preprocessing(channels, IMAGENET), renames)


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
