"""What ``inspect`` does: tell what a file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from posthoc_lt.checkpoint import Checkpoint, candidates, identify, read
from posthoc_lt.conformal import FORMAT, load_thresholds
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.files import FEATURES, HEAD, container_kind, load_features, load_head
from posthoc_lt.report import dump


def inspect(path: Path, allow_pickle: bool, form: str) -> None:
    """Describe the file by its kind, and print that."""
    found = _describe(path, allow_pickle)
    if form == "json":
        click.echo(dump(found))
        return
    lines = [(show(name, 40), show(value, 400)) for name, value in sorted(found.items(), key=lambda item: item[0])]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")


def _describe(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    kind = container_kind(path)
    if kind == FEATURES:
        return _features(path)
    if kind == FORMAT:
        return _thresholds(path)
    return _head(path) if kind == HEAD else _checkpoint(path, allow_pickle)


def _features(path: Path) -> Mapping[str, Any]:
    features = load_features(path)
    splits = {name: repr(split) for name, split in features.splits().items()}
    return {**features.provenance, "format": "feature file", "head": repr(features.head), **splits}


def _head(path: Path) -> Mapping[str, Any]:
    saved = load_head(path)
    return {**saved.provenance, "format": "head file", "head": repr(saved.head)}


def _thresholds(path: Path) -> Mapping[str, Any]:
    found = load_thresholds(path)
    return {
        "format": "conformal thresholds",
        "kind": found.kind,
        "alpha": found.alpha,
        "classes": len(found.floor),
        "classes supported": int(found.supported.sum()),
    }


def _checkpoint(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    checkpoint = read(path, allow_pickle=allow_pickle)
    chosen = checkpoint.weights
    found: dict[str, Any] = {
        "format": f"checkpoint ({checkpoint.format})",
        "sha256": checkpoint.sha256,
        "tensors": len(checkpoint.state),
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "state dict at": chosen.key or "the top",
    }
    if checkpoint.others:
        found["other weights"] = f"{listed(checkpoint.others)} (--weights takes one of them)"
    if beside := [*checkpoint.metadata, *chosen.beside]:
        found["also holds"] = listed(beside, 8)
    return {**found, **_architecture(checkpoint)}


def _architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    fitting = candidates(checkpoint)
    found: dict[str, Any] = {}
    if fitting:
        heads = fitting[0].heads
        sizes = [tuple(checkpoint.state[f"{head}.weight"].shape) for head in heads]
        found["head"] = ", ".join(f"{show(head)} {size}" for head, size in zip(heads, sizes, strict=True))
        found["classes"] = sizes[0][0] if len({size[0] for size in sizes}) == 1 else "unclear"
    if len(fitting) > 1:
        functions = [[each.name for each in fitting if each.function == n] for n in {e.function for e in fitting}]
        found["candidates"] = "; ".join(" = ".join(names) for names in functions)
    try:
        architecture = identify(checkpoint)
    except PosthocError as error:
        return {**found, "arch": "not found" if not fitting else "not settled", "why": str(error)}
    return {**found, "arch": architecture.name, "transform": architecture.preprocessing.to_json()}
