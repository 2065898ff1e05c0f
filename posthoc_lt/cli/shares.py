"""Class frequencies named on the command line: a word, a file, or what has to be estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posthoc_lt.cli import options, output
from posthoc_lt.cli.heads import require_same_checkpoint
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.methods.method import Method
from posthoc_lt.pipeline import as_features
from posthoc_lt.pipeline.deployment import deployment_prior, estimated_shares, network_shares
from posthoc_lt.priors import Shares
from posthoc_lt.shift import EstimatedPrior

LISTED = 10
"""How many classes a note on an estimate names."""


@dataclass(frozen=True)
class Resolved:
    """A method with the frequencies that its options named, and the estimate among them."""

    method: Method
    estimate: EstimatedPrior | None = None

    def note(self, features: FeatureSet, quiet: bool) -> None:
        """Say on standard error what was estimated, and which classes take no part."""
        if self.estimate is not None:
            output.note(describe(self.estimate, features.classes), quiet)
        if getattr(self.method, "zero_count", None) == "mask":
            note_masked(features, quiet)

    def record(self) -> dict[str, object]:
        """The frequencies for JSON: shares where there are any, else the word."""
        found: dict[str, object] = {}
        for name in ("prior", "target_prior"):
            value = getattr(self.method, name, None)
            if isinstance(value, Shares):
                found[name] = {"source": value.source, "shares": list(value.values)}
            elif value is not None:
                found[name] = value
        return found if self.estimate is None else {**found, "estimate": record(self.estimate)}


def resolve(method: type[Method], own: Mapping[str, Any], deploy: Path | None, features: FeatureSet) -> Resolved:
    """The method with its options as values; those that were not given are left to their defaults.

    Raises:
        PosthocError: a file cannot be read, or an estimate cannot be made.
    """
    given = {name: value for name, value in own.items() if value is not None}
    estimate = None
    if given.get("target_prior") == "em":
        samples = deployment_samples(features, deploy)
        estimate = deployment_prior(features, samples, zero_count=given.get("zero_count", "refuse"))
        given["target_prior"] = estimated_shares(estimate)
    elif deploy is not None:
        refuse_unused(deploy)
    if given.get("prior") == "model":
        given["prior"] = network_shares(features)
    for name, words in (("prior", ("counts", "uniform")), ("target_prior", ("uniform", "train"))):
        value = given.get(name)
        if isinstance(value, str) and value not in words:
            given[name] = read_shares(value, features, "--" + name.replace("_", "-"))
    return Resolved(method(**given), estimate)


def read_shares(text: str, features: FeatureSet, option: str) -> Shares:
    """The frequencies in a file, called by its name."""
    path = Path(text)
    return Shares(tuple(options.read_shares(path, features.head.classes, option).tolist()), path.name)


def deployment_samples(features: FeatureSet, path: Path | None) -> Features:
    """Samples to estimate frequencies from: those of another file, or an unlabelled test split. Never their labels.

    Raises:
        PosthocError: there are none, they are of another checkpoint, or they are the samples that judge.
    """
    if path is None:
        if features.test is None or features.test.y is not None:
            raise PosthocError(
                "em without unlabelled samples of the deployment" + ("" if features.test is None else _LABELLED),
                "samples from where the head will be used, without labels",
                "extract them to a feature file of their own (--data with images in test/) and give --deploy-features",
            )
        return features.test
    found = as_features(path, device=features.test.device if features.test is not None else "auto")
    require_same_checkpoint(found.provenance, features, path, "which are")
    splits = found.splits()
    if "test" not in splits and len(splits) != 1:
        raise PosthocError(
            f"{show(path)} with the splits {', '.join(splits) or 'none'}", "a test split, or one alone", "extract again"
        )
    split = splits.get("test") or next(iter(splits.values()))
    for name, own in features.splits().items():
        if own.y is not None and 0 < len(split) <= 2 * split.shared_with(own):
            raise PosthocError(
                f"{show(path)}, whose samples are {name} of these features",
                "samples of the deployment that neither fit, choose nor judge",
                "extract deployment samples to a feature file of their own",
            )
    return Features(split.x, None, split.device)


_LABELLED = " (the test split is labelled: it judges, and does not choose)"


def refuse_unused(deploy: Path) -> None:
    """Refuse samples that nothing would be estimated from.

    Raises:
        PosthocError: always.
    """
    raise PosthocError(
        f"--deploy-features {show(deploy)} without anything to estimate from them",
        "the frequencies to be estimated",
        "give em as the target too, or leave it out",
    )


def describe(found: EstimatedPrior, classes: tuple[str, ...]) -> str:
    """An estimate in words: the largest shares with their intervals, and what it rests on."""
    order = torch.argsort(found.prior, descending=True, stable=True)[:LISTED].tolist()
    shares = ", ".join(
        f"{show(classes[c])} {100 * found.prior[c]:.1f} [{100 * found.low[c]:.1f}, {100 * found.high[c]:.1f}]"
        for c in order
    )
    more = f"; the {LISTED} largest of {len(classes)}" if len(classes) > LISTED else ""
    lost = int((~found.identifiable).sum())
    unknown = f"; {lost} classes cannot be told apart and come from the regularisation" if lost else ""
    return (
        f"Class frequencies estimated by EM from {found.samples} unlabelled samples, percent [95% interval]: "
        f"{shares}{more}{unknown}."
    )


def note_masked(features: FeatureSet, quiet: bool) -> None:
    """Name the classes that masking takes out."""
    empty = (features.counts == 0).nonzero().flatten().tolist()
    if empty:
        output.note(f"Never predicted, for want of a train sample: {listed(features.classes[c] for c in empty)}", quiet)


def record(found: EstimatedPrior) -> dict[str, object]:
    """An estimate for JSON."""
    return {
        "samples": found.samples,
        "shares": found.prior.tolist(),
        "low": found.low.tolist(),
        "high": found.high.tolist(),
        "identifiable": found.identifiable.tolist(),
        "concentration": found.concentration,
        "converged": found.converged,
    }
