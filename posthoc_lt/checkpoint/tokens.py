"""What is done to a text before the network sees it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from posthoc_lt.checkpoint.preprocessing import Preprocessing
from posthoc_lt.errors import PosthocError


@dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as a tokenizer of transformers prepares them, cut at `length` tokens.

    Args:
        tokenizer: the network's own.
        names: what the network takes of what the tokenizer gives, such as ``input_ids`` and ``attention_mask``.
        length: the most tokens of a text.
        version: a text that changes when the tokenizer does.
    """

    tokenizer: Any
    names: tuple[str, ...]
    length: int
    version: str

    kind: ClassVar[Literal["texts"]] = "texts"

    def __call__(self, text: str) -> str:
        """The text itself: a whole batch is tokenized at once."""
        return text

    def collate(self, texts: list[str]) -> Tensor:
        """A batch as one tensor (n, len(names), tokens), padded to its longest text."""
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        return torch.stack([found[name] for name in self.names], dim=1)

    def changed(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, input_size: int | None = None
    ) -> Tokens:
        """The same: nothing of an image can be changed here.

        Raises:
            PosthocError: something of an image is given.
        """
        if (mean, std, input_size) != (None, None, None):
            raise PosthocError("--mean, --std or --input-size for a network of texts", "none of them", "leave them out")
        return self

    def to_json(self) -> str:
        """One line of JSON, equal for equal values."""
        return json.dumps({"inputs": self.names, "max_length": self.length, "tokenizer": self.version}, sort_keys=True)


Transform: TypeAlias = Preprocessing | Tokens
"""How inputs are prepared."""
