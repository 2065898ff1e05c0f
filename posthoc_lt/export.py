"""Writing a head back into the checkpoint it came from, proved before the file appears."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import (
    CPU_TOLERANCE,
    INDEX,
    Architecture,
    Checkpoint,
    HeadForm,
    Preprocessing,
    Transform,
    capture,
    changes,
    difference,
    fold,
    head_places,
    identify,
    is_own_code,
    load_network,
    placed,
    read,
    require_suffix,
    run_network,
    stored_head,
    tolerance,
    value_at,
    write,
)
from posthoc_lt.data import DataSpec, Findings, is_own_data, limit_of, limited, open_data
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.extraction import spread
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.files import replacing
from posthoc_lt.files.atomic import in_turn
from posthoc_lt.files.folder import replacing_folder
from posthoc_lt.head import Head
from posthoc_lt.own_code import named_here

SAMPLES = 32
"""How many real inputs a patched checkpoint is proved on."""

_ROUNDING = {"float32": 2.0**-10, "mixed": 2.0**-6}
"""How far cached features may lie from those computed again on a CPU, relative to the row's largest."""


@dataclass(frozen=True)
class Exported:
    """A checkpoint that was written and proved.

    Args:
        path: the file.
        changed: the keys whose tensors are new.
        samples: how many real inputs ran through the network rebuilt from the file.
        difference: the largest absolute difference between its logits and the head's on the same features.
    """

    path: Path
    changed: tuple[str, ...]
    samples: int
    difference: float


def export(
    ckpt: Path | str,
    head: Head,
    out: Path | str,
    *,
    features: FeatureSet,
    arch: str | None = None,
    data: Path | str | None = None,
    force: bool = False,
    add_bias: bool = False,
    allow_pickle: bool = False,
) -> Exported:
    """Fold `head` into a copy of the checkpoint, and prove on real inputs that the copy computes it.

    The file is written beside `out`, read back, its network rebuilt and run. Only where every other tensor is
    byte for byte the original's, the features are the cached ones, the logits are the head's, and so are the
    predictions, does it get its name; otherwise nothing is left behind.

    Args:
        ckpt: the checkpoint whose features these are.
        head: the new values.
        out: where the patched checkpoint goes; never the checkpoint itself.
        features: what `extract` gave for this checkpoint.
        arch: the architecture; None takes the one that the features name, unless that is code which you did not name in
            this process: what only a file names is not run.
        data: the images; None takes those that the features name, likewise.
        force: overwrite an existing, different file.
        add_bias: add a bias to a layer that has none; the code that loads the file must then expect it.
        allow_pickle: load even a checkpoint that may run code on loading; only for files that you trust.

    Raises:
        PosthocError: the checkpoint is another than the features', the head has no place in it, the features name code
            to run that you did not name, or the proof fails.
    """
    ckpt, out, head = Path(ckpt), Path(out), head.to(torch.device("cpu"))
    checkpoint = read(ckpt, features.provenance.get("weights"), allow_pickle=allow_pickle)
    name = _head_name(checkpoint, features)
    require_suffix(checkpoint, out)
    if out.exists() and out.samefile(ckpt):
        raise PosthocError(
            f"--out {show(out)}, which is the checkpoint itself", "another file", "give --out balanced.pt"
        )
    architecture = identify(checkpoint, arch or _harmless("--arch", features.provenance.get("arch"), is_own_code))
    checkpoint = checkpoint.renamed(architecture.renames)
    content = fold(checkpoint, name, head, add_bias)
    proof = _proof_inputs(features, data, architecture)
    with _replacing(out, force, folder=ckpt.is_dir()) as temporary:
        write(checkpoint, content, temporary)
        patched = read(temporary, checkpoint.weights.key, allow_pickle=allow_pickle)
        changed = _check_rest(checkpoint, patched, name)
        if add_bias and not features.head.has_bias:
            architecture = replace(architecture, factory=_with_bias(architecture.factory, name))
        network = load_network(patched, architecture)
        gap = _check_network(network, name, head, stored_head(checkpoint, name, head), proof)
    return Exported(out, changed, len(proof.cached), gap)


@contextmanager
def _replacing(out: Path, force: bool, *, folder: bool) -> Iterator[Path]:
    """A temporary path for a file, a folder, or an index with its shards beside it; named when the block ends well."""
    if folder or not out.name.endswith(INDEX):
        with (replacing_folder if folder else replacing)(out, force) as temporary:
            yield temporary
        return
    with ExitStack() as stack:
        begin = stack.enter_context(in_turn(out.parent))
        index = stack.enter_context(replacing(out, force))  # left last, so that it never names what is not there
        inside = Path(stack.enter_context(TemporaryDirectory(prefix=".", dir=out.parent)))
        yield inside / out.name
        begin()
        (inside / out.name).replace(index)
        for shard in inside.iterdir():
            with shard.open("rb+") as file:
                os.fsync(file.fileno())  # a disk that fails does so before the old index goes
            shard.replace(stack.enter_context(replacing(out.with_name(shard.name), force)))
        if force:
            out.unlink(missing_ok=True)  # so that an index never names shards of two checkpoints


def apply(model: nn.Module, name: str, head: Head, *, add_bias: bool = False) -> nn.Module:
    """A copy of a network in memory, its linear layer `name` holding `head`.

    Raises:
        PosthocError: no such linear layer, another shape, or a bias for a layer without one (unless `add_bias`).

    >>> apply(nn.Sequential(nn.Linear(2, 2)), "0", Head(torch.eye(2), torch.ones(2)))(torch.zeros(1, 2))
    tensor([[1., 1.]], grad_fn=<AddmmBackward0>)
    """
    model = copy.deepcopy(model)
    old = {key: value.detach() for key, value in model.named_parameters()}
    form = HeadForm.parse(name)
    if any(each not in old for each in form.parameters() if not each.endswith(".bias")):
        raise PosthocError(
            f"{type(model).__name__}, which has no layer {show(name)!r} to take a head",
            "the network that the features came from",
            "give that network and the layer name in features.provenance['head_name']",
        )
    for key, values in placed(name, head, old, add_bias).items():
        layer, _, kind = key.rpartition(".")
        with torch.no_grad():
            if key in old:
                model.get_parameter(key).copy_(values)
            else:
                setattr(model.get_submodule(layer), kind, nn.Parameter(values))
    return model


@dataclass(frozen=True, eq=False)
class _Proof:
    inputs: Tensor
    cached: Tensor
    rounding: float
    where: str


def _head_name(checkpoint: Checkpoint, features: FeatureSet) -> str:
    provenance = features.provenance
    if "fitted_head" in provenance:
        raise PosthocError(
            f"{show(checkpoint.path)}, which has no head, and features whose head was fitted on them",
            "a checkpoint that ends in a head",
            "use the head file itself: its weight and bias on the encoder's embeddings",
        )
    if "head_name" not in provenance or "checkpoint_sha256" not in provenance:
        raise PosthocError(
            "features that were not extracted from a checkpoint file",
            "features of this checkpoint, which say where its head is",
            "run: posthoc-lt extract --ckpt with this checkpoint",
        )
    if provenance["checkpoint_sha256"] != checkpoint.sha256:
        raise PosthocError(
            f"{show(checkpoint.path)} (sha256 {checkpoint.sha256[:12]}…) and features of another checkpoint "
            f"({show(provenance.get('checkpoint', 'unnamed'))}, sha256 {show(provenance['checkpoint_sha256'], 13)})",
            "the very file that the features were extracted from",
            "give that file as --ckpt, or extract this one's features and fit the head again",
        )
    return provenance["head_name"]


def _harmless(option: str, named: str | None, runs: Callable[[str], bool]) -> str | None:
    """What the features name for an option, unless that is code to run: a feature file may come from anyone."""
    if named is not None and runs(named) and not named_here(named):
        raise PosthocError(
            f"features that name code to run, {option} {show(named)}",
            "the same from you, if the code is yours: what only a file names is not run",
            f"add {option} {show(named)}",
        )
    return named


def _proof_inputs(features: FeatureSet, data: Path | str | None, architecture: Architecture) -> _Proof:
    provenance = features.provenance
    present = features.splits()
    split = next((name for name in ("val", "test", "train") if name in present), None)
    spec = DataSpec.from_provenance(provenance)
    if split is None or spec is None or "transform" not in provenance:
        raise PosthocError("features without images to prove on", "those of extract", "extract the features again")
    spec = replace(spec, data=_harmless("--data", spec.data, is_own_data) if data is None else str(data))
    found = limited(open_data(spec, architecture.classes), limit_of(provenance))
    skipped = Findings.of(provenance).skipped.get(split, {})
    prepare = _prepare(architecture, provenance["transform"])
    images = found.reader(split, prepare, prepare.collate) if split in found.splits else ()
    rows = [row for row in range(len(images)) if row not in skipped]
    if len(rows) != len(present[split]) or not images:
        raise _changed(split, f"{len(rows)} images where {len(present[split])} were extracted", found.place)
    indices = spread(len(rows), SAMPLES)
    cached = _rows(present[split], indices)
    rounding = _ROUNDING.get(provenance.get("precision", ""), _ROUNDING["mixed"])
    inputs, _ = images.stack([rows[index] for index in indices])
    return _Proof(inputs, cached, rounding, f"{split} of {show(found.place)}")


def _prepare(architecture: Architecture, transform: str) -> Transform:
    """What was done to the inputs when their features were extracted."""
    own = architecture.preprocessing
    return Preprocessing.from_json(transform) if isinstance(own, Preprocessing) else own


def _rows(split: Features, indices: list[int]) -> Tensor:
    return split.x[torch.tensor(indices, device=split.x.device)].cpu().float()


def _check_rest(before: Checkpoint, after: Checkpoint, name: str) -> tuple[str, ...]:
    """Refuse any difference but the head's; the new keys, as the file spells them."""
    places = head_places(before, name)
    if others := [key for key in changes(before, after) if key not in {"/".join(place) for place in places}]:
        raise _unproved(f"whose {listed(others)} would not be the original's")
    return tuple(place[-1] for place in places if value_at(after.content, place) is not None)


def _check_network(network: nn.Module, name: str, head: Head, stored: Head, proof: _Proof) -> float:
    """Refuse a network whose features are not the cached ones or whose logits are not those of `stored`."""
    with capture(network, name) as run:
        x, _ = run(proof.inputs)
    logits = run_network(network, proof.inputs)
    scale = proof.cached.abs().amax(dim=1, keepdim=True).clamp(min=1e-6)
    if bool(((x - proof.cached).abs() > proof.rounding * scale).any()):
        raise _changed(proof.where, "features that are not the cached ones", None)
    expected = stored(x)
    gap = float((logits - expected).abs().max())
    if difference(logits, expected) > tolerance(logits.device):
        raise _unproved(f"whose logits would differ from the head's by {gap:.3g}")
    _check_predictions(logits, head, stored, proof.cached, proof.rounding * scale)
    return gap


def _check_predictions(logits: Tensor, head: Head, stored: Head, cached: Tensor, error: Tensor) -> None:
    """Refuse a prediction other than the head's on the cached features, where rounding does not explain it."""
    head, stored = head.to(torch.float64), stored.to(torch.float64)
    z = head(cached.double())
    lost = cached.double().abs() @ (head.weight - stored.weight).abs().T + (head.bias - stored.bias).abs()
    slack = lost + error.double() * head.weight.abs().sum(dim=1) + CPU_TOLERANCE * z.abs().amax(dim=1, keepdim=True)
    mine, theirs = z.argmax(dim=1, keepdim=True), logits.argmax(dim=1, keepdim=True)
    margin = z.gather(1, mine) - z.gather(1, theirs)
    wrong = int((margin > slack.gather(1, mine) + slack.gather(1, theirs)).sum())
    if wrong:
        raise _unproved(f"whose predictions would differ from the head's on {wrong} of {len(z)} images")


def _with_bias(factory: Callable[[], nn.Module], name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network = factory()
        for layer in map(network.get_submodule, HeadForm.parse(name).layers):
            layer.bias = nn.Parameter(torch.zeros(layer.get_parameter("weight").shape[0]))
        return network

    return build


def _changed(where: str, what: str, place: Path | str | None) -> PosthocError:
    inside = "" if place is None else f" in {show(place)}"
    return PosthocError(
        f"{where}{inside}, which gives {what}",
        "the same images as when the features were extracted",
        "give --data with that folder, or extract the features and fit the head again",
    )


def _unproved(why: str) -> PosthocError:
    return PosthocError(
        f"a patched checkpoint {why}, so it was not kept",
        "a network that computes exactly the new head",
        "report this with the --arch and the version of torch; the original file is untouched",
    )
