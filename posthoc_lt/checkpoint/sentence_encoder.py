"""Sentence encoders as sentence-transformers lays them out: a transformer, pooled over tokens, perhaps normalised."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from posthoc_lt.errors import PosthocError, listed, show

_MODULES = ("Transformer", "Pooling", "Normalize")
_KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class Pooling(NamedTuple):
    """How the last hidden states become one vector: their mean over tokens or the first one, normalised or not."""

    kind: Literal["mean", "cls"]
    normalised: bool


class SentenceEncoder(nn.Module):
    """A network without a head: its output (N, D) is the features."""

    def __init__(self, transformer: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    def forward(self, planes: Tensor) -> Tensor:
        """The embeddings of texts, given as `Tokens.collate` makes them: token ids first, then the mask."""
        hidden: Tensor = self.transformer(planes).last_hidden_state
        mask = planes[:, 1, :, None].to(hidden.dtype)
        if self.pooling.kind == "cls":
            x = hidden[:, 0]
        else:
            x = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return F.normalize(x, dim=1) if self.pooling.normalised else x


def is_sentence_encoder(path: Path) -> bool:
    """Whether a folder tells of pooling beside its transformer."""
    return (path / "modules.json").is_file()


def read_pooling(path: Path) -> Pooling:
    """What modules.json says, and the pooling that it names.

    Raises:
        PosthocError: modules or a pooling of another kind, or a file that cannot be read.
    """
    modules = _json(path / "modules.json")
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in modules]
    if kinds not in (list(_MODULES), list(_MODULES[:2])) or modules[0].get("path"):
        raise _unusual(path, f"modules {listed(kinds)}", ", ".join(_MODULES))
    # Paths come from the file: only a folder beside it is looked into.
    said = _json(path / Path(str(modules[1].get("path", ""))).name / "config.json")
    modes = [_KINDS.get(name, name) for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    modes = modes or [str(said.get("pooling_mode"))]
    if modes == ["mean"]:
        return Pooling("mean", len(kinds) == 3)
    if modes == ["cls"]:
        return Pooling("cls", len(kinds) == 3)
    raise _unusual(path, f"pooling {listed(modes)}", "the mean of all tokens, or the first one")


def longest(path: Path) -> int:
    """The most tokens that the encoder was made for, where the folder says so."""
    file = path / "sentence_bert_config.json"
    most = _json(file).get("max_seq_length") if file.is_file() else None
    return most if isinstance(most, int) else sys.maxsize


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PosthocError(f"{show(path)}, which cannot be read ({show(error)})", "JSON", "write it again") from None


def _unusual(path: Path, given: str, wanted: str) -> PosthocError:
    return PosthocError(
        f"sentence encoder {show(path)} with {given}",
        wanted,
        "make the features with sentence-transformers yourself, and give them to posthoc-lt import --fit-head",
    )
