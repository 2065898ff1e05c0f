"""What extraction costs beside the network's own forward pass, and whether it survives being killed.

python examples/benchmarks/extract.py [--copies 4] [--repeats 5] [--json]    throughput, on the CPU
python examples/benchmarks/extract.py --files [--workers 2] [--json]         from image files, beside timm
python examples/benchmarks/extract.py --kills 20 [--json]                    SIGKILL at random moments, then again

The embedded case: a ResNet-20 and 2,436 images of 28 x 28. For throughput its images lie decoded in memory, `copies`
times over, and a bare loop, `network(batch)` and nothing else, runs over the same tensors in the same batches, by turns
with the whole of `extract_to`: loading the network, proving its head, features, parts, checksums, the file, and reading
it back. From files, both sides open and decode the embedded PNGs in so many workers; the other side is timm's own
data set, loader, meters and top-1 and top-5 accuracy, in the order of its validate.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import load_network
from posthoc_lt.checkpoint.zoo import library
from posthoc_lt.cli import run
from posthoc_lt.cli.demo import unpack
from posthoc_lt.extraction import Source, extract_to, open_source, passes

BATCH = 256


class InMemory:
    """Decoded images and their labels."""

    own_code = False

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return f"image {index}"

    stamp = name


def decoded(source: Source, copies: int) -> Source:
    """The same source with its images in memory."""
    splits = {}
    for name, images in source.readers().items():
        x, y = images.stack(range(len(images)))
        splits[name] = InMemory(x.repeat(copies, 1, 1, 1), y.repeat(copies))
    return replace(source, data=replace(source.data, splits=splits))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long it takes, and how long processors are at it, which other programs on the machine hardly change."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def throughput(folder: Path, copies: int, repeats: int) -> dict[str, object]:
    """Images a second of extraction and of the bare loop, medians; ratios are medians of the ratios in a turn."""
    source = decoded(open_source(folder / "model.pt", folder / "data"), copies)
    network = load_network(source.checkpoint, source.architecture)
    inputs = [split.x for split in source.data.splits.values()]
    images = sum(map(len, inputs))

    def bare() -> None:
        with torch.inference_mode():
            for x in inputs:
                for batch in x.split(BATCH):
                    network(batch)

    def extraction() -> None:
        extract_to(folder / "feats.safetensors", source, device="cpu", batch_size=BATCH, workers=0, force=True)

    bare(), extraction()  # warm
    turns = [(seconds(bare), seconds(extraction)) for _ in range(repeats)]

    def rate(which: int) -> float:
        return round(images / statistics.median(turn[which][0] for turn in turns), 1)

    def ratio(clock: int) -> float:
        return round(statistics.median(turn[0][clock] / turn[1][clock] for turn in turns), 3)

    return {
        "images": images,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "bare_images_per_second": rate(0),
        "extract_images_per_second": rate(1),
        "ratio": ratio(0),
        "processor_time_ratio": ratio(1),
    }


def timm_validation(network: nn.Module, folder: Path, workers: int) -> float:
    """A validation pass as timm's, over one split's folder; its top-1 accuracy."""
    library("timm")  # imports it even where torchvision is built for another torch
    data, utils = importlib.import_module("timm.data"), importlib.import_module("timm.utils")
    loader = data.create_loader(
        data.ImageDataset(str(folder), input_img_mode="L"),
        input_size=(1, 28, 28),
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation="bilinear",
        mean=(0.5,),
        std=(0.5,),
        num_workers=workers,
        crop_pct=1.0,
    )
    criterion, losses, top1, top5 = nn.CrossEntropyLoss(), *(utils.AverageMeter() for _ in range(3))
    with torch.inference_mode():
        for x, target in loader:
            output = network(x)
            loss = criterion(output, target)
            acc1, acc5 = utils.accuracy(output, target, topk=(1, 5))
            losses.update(loss.item(), x.size(0))
            top1.update(acc1.item(), x.size(0))
            top5.update(acc5.item(), x.size(0))
    return float(top1.avg)


def from_files(folder: Path, repeats: int, workers: int) -> dict[str, object]:
    """Images a second of extraction and of timm's validation loop, medians; the ratio is the median of a turn's."""
    source = open_source(folder / "model.pt", folder / "data")
    network = load_network(source.checkpoint, source.architecture)
    images = sum(map(len, source.data.splits.values()))

    def peer() -> None:
        for name in source.data.splits:
            timm_validation(network, folder / "data" / name, workers)

    def extraction() -> None:
        out = folder / "feats.safetensors"
        extract_to(out, source, device="cpu", batch_size=BATCH, workers=workers, force=True)

    peer(), extraction()  # warm
    turns = [(seconds(peer)[0], seconds(extraction)[0]) for _ in range(repeats)]
    rates = [round(images / statistics.median(side), 1) for side in zip(*turns, strict=True)]
    return {
        "images": images,
        "repeats": repeats,
        "workers": workers,
        "timm_images_per_second": rates[0],
        "extract_images_per_second": rates[1],
        "ratio": round(statistics.median(theirs / ours for theirs, ours in turns), 3),
    }


def attempt(command: list[str], log: Path, kill_after: float | None = None) -> int:
    """Run a command in a fork of this process, which has torch loaded already, and perhaps kill it; its status."""
    child = os.fork()
    if not child:
        passes.PART_SECONDS = 0.0  # a part a batch, so that there is something to lose and to find
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            status = run(command)
        os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(folder: Path, times: int, seed: int, limit: int | None) -> dict[str, object]:
    """Kill `times` extractions at random moments of their course, type each again, and compare its file."""
    rng = random.Random(seed)
    log, whole = folder / "log", folder / "whole.safetensors"
    importlib.import_module("posthoc_lt.cli.extract")  # here, so that no fork needs to

    def command(out: Path) -> list[str]:
        common = ["--data", str(folder / "data"), "--device", "cpu", "-b", "32", "-j", "0"]
        common += [] if limit is None else ["--limit", str(limit)]
        return ["extract", "--ckpt", str(folder / "model.pt"), "--out", str(out), *common]

    start = time.perf_counter()
    if attempt(command(whole), log):
        raise SystemExit(log.read_text())
    course, identical, killed, continued, runs = time.perf_counter() - start, 0, 0, 0, 0
    while killed < times:
        out, runs, start = folder / f"killed-{runs}.safetensors", runs + 1, time.perf_counter()
        if attempt(command(out), log, rng.uniform(0.1, 1) * course) != -signal.SIGKILL:
            course = min(course, time.perf_counter() - start)  # it was done before: the next is drawn from less
            continue
        killed += 1
        if attempt(command(out), log):
            raise SystemExit(log.read_text())
        continued += "Going on from an interrupted run" in log.read_text()
        identical += out.read_bytes() == whole.read_bytes() and not list(folder.glob(f".{out.stem}*"))
    return {"runs": runs, "killed": killed, "continued": continued, "identical": identical}


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", action="store_true", help="from image files, beside timm's validation loop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--limit", type=int, help="images a split for --kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))  # before a fork there must be one thread
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(folder)
        if arguments.kills:
            found = kills(folder, arguments.kills, arguments.seed, arguments.limit)
        elif arguments.files:
            found = from_files(folder, arguments.repeats, arguments.workers)
        else:
            found = throughput(folder, arguments.copies, arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
        return
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{key:>{width}}  {value}")


if __name__ == "__main__":
    sys.exit(main())
