"""Networks of timm and torchvision, built with the checkpoint's number of classes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.errors import PosthocError, show


def timm_model(name: str, state: Mapping[str, Tensor]) -> tuple[Callable[[], nn.Module], Mapping[str, object], int]:
    """A factory of the timm model `name`, its data configuration and its number of input channels.

    Raises:
        PosthocError: timm is absent, or knows no such model.
    """
    timm = library("timm")
    skeleton = _skeleton(f"timm:{name}", lambda: timm.create_model(name, pretrained=False))
    options: dict[str, int] = {}
    if (classes := _classes(skeleton, state)) is not None:
        options["num_classes"] = classes
    if (channels := _channels(skeleton, state)) is not None:
        options["in_chans"] = channels
    config: Mapping[str, object] = timm.data.resolve_model_data_config(skeleton)

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
        return model

    return build, config, channels or input_channels(skeleton.state_dict())


def torchvision_factory(name: str, state: Mapping[str, Tensor]) -> Callable[[], nn.Module]:
    """A factory of the torchvision model `name`.

    Raises:
        PosthocError: torchvision is absent or does not fit this torch, or knows no such model.
    """
    torchvision = library("torchvision")
    skeleton = _skeleton(f"torchvision:{name}", lambda: torchvision.models.get_model(name, weights=None))
    classes = _classes(skeleton, state)
    options = {} if classes is None else {"num_classes": classes}

    def build() -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return model

    return build


def input_channels(state: Mapping[str, Tensor]) -> int:
    """What the first convolution takes; 3 where there is none.

    >>> input_channels({"conv1.weight": torch.zeros(16, 1, 3, 3)})
    1
    """
    return next((tensor.shape[1] for tensor in state.values() if tensor.ndim == 4), 3)


def library(name: str) -> Any:
    """The library `name`, timm or torchvision.

    Raises:
        PosthocError: it is absent, or does not import beside this torch.
    """
    try:
        return _import(name)
    except (ImportError, RuntimeError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        why = "is not installed" if absent else f"does not import beside torch {torch.__version__} ({show(error)})"
        install = "install it with: pip install 'posthoc-lt[vision]'"
        again = "install torch and torchvision again, both from the same index"
        raise PosthocError(
            f"a network of {name}, but {name} {why}",
            f"a {name} that fits this torch",
            f"{install if absent else again}, or give your own code as --arch module:factory",
        ) from None


def importable(name: str) -> bool:
    """Whether the library of an architecture such as ``timm:resnet50`` is installed."""
    return importlib.util.find_spec(name.partition(":")[0]) is not None


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        # A torchvision built for another torch fails with RuntimeError, and leaves half of itself behind.
        for loaded in [m for m in sys.modules if m.partition(".")[0] in (name, "torchvision")]:
            del sys.modules[loaded]
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for schema in _DETECTION:  # no classifier uses these; without their names torchvision does not import
        _SCHEMAS.define(schema)  # type: ignore[no-untyped-call]  # as torch has it
    return importlib.import_module(name)


_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # likewise
_DETECTION = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """What `build` makes, without memory for its weights, so that its names and shapes can be read."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # some compute with other tensors while being built: only parameters go without then
        pass
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter if parameter is None else nn.Parameter(parameter.to("meta")))

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        return build()
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _skeleton(arch: str, build: Callable[[], nn.Module]) -> nn.Module:
    """The default network without memory for its weights."""
    try:
        return without_weights(build)
    except Exception as error:  # each zoo refuses an unknown name in its own way
        raise PosthocError(
            f"--arch {show(arch)}, which cannot be built ({show(error)})",
            "the name of a model that the library has",
            f"look it up in {arch.partition(':')[0]}'s list of models",
        ) from None


def _classes(skeleton: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The checkpoint's number of classes where it is not the default: the one size in which matrices differ."""
    found = set()
    for name, tensor in skeleton.state_dict().items():
        own = state.get(name)
        matrix = tensor.ndim == 2 or tensor.shape[2:] == (1, 1)
        if own is not None and matrix and tensor.ndim == own.ndim and tensor.shape[1:] == own.shape[1:]:
            found |= {own.shape[0]} - {tensor.shape[0]}
    return found.pop() if len(found) == 1 else None


def _channels(skeleton: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    for name, tensor in skeleton.state_dict().items():
        if tensor.ndim == 4:
            own = state.get(name)
            differs = own is not None and own.ndim == 4 and own.shape[1] != tensor.shape[1]
            return own.shape[1] if own is not None and differs else None
    return None
