"""Whether networks are known from their bare tensors, and their heads found: timm's and torchvision's registries.

python examples/benchmarks/identify.py [--classes 37] [--json]     real random weights for the networks below
python examples/benchmarks/identify.py --all [--json]              every name, shapes alone (a few minutes)

It needs the extra `vision`. A network counts as identified where it, or one that computes the same, is the only
answer, and as listed where it is among several that compute differently and whose tensors have the same names and
shapes, so that no bare state dict could tell them; `told_by_arch` counts those of them that an entry such as timm's
`arch` beside the state dict tells. Seconds are those of a process that has imported the libraries: all in all, and of
one core's time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from posthoc_lt.checkpoint import Candidate, candidates, find_head, identify, load_network, read
from posthoc_lt.checkpoint.build_fingerprints import image_size, registry, skeleton
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.checkpoint.told import told
from posthoc_lt.checkpoint.weights import WeightSet
from posthoc_lt.checkpoint.zoo import library

TIMM = (
    "resnet26", "resnet18d", "seresnet50", "resnext50_32x4d", "resnetv2_50", "regnety_004", "regnetx_008",
    "efficientnet_lite0", "tf_efficientnet_lite0", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small",
    "mnasnet_100", "ghostnet_100", "densenet121", "dla34", "hrnet_w18_small", "convnext_atto", "convnextv2_atto",
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224", "mixer_s32_224", "poolformer_s12", "mobilevit_xxs",
    "levit_128s", "xcit_nano_12_p16_224", "cait_xxs24_224", "edgenext_xx_small", "efficientformer_l1", "fastvit_t8",
    "repvgg_a0", "vgg11", "inception_v3", "cspdarknet53",
)  # fmt: skip
TORCHVISION = (
    "alexnet", "vgg11_bn", "squeezenet1_1", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d",
    "densenet121", "googlenet", "shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "efficientnet_b0", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t",
)  # fmt: skip


def outcome(name: str, found: list[Candidate]) -> str:
    """identified, listed, or what went wrong."""
    own = [each for each in found if each.name == name]
    if not own:
        return "taken for another" if found else "unknown"
    return "identified" if len({each.function for each in found}) == 1 else "listed"


def told_right(name: str, checkpoint: Checkpoint, found: list[Candidate]) -> bool:
    """Whether what the file says of itself leads to the network or one that computes the same."""
    groups: dict[int, list[str]] = {}
    for each in found:
        groups.setdefault(each.function, []).append(each.name)
    said = told(checkpoint, list(groups.values()))
    return said is not None and name in list(groups.values())[said[0]]


def build(name: str, classes: int) -> nn.Module:
    """The network at random weights."""
    kind, _, model = name.partition(":")
    if kind == "timm":
        network: nn.Module = library("timm").create_model(model, num_classes=classes)
        return network
    made: nn.Module = library("torchvision").models.get_model(model, weights=None, num_classes=classes)
    return made


def one(name: str, classes: int, folder: Path) -> dict[str, object]:
    """A network saved as a bare state dict, identified, loaded and its head proved."""
    torch.manual_seed(0)
    network = build(name, classes)
    size = image_size(network)
    torch.save(network.state_dict(), folder / "model.pt")
    start, busy = time.perf_counter(), time.process_time()
    checkpoint = read(folder / "model.pt")
    found = candidates(checkpoint)
    row: dict[str, object] = {"name": name, "found": outcome(name, found), "among": len(found)}
    try:
        architecture = identify(checkpoint, name if row["found"] == "listed" else None)
        row["identify_seconds"] = round(time.perf_counter() - start, 2)
        located = find_head(load_network(checkpoint, architecture), torch.randn(2, 3, size, size))
        row |= {"head": located.name, "shape": list(located.head.weight.shape)}
    except Exception as error:  # a benchmark goes on
        row |= {"head": None, "error": str(error)[:160]}
    seconds = {"all_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
    return row | {name: round(value, 2) for name, value in seconds.items()}


def every(classes: int) -> dict[str, object]:
    """The rate over both registries, from the shapes of networks without memory for weights."""
    outcomes: dict[str, list[str]] = {}
    slowest, by_arch = 0.0, 0
    for name in registry():
        try:
            network = skeleton(name, classes)
        except Exception:  # names that the registry itself cannot build without pretrained weights or further packages
            outcomes.setdefault("not built", []).append(name)
            continue
        state = network.state_dict()
        if not any(tensor.shape[:1] == (classes,) for tensor in state.values()):
            outcomes.setdefault("no classifier", []).append(name)
            continue
        whole = WeightSet("", {key: (key,) for key in state})
        start = time.perf_counter()
        said = {"arch": name.partition(":")[2]}
        checkpoint = Checkpoint(Path("model.pt"), "", "torch", state, whole, (), state, said)
        found = candidates(checkpoint)
        slowest = max(slowest, time.perf_counter() - start)
        outcomes.setdefault(outcome(name, found), []).append(name)
        by_arch += outcomes.get("listed", [""])[-1] == name and told_right(name, checkpoint, found)
    counts = {kind: len(names) for kind, names in outcomes.items()} | {"told_by_arch": by_arch}
    wrong = {kind: names for kind, names in outcomes.items() if kind != "identified"}
    return {"counts": counts, "slowest_lookup_seconds": round(slowest, 3), "classes": classes, "names": wrong}


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--classes", type=int, default=37)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.all:
        found = every(arguments.classes)
        print(json.dumps(found, indent=None if arguments.json else 1))
        return
    names = [*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            rows.append(one(name, arguments.classes, Path(folder)))
            if not arguments.json:
                row = rows[-1]
                shown = f"{row['head']} {tuple(row['shape'])}" if row["head"] else row["error"]
                print(
                    f"{name:38} {row['found']:11} {row['among']:2} {row['all_seconds']:6} s "
                    f"{row['cpu_seconds']:6} s cpu  {shown}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
