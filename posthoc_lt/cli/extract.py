"""``extract``: a checkpoint's features, cached."""

from __future__ import annotations

import time
from pathlib import Path

import click

from posthoc_lt.cli import options, output
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import evaluate
from posthoc_lt.extraction import extract_source, is_current, open_source
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import FEATURES, load_features, save_features
from posthoc_lt.report import render


@click.command()
@options.together(
    options.ckpt,
    click.option("--data", type=options.FILE, default="data", show_default=True, help="Holds train/ val/ test/."),
    options.out("feats.safetensors", "The feature file to write."),
    click.option("--arch", help="timm:NAME, torchvision:NAME or module:factory; CIFAR ResNets are found unasked."),
    click.option("--mean", type=options.numbers, help="Mean of each channel, such as 0.485,0.456,0.406."),
    click.option("--std", type=options.numbers, help="Standard deviation of each channel."),
    click.option("--input-size", type=click.IntRange(min=1), help="Side of the square that the network takes."),
    click.option("-b", "--batch-size", type=click.IntRange(min=1), default=256, show_default=True),
    click.option("-j", "--workers", type=click.IntRange(min=0), help="Threads that decode images."),
    click.option("--limit", type=click.IntRange(min=1), help="At most so many images a split, to try things out."),
    click.option("--counts", type=options.FILE, help="A file of train images a class, for want of train/."),
    options.device,
    options.force,
    options.form,
    options.quiet,
)
def extract(
    ckpt: Path,
    data: Path,
    out: Path,
    arch: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_size: int | None,
    batch_size: int,
    workers: int | None,
    limit: int | None,
    counts: Path | None,
    device: str,
    force: bool,
    form: str,
    quiet: bool,
) -> None:
    """Run a checkpoint's network once over train/ val/ test/ and cache what its head reads."""
    output.protect(out, FEATURES, ckpt)
    numbers = None if counts is None else options.read_counts(counts)
    source = open_source(ckpt, data, arch=arch, limit=limit, mean=mean, std=std, input_size=input_size, counts=numbers)
    features = None if force or not out.exists() else load_features(out)
    if features is not None:
        if not is_current(features, source):
            raise PosthocError(
                f"{show(out)}, which holds the features of another checkpoint, transform or set of images",
                "a new file name, or leave to overwrite",
                "give --force to overwrite it, or --out with another name",
            )
        output.note(f"{out} is up to date: the same checkpoint, transform and images.", quiet)
    else:
        start = time.perf_counter()
        features = extract_source(source, device=device, batch_size=batch_size, workers=workers, progress=not quiet)
        save_features(features, out, force)
        images = sum(map(len, features.splits().values()))
        output.note(f"Wrote {out}: {images} images in {time.perf_counter() - start:.1f} s", quiet)
    if arch is not None and not arch.startswith(("timm:", "torchvision:")) and mean is None and std is None:
        output.note(
            "Preprocessing was assumed, see the transform: give --mean, --std and --input-size where training "
            "used others.",
            quiet,
        )
    _print(features, ckpt, out, form)


def _print(features: FeatureSet, ckpt: Path, out: Path, form: str) -> None:
    """What was found, and each split's accuracy under the untouched head: a check on the preprocessing."""
    rows = []
    for name, split in features.splits().items():
        judged = evaluate(features.head, split, features.counts)
        rows.append(
            {
                "split": name,
                "samples": len(split),
                "classes": features.head.classes - len(judged.missing),
                "accuracy": judged.accuracy,
                "balanced_accuracy": judged.balanced_accuracy,
            }
        )
    provenance = features.provenance
    if form == "json":
        output.print_json(
            {
                **output.preamble({"checkpoint": ckpt}),
                "features": str(out),
                "arch": provenance["arch"],
                "head": provenance["head_name"],
                "transform": provenance["transform"],
                "splits": rows,
            }
        )
        return
    if form == "table":
        output.say(
            f"{show(provenance['arch'])}, head {show(provenance['head_name'])}: {features.head.classes} classes, "
            f"{features.head.dimensions} dimensions; transform {show(provenance['transform'], 200)}\n"
            "The untouched head on these features (figures far from those of your training mean a wrong transform):"
        )
    click.echo(render(rows, form), nl=form != "csv")
