"""What large data costs: memory on features of iNaturalist's size and on many samples, and a model of time and memory.

python examples/benchmarks/scale.py memory --dir DIR [--train 437513 --val 24426 --test 24426] [--json]
python examples/benchmarks/scale.py search --dir DIR [--val 16777216] [--json]
python examples/benchmarks/scale.py times --dir DIR [--json]

`memory` writes synthetic features (f16, long-tailed classes) block by block into DIR, once, and runs each method in a
process of its own; its anonymous memory (RssAnon of /proc, which leaves out the pages of mapped files) is read every
5 ms. crt and lws are stopped after `--steps` steps of their solver, which hold the same memory as all of them. `crt
path` is three penalties, from which validation chooses, instead of the seven that large data has by default.

`search` does the same with the choice alone of a knob, and of a head, on --val samples of 2 dimensions and 3 classes,
whose columns lie in temporary files (TMPDIR).

`times` measures small cases with one process and with two (torchrun, Gloo), each method by itself, and fits

    seconds = (p·N·D·C + q·N·C + r·N·D)/ranks + s·N + t        bytes = u·N + v·C·D + w

to them (bytes: all the anonymous memory of a process), coefficients >= 0, relative errors least squares; beside it
stand the residuals and what larger cases would take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from posthoc_lt import Features, FeatureSet, Head, evaluate, fit, load_features, ranks
from posthoc_lt.family import Path as HeadPath
from posthoc_lt.files.container import Pieces
from posthoc_lt.files.feature_file import writing_features
from posthoc_lt.methods import crt
from posthoc_lt.methods.crt import CRT
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.methods.lws import LWS
from posthoc_lt.search import Goal, choose
from posthoc_lt.solver.logistic import trace_logistic
from posthoc_lt.solver.minimise import minimise
from posthoc_lt.solver.penalties import penalties

METHODS = ("evaluation", "logit-adjust", "tau-norm", "ncm", "crt", "crt path", "lws")
SEARCHES = ("balanced-accuracy", "macro-f1", "path of three")
MODELLED = ("evaluation", "logit-adjust", "tau-norm", "ncm", "grid of 21")
SIZES = (
    (8_000, 512, 1_000),
    (16_000, 512, 1_000),
    (8_000, 1_024, 1_000),
    (8_000, 512, 2_000),
    (2_000, 256, 8_000),
    (200_000, 64, 50),
    (1_000_000, 16, 10),
)
"""Samples of each split, dimensions, classes."""
LONG = 10**10
"""Multiplications past which one run is enough."""
LARGE = {
    "iNaturalist 2018": (437_513, 24_426, 2_048, 8_142),
    "a billion samples": (10**9, 10**6, 2_048, 1_000),
    "100,000 classes": (10**7, 500_000, 2_048, 100_000),
}
"""Train samples, samples of validation and of test, dimensions, classes."""
LARGE_CASE = {"train": 437_513, "val": 24_426, "test": 24_426, "dimensions": 2_048, "classes": 8_142}
MANY_SAMPLES = {"train": 1_000, "val": 1 << 24, "test": 1_000, "dimensions": 2, "classes": 3}
BLOCK = 4_096


def long_tail(samples: int, classes: int) -> Tensor:
    """Counts (C,) that fall by a constant factor from the first class to the last, 250 times rarer; 2 at least."""
    share = torch.logspace(0, -2.4, classes, dtype=torch.float64)
    counts = 2 + ((samples - 2 * classes) * share / share.sum()).long()
    counts[0] += samples - counts.sum()
    return counts


def write_case(path: Path, samples: dict[str, int], dimensions: int, classes: int) -> None:
    """A feature file of noisy class means and the head that knows them, a block in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(classes, dimensions, generator=generator) * 3 / dimensions**0.5
    counts = long_tail(samples["train"], classes)
    labels = {"train": torch.arange(classes).repeat_interleave(counts)}
    labels |= {name: torch.arange(samples[name]) * classes // samples[name] for name in ("val", "test")}

    def read(name: str) -> Callable[[], Iterator[Tensor]]:
        def blocks() -> Iterator[Tensor]:
            drawn = torch.Generator().manual_seed(len(name))
            for y in labels[name].split(BLOCK):
                yield (means[y] + torch.randn(len(y), dimensions, generator=drawn)).half()

        return blocks

    splits = {f"{name}.features": Pieces((len(y), dimensions), torch.float16, read(name)) for name, y in labels.items()}
    splits |= {f"{name}.labels": Pieces(y.shape, y.dtype, lambda y=y: iter((y,))) for name, y in labels.items()}
    head = Head(means, (counts / counts.sum()).log() - means.square().sum(dim=1) / 2)
    with writing_features(FeatureSet(head), splits, path):
        pass


class Watch:
    """The highest anonymous memory of this process, in bytes, while the block lasts."""

    def __enter__(self) -> Watch:
        self.before = self.highest = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.005):
            self.highest = max(self.highest, anonymous())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def anonymous() -> int:
    """The resident memory of this process that no file stands behind, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def grid_search(head: Head, val: Features, log_prior: Tensor) -> None:
    """As the reference codes do it: logits anew at each of 21 values, balanced accuracy, the best one."""
    x, y, best = val.x.float(), val.labels, -1.0
    for tau in torch.linspace(0, 2, 21).tolist():
        right = (x @ head.weight.T + head.bias - tau * log_prior).argmax(dim=1) == y
        found = torch.bincount(y[right], minlength=head.classes) / torch.bincount(y, minlength=head.classes)
        best = max(best, float(found.nanmean()))


def work(method: str, path: Path, steps: int) -> Callable[[], object]:
    """What is measured, from opening the file on."""
    if method == "evaluation":
        features = load_features(path)
        return lambda: evaluate(features.head, features.test, features.counts)
    if method in ("crt", "crt path", "lws"):
        for solver in (minimise, trace_logistic):  # stopped early on purpose, which no option of the toolkit does
            solver.__kwdefaults__["steps"] = steps
        if method == "crt path":
            crt.penalties = lambda *asked: penalties(*asked)[:3]
        chosen = {"crt": CRT(l2=0.1), "crt path": CRT(), "lws": LWS(l2=0.1)}[method]
        return lambda: fit(chosen, str(path))
    return lambda: fit(method, str(path))


def measure_method(method: str, path: Path, steps: int) -> dict[str, float]:
    """Seconds, and the highest anonymous memory of the whole process."""
    run = choosing(method, path) if method in SEARCHES else work(method, path, steps)
    start = time.perf_counter()
    with Watch() as watch:
        run()
    return {"seconds": time.perf_counter() - start, "bytes": watch.highest, "bytes_before": watch.before}


def choosing(what: str, path: Path) -> Callable[[], object]:
    """Choosing τ of logit adjustment by a metric, or one of three heads."""
    features = load_features(path)
    if what == "path of three":
        heads = [Head(features.head.weight * scale, features.head.bias) for scale in (0.3, 1.0, 3.0)]
        return lambda: choose(HeadPath((0.3, 1.0, 3.0), heads), features.val)
    family = LogitAdjust().fit(features.head, features.training)
    return lambda: choose(family, features.val, Goal(what))


def measure_size(name: str, path: Path) -> list[dict[str, object]]:
    """A modelled method on one case, in this process, which may be one of several; short runs more than once."""
    features = load_features(path)
    head, val, counts = features.head, features.val, features.counts
    log_prior = (counts / counts.sum()).log().float()
    run: Callable[[], object] = {
        "evaluation": lambda: evaluate(head, val, counts),
        "logit-adjust": lambda: fit("logit-adjust", FeatureSet(head, val=val, train_counts=counts)),
        "tau-norm": lambda: fit("tau-norm", FeatureSet(head, val=val, train_counts=counts)),
        "ncm": lambda: fit("ncm", FeatureSet(head, features.train)),
        "grid of 21": lambda: grid_search(head, val, log_prior),
    }[name]
    seconds, repeats = [], 1 if len(val) * head.dimensions * head.classes > LONG else 3
    with Watch() as watch:
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    size = {"samples": len(val), "dimensions": head.dimensions, "classes": head.classes, "ranks": ranks.world()}
    return [{"method": name, **size, "seconds": statistics.median(seconds), "bytes": watch.highest}]


def child(arguments: list[str], processes: int = 1) -> object:
    """This script in a process of its own, or in several; what the first of them prints."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run([*launch, __file__, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def terms(what: str, samples: int, dimensions: int, classes: int, world: int) -> list[float]:
    """What a coefficient stands before in the model of time, or of memory."""
    if what == "seconds":
        shared = (samples * dimensions * classes, samples * classes, samples * dimensions)
        return [*(each / world for each in shared), samples, 1.0]
    return [samples, float(classes * dimensions), 1.0]


def fitted(rows: list[dict[str, object]], what: str) -> dict[str, object]:
    """The coefficients of one method's model of `what`, and its residuals in percent."""
    columns = [[row[name] for name in ("samples", "dimensions", "classes", "ranks")] for row in rows]
    design = np.array([terms(what, *each) for each in columns])  # type: ignore[arg-type]
    target = np.array([max(float(row[what]), 1e-3) for row in rows])  # type: ignore[arg-type]
    scale = np.abs(design).max(axis=0)
    coefficients = nnls(design / scale / target[:, None], np.ones(len(rows)))[0] / scale
    residuals = 100 * (design @ coefficients / target - 1)
    return {"coefficients": coefficients.tolist(), "residuals_percent": residuals.round(1).tolist()}


def memory(arguments: argparse.Namespace) -> dict[str, object]:
    """The large case, a process a method."""
    sizes = {name: getattr(arguments, name) for name in ("train", "val", "test")}
    shape = (arguments.dimensions, arguments.classes)
    path = arguments.dir / f"scale-{'-'.join(map(str, (*sizes.values(), *shape)))}.safetensors"
    if not path.exists():
        write_case(path, sizes, *shape)
    found = {"dimensions": shape[0], "classes": shape[1], **sizes, "file_bytes": path.stat().st_size}
    for name in arguments.methods or (SEARCHES if arguments.what == "search" else METHODS):
        found[name] = child(["method", "--path", str(path), "--methods", name, "--steps", str(arguments.steps)])
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def times(arguments: argparse.Namespace) -> dict[str, object]:
    """The small cases, the model, and what it says of large ones."""
    rows: list[dict[str, object]] = []
    for samples, dimensions, classes in [tuple(map(int, each.split(","))) for each in arguments.sizes] or SIZES:
        with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
            path = Path(folder) / "case.safetensors"
            write_case(path, dict.fromkeys(("train", "val", "test"), max(samples, 2 * classes)), dimensions, classes)
            for name, processes in product(MODELLED, (1, 2)):
                if processes == 1 or name != "grid of 21":
                    rows += child(["size", "--path", str(path), "--methods", name], processes)  # type: ignore[operator]
        print(f"{samples} x {dimensions} x {classes}", file=sys.stderr, flush=True)
    models = {
        name: {what: fitted([row for row in rows if row["method"] == name], what) for what in ("seconds", "bytes")}
        for name in MODELLED
    }
    large = {
        case: {name: predicted(models[name], name, *size) for name in MODELLED if name != "grid of 21"}
        for case, size in LARGE.items()
    }
    return {"rows": rows, "models": models, "large": large}


def predicted(
    model: dict[str, dict[str, object]], name: str, train: int, val: int, dimensions: int, classes: int
) -> dict[str, float]:
    """Hours of one process, and GB, of a method on a large case: ncm passes over train, the others over validation."""
    size = (train if name == "ncm" else val, dimensions, classes, 1)
    seconds, held = (float(np.dot(terms(what, *size), model[what]["coefficients"])) for what in ("seconds", "bytes"))
    return {"hours": round(seconds / 3600, 4), "gigabytes": round(held / 1e9, 3)}


def show(found: dict[str, object]) -> None:
    """As a table."""
    if "rows" not in found:
        for name in (each for each in (*METHODS, *SEARCHES) if each in found):
            print(f"{name:>17}  {found[name]['bytes'] / 2**30:6.2f} GiB  {found[name]['seconds']:8.1f} s")  # type: ignore[index]
        return
    for name, model in found["models"].items():  # type: ignore[attr-defined]
        for what, each in model.items():
            print(f"{name:>14} {what:8}", " ".join(f"{value:9.2e}" for value in each["coefficients"]))
            print(" " * 24 + "residuals %:", *each["residuals_percent"])
    for case, methods in found["large"].items():  # type: ignore[attr-defined]
        print(
            case,
            "".join(
                f"\n{name:>14}  {each['hours']:9.3f} h  {each['gigabytes']:7.2f} GB" for name, each in methods.items()
            ),
        )


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("memory", "search", "times", "method", "size"))
    parser.add_argument("--dir", type=Path, default=Path("build/scale"))
    parser.add_argument("--path", type=Path)
    parser.add_argument("--methods", nargs="*", choices=(*METHODS, *SEARCHES, "grid of 21"))
    parser.add_argument("--sizes", nargs="*", default=[], help="N,D,C of small cases, instead of those of the script")
    for name in LARGE_CASE:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for name, default in (MANY_SAMPLES if arguments.what == "search" else LARGE_CASE).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.what == "method":
        print(json.dumps(measure_method(arguments.methods[0], arguments.path, arguments.steps)))
        return
    if arguments.what == "size":
        with ranks.joined():
            rows = measure_size(arguments.methods[0], arguments.path)
            if ranks.rank() == 0:
                print(json.dumps(rows))
        return
    arguments.dir.mkdir(parents=True, exist_ok=True)
    found = times(arguments) if arguments.what == "times" else memory(arguments)
    print(json.dumps(found)) if arguments.json else show(found)


if __name__ == "__main__":
    main()
