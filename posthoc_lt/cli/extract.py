"""``extract``: a checkpoint's features, cached."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from posthoc_lt.cli import options, output
from posthoc_lt.cli.splits import split_rows
from posthoc_lt.data import DataSpec
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.extraction import extract_to, is_current, open_source
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import FEATURES, discard, find, load_features
from posthoc_lt.fitting import L2
from posthoc_lt.report import render

data_options = options.together(
    click.option(
        "--data",
        metavar="WHAT",
        help="A folder with train/ val/ test/, a folder a class in each; a table with columns path, label, split "
        "(.csv .tsv .parquet); tar shards ('shards/{train,val}-*.tar'); a Hugging Face data set on disk; or "
        "module:factory, which is called with train, val and test and returns a Dataset or None.  [default: data]",
    ),
    click.option(
        "--train",
        metavar="WHAT",
        help="This split alone: a list of 'path label' lines, a table, tar shards or a folder; --data is then the "
        "folder that paths start from, by default the list's own.",
    ),
    click.option("--val", metavar="WHAT", help="Likewise; images without labels will do."),
    click.option("--test", metavar="WHAT", help="Likewise."),
    click.option("--classes", help="A file of class names, one a line, in the network's order."),
    click.option(
        "--holdout",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Take this share of train as val, of every class in proportion. Honest only if the network was not "
        "trained on these very images: it knows those by heart.",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of --holdout and --views."
    ),
    click.option("--exif", is_flag=True, help="Turn photographs as their EXIF says; most training code does not."),
)


@click.command()
@options.together(
    options.ckpt,
    data_options,
    options.out("feats.safetensors", "The feature file to write."),
    click.option("--arch", help="timm:NAME, torchvision:NAME or module:factory, where the tensors do not tell."),
    click.option("--weights", metavar="KEY", help="Which set of weights, where the file holds several."),
    options.allow_pickle,
    click.option("--fit-head", is_flag=True, help="For a sentence encoder, which has no head: fit one on train."),
    click.option("--l2", type=float, default=L2, show_default=True, help="Its penalty, in feature variances."),
    click.option("--mean", type=options.numbers, help="Mean of each channel, such as 0.485,0.456,0.406."),
    click.option("--std", type=options.numbers, help="Standard deviation of each channel."),
    click.option("--input-size", type=click.IntRange(min=1), help="Side of the square that the network takes."),
    click.option(
        "--views",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Rows of each train image: the image, then parts of it, mirrored or not, drawn by --seed. For methods "
        "that are fitted on train; class counts stay those of the images.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bf16", "f16"]),
        default="auto",
        show_default=True,
        help="What the network runs in; auto takes f16 on CUDA, else float32.",
    ),
    click.option("--compile", "compiled", is_flag=True, help="Make the network faster by torch.compile, first."),
    click.option("-b", "--batch-size", type=click.IntRange(min=1), default=256, show_default=True),
    click.option(
        "-j", "--workers", type=click.IntRange(min=0), help="Threads that decode images; for module:factory, processes."
    ),
    click.option(
        "--on-error",
        type=click.Choice(["stop", "skip"]),
        default="stop",
        show_default=True,
        help="What to do where an image cannot be read; the skipped are listed.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="At most so many images a split, to try things out."),
    click.option("--counts", type=options.FILE, help="A file of train images a class, for want of train/."),
    click.option(
        "--shard-size",
        type=options.size,
        metavar="SIZE",
        default="5GB",
        show_default=True,
        help="Past this size several files and an index, as Hugging Face lays out large models; a split stays whole.",
    ),
    options.device,
    options.force,
    options.form,
    options.quiet,
)
def extract(
    ckpt: Path,
    out: Path,
    arch: str | None,
    weights: str | None,
    allow_pickle: bool,
    fit_head: bool,
    l2: float,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_size: int | None,
    views: int,
    precision: str,
    compiled: bool,
    batch_size: int,
    workers: int | None,
    on_error: str,
    limit: int | None,
    counts: Path | None,
    shard_size: int,
    device: str,
    force: bool,
    form: str,
    quiet: bool,
    **data: Any,
) -> None:
    """Run a checkpoint's network once over train, val and test and cache what its head reads.

    Interrupted, it goes on from there when the same command is typed again.
    """
    output.protect(out, FEATURES, ckpt)
    numbers = None if counts is None else options.read_counts(counts)
    features = None if force or find(out) is None else load_features(out)
    source = open_source(
        ckpt,
        DataSpec(**data),
        arch=arch,
        limit=limit,
        mean=mean,
        std=std,
        input_size=input_size,
        counts=numbers,
        weights=weights,
        allow_pickle=allow_pickle,
        l2=l2 if fit_head else None,
        skip=on_error == "skip",
        views=views,
        known=None if features is None else features.provenance,
    )
    for note in filter(None, (source.checkpoint.note, source.architecture.note)):
        output.note(note, quiet)
    if features is not None:
        if not is_current(features, source, precision):
            raise PosthocError(
                f"{show(out)}, which holds the features of another checkpoint, transform or set of images",
                "a new file name, or leave to overwrite",
                "give --force to overwrite it, or --out with another name",
            )
        discard(out)  # left by a run that was killed when all was done
        output.note(f"{out} is up to date: the same checkpoint, transform and data.", quiet)
    else:
        start = time.perf_counter()
        features = extract_to(
            out,
            source,
            force=force,
            device=device,
            precision=precision,
            compiled=compiled,
            batch_size=batch_size,
            workers=workers,
            shard_bytes=shard_size,
            progress=not quiet,
            note=partial(output.note, quiet=quiet),
        )
        many = f"{sum(map(len, features.splits().values()))} {features.provenance['source']}"
        output.note(f"Wrote {out}: {many} in {time.perf_counter() - start:.1f} s", quiet)
    _note_findings(features, quiet)
    if arch is not None and not arch.startswith(("timm:", "torchvision:")) and mean is None and std is None:
        output.note(
            "Preprocessing was assumed, see the transform: give --mean, --std and --input-size where training "
            "used others.",
            quiet,
        )
    _print(features, ckpt, out, form)


def _note_findings(features: FeatureSet, quiet: bool) -> None:
    """What reading the data found out, as the feature file remembers it."""
    provenance = features.provenance
    for split, found in json.loads(provenance.get("skipped", "{}")).items():
        total = len(found) + len(features.splits()[split])
        names = listed([f"{name} ({why})" for name, why in found.values()], 10)
        output.note(f"Skipped {len(found)} of {total} {split} samples, which cannot be read: {names}", quiet)
    for split, count in json.loads(provenance.get("several_frames", "{}")).items():
        output.note(f"{count} {split} images have several frames; the first was taken.", quiet)
    if features.views > 1:
        output.note(f"train holds {features.views} rows of each image; its figures are those of the first.", quiet)
    share = json.loads(provenance.get("data_options", "{}")).get("holdout")
    if share is not None:
        output.note(
            f"val is {share:g} of train, held out: what it chooses and shows is honest only if the network was not "
            "trained on these images.",
            quiet,
        )


def _print(features: FeatureSet, ckpt: Path, out: Path, form: str) -> None:
    """What was found, and each split's accuracy under the untouched head: a check on the preprocessing."""
    rows = split_rows(features)
    provenance = features.provenance
    if form == "json":
        output.print_json(
            {
                **output.preamble({"checkpoint": ckpt}),
                "features": str(out),
                "arch": provenance["arch"],
                "arch_chosen_by": provenance.get("arch_chosen_by"),
                "head": provenance["head_name"] or None,
                "transform": provenance["transform"],
                "splits": rows,
            }
        )
        return
    if form == "table":
        head = provenance["head_name"] or f"fitted here ({provenance.get('fitted_head')})"
        output.say(
            f"{show(provenance['arch'])}, head {show(head)}: {features.head.classes} classes, "
            f"{features.head.dimensions} dimensions; transform {show(provenance['transform'], 200)}\n"
            "The untouched head on these features (figures far from those of your training mean a wrong transform):"
        )
    click.echo(render(rows, form, {"accuracy", "balanced_accuracy"}), nl=form != "csv")
