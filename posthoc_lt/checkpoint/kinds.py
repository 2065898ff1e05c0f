"""Every kind of checkpoint that is known, whatever module reads it."""

from __future__ import annotations

from pathlib import Path

from posthoc_lt.checkpoint.exported import EXPORTED
from posthoc_lt.checkpoint.formats import FORMATS, Format, recognise
from posthoc_lt.checkpoint.hugging_face import HUGGING_FACE, SENTENCE_ENCODER, TIMM, hugging_face_kind
from posthoc_lt.checkpoint.onnx import ONNX
from posthoc_lt.checkpoint.pickled import PICKLED, pickled_kind
from posthoc_lt.checkpoint.torchscript import TORCHSCRIPT

KINDS: tuple[Format, ...] = (TORCHSCRIPT, EXPORTED, *FORMATS, ONNX, PICKLED, HUGGING_FACE, SENTENCE_ENCODER, TIMM)
"""The special before the general: a TorchScript file is a zip archive as those of torch.save are."""


def kind_of(path: Path, allow_pickle: bool = False) -> Format:
    """The kind of a checkpoint, told by what is in it; where it may be unpickled, by unpickling what needs it.

    Raises:
        PosthocError: it does not exist, or is of no kind that is known.
    """
    if (folder := hugging_face_kind(path)) is not None:
        return folder
    known = recognise(path, KINDS)
    return pickled_kind(known, path) if allow_pickle and known.name == "torch" else known


def kind_named(name: str) -> Format:
    """The kind of this name, which is known."""
    return next(kind for kind in KINDS if kind.name == name)
