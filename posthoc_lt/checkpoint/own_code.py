"""Networks of the user's own code, named as module:factory."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.own_code import current_folder, own_failure, own_function


def is_own_code(arch: str) -> bool:
    """Whether an architecture is the user's own ``module:factory``, and not one of a library.

    >>> is_own_code("mycode:build"), is_own_code("timm:resnet50"), is_own_code("cifar-resnet20")
    (True, False, False)
    """
    module, colon, _ = arch.partition(":")
    return bool(colon) and module not in ("timm", "torchvision")


def own_factory(module: str, name: str) -> Callable[[], nn.Module]:
    """The function `name` of `module`, importable from the current folder.

    Raises:
        PosthocError: the module does not import, or has no such function; on being called: it fails,
            or returns no nn.Module.
    """
    arch = f"{module}:{name}"
    make = own_function(
        "--arch",
        arch,
        "a function or class that returns the network when called without arguments",
        f"def {name}(): return MyNetwork(num_classes=…)",
    )

    def build() -> nn.Module:
        with current_folder():
            try:
                network = make()
            except Exception as error:  # the user's own code may raise anything
                raise own_failure("--arch", arch, "which fails when called without arguments", error) from error
        if not isinstance(network, nn.Module):
            raise PosthocError(
                f"--arch {show(arch)}, which returns {type(network).__name__}",
                "a torch.nn.Module",
                "return the network itself from it",
            )
        return network

    return build
