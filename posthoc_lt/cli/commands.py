"""Every command: what can be typed. What it does is imported when all that was typed is right: errors cost no torch."""

from __future__ import annotations

from typing import Any

import click

from posthoc_lt.choices import KINDS, L2
from posthoc_lt.cli import options
from posthoc_lt.cli.described import methods
from posthoc_lt.cli.method_commands import method_command, tau_search

_METHODS = methods()
_LEFT_OUT = sorted(name for name, method in _METHODS.items() if not method.default)
_SPLIT = "FILE[,FILE]"

_data = options.together(
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

_choosing = options.together(
    options.features,
    click.option(
        "--methods",
        multiple=True,
        type=click.Choice(list(_METHODS)),
        help=f"Only these, once each; by default all but {', '.join(_LEFT_OUT)}.",
    ),
    options.metric,
    options.select,
    options.subject_to,
    options.class_weight,
    options.cost,
    *options.PRIORS.values(),
    options.groups,
)
_head = click.option("--head", type=options.FILE, default=None, help="A saved head; the untouched one by default.")
_table_or_json = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)


@click.command("extract", short_help="Run a checkpoint's network once and cache its features.")
@options.together(
    options.ckpt,
    _data,
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
def extract(**given: Any) -> None:
    """Run a checkpoint's network once over train, val and test and cache what its head reads.

    Interrupted, it goes on from there when the same command is typed again.
    """
    from posthoc_lt.cli import extract as body

    body.extract(**given)


@click.command("import", short_help="Make a feature file of features that already exist.")
@options.together(
    click.option(
        "--train",
        metavar=_SPLIT,
        help="Features (N, D) and labels (N,): one .npz .pt .safetensors .csv or .parquet file, or x.npy,y.npy.",
    ),
    click.option("--val", metavar=_SPLIT, help="Likewise; labels may lack."),
    click.option("--test", metavar=_SPLIT, help="Likewise."),
    click.option(
        "--head", metavar=_SPLIT, help="The network's last layer: weight (C, D) and perhaps bias (C,), in such a file."
    ),
    click.option("--fit-head", is_flag=True, help="For want of a head, fit a logistic regression on train."),
    click.option("--l2", type=float, default=L2, show_default=True, help="Its penalty, in feature variances."),
    click.option("--counts", type=options.FILE, help="A file of train samples a class, for want of train labels."),
    click.option("--classes", type=options.FILE, help="A file of class names, one a line, in the head's order."),
    options.out("feats.safetensors", "The feature file to write."),
    options.force,
    options.form,
    options.quiet,
)
def import_(**given: Any) -> None:
    """Make a feature file of features that already exist."""
    from posthoc_lt.cli import import_ as body

    body.import_(**given)


@click.command("dump", short_help="Write a feature file's arrays as .npz.")
@options.features
@options.out("feats.npz", "The .npz file to write.")
@options.force
@options.quiet
def dump(**given: Any) -> None:
    """Write a feature file's arrays as .npz, which numpy reads and import takes back."""
    from posthoc_lt.cli import import_ as body

    body.dump(**given)


@click.command("inspect", short_help="Show what a checkpoint, a feature file or a head file holds.")
@click.argument("path", type=options.FILE)
@options.allow_pickle
@_table_or_json
def inspect(**given: Any) -> None:
    """Show what a checkpoint, a feature file or a head file holds."""
    from posthoc_lt.cli import inspect as body

    body.inspect(**given)


@click.command("rebalance", short_help="Fit every method and take the one that validation supports.")
@options.together(
    _choosing,
    options.seed,
    options.device,
    options.out(None, "Write the chosen head to this file."),
    options.force,
    options.form,
    options.verbose,
    options.quiet,
)
def rebalance(**given: Any) -> None:
    """Fit every method and take the one that validation supports; test only judges."""
    from posthoc_lt.cli import compare as body

    body.rebalance(**given)


@click.command("compare", short_help="Fit every method and set them side by side.")
@options.together(
    _choosing,
    options.device,
    options.form,
    options.verbose,
    options.quiet,
)
def compare(**given: Any) -> None:
    """Fit every method, choose each one's knob on validation, and set them side by side."""
    from posthoc_lt.cli import compare as body

    body.compare(**given)


@click.command("report", short_help="Fit every method and tell the result as one HTML page.")
@options.together(
    _choosing,
    options.seed,
    options.device,
    options.out("report.html", "Write the page to this file."),
    options.force,
    options.quiet,
)
def report(**given: Any) -> None:
    """Fit every method, take the one that validation supports, and tell it as one HTML page.

    The page holds its styles, script and figures, and fetches nothing.
    """
    from posthoc_lt.cli import report as body

    body.report(**given)


@click.command("evaluate", short_help="Judge a saved head, or the untouched one.")
@options.together(
    options.features,
    _head,
    options.groups,
    options.device,
    options.form,
    options.verbose,
)
def evaluate(**given: Any) -> None:
    """Judge a saved head beside the untouched one on every labelled split."""
    from posthoc_lt.cli import compare as body

    body.evaluate(**given)


@click.command("calibrate", short_help="Make a head whose softmax gives probabilities.")
@options.together(
    options.features,
    _head,
    click.option(
        "--deploy",
        default="uniform",
        show_default=True,
        metavar="uniform|train|em|FILE",
        help="Class frequencies that the head will meet: all equal, those of train, those of unlabelled deployment "
        "samples, estimated by EM, or a file of one number a class.",
    ),
    options.deploy_features,
    options.zero_count,
    options.groups,
    options.device,
    options.out(None, "Write the probability head to this file."),
    options.force,
    options.form,
    options.quiet,
)
def calibrate(**given: Any) -> None:
    """Fit scale and prior strength on validation, so that softmax gives probabilities.

    p(y|x) ∝ exp(a z_y - c log pi_y + log deploy_y), with a and c fitted jointly. What decides best and what gives
    the best probabilities are two heads: this one is for probabilities. It is judged under equal class frequencies,
    under those of train and under those of --deploy, each time made for them.
    """
    from posthoc_lt.cli import calibrate as body

    body.calibrate(**given)


@click.command("conformal", short_help="Fit prediction sets that cover the rare classes too.")
@options.together(
    options.features,
    _head,
    click.option(
        "--kind",
        type=click.Choice(list(KINDS)),
        default="classwise",
        show_default=True,
        help="One threshold a class, one between it and the common one, one adjusted for prevalence, or one for all.",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.1,
        show_default=True,
        help="The share of sets that may miss the true class.",
    ),
    options.groups,
    options.device,
    options.out(None, "Write the thresholds to this file, beside the head."),
    options.force,
    options.form,
    options.quiet,
)
def conformal(**given: Any) -> None:
    """Fit thresholds on validation for prediction sets that cover every class, the rare ones too.

    The guarantee is that of a head which was not chosen on the same samples; choosing one knob on them costs little.
    """
    from posthoc_lt.cli import conformal as body

    body.conformal(**given)


@click.command("export", short_help="Fold a head into a checkpoint of the same kind, verified.")
@options.together(
    options.ckpt,
    click.option("--head", type=options.FILE, default="head.safetensors", show_default=True, help="The saved head."),
    options.features,
    options.out(None, "The checkpoint to write; balanced.pt, or with the suffix of --ckpt."),
    click.option(
        "--arch", help="The architecture; by default that of extract, but your own module:factory is to be named again."
    ),
    click.option("--data", type=options.FILE, help="The images to verify on; by default those of extract, likewise."),
    click.option("--add-bias", is_flag=True, help="Add a bias to a layer that has none; its code must expect it."),
    options.allow_pickle,
    options.force,
    _table_or_json,
)
def export(**given: Any) -> None:
    """Fold a head into a checkpoint, and prove on real images that the patched network computes it."""
    from posthoc_lt.cli import export as body

    body.export(**given)


@click.command("demo", short_help="Run the whole job on an embedded real case.")
@click.option(
    "--into", type=options.FILE, default="posthoc-lt-demo", show_default=True, help="The folder to unpack into."
)
@options.force
def demo(**given: Any) -> None:
    """Run the whole job on an embedded real case: long-tailed Fashion-MNIST and a trained ResNet-20."""
    from posthoc_lt.cli import demo as body

    body.demo(**given)


COMMANDS: dict[str, click.Command] = {
    str(each.name): each
    for each in (
        extract,
        import_,
        dump,
        inspect,
        tau_search,
        *(method_command(_METHODS[name]) for name in sorted(_METHODS)),
        rebalance,
        compare,
        report,
        evaluate,
        calibrate,
        conformal,
        export,
        demo,
    )
}
"""By name, in the order of a job."""
