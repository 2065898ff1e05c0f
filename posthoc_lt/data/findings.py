"""What reading data found out, as a feature file remembers it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from posthoc_lt.data.reader import Reader
from posthoc_lt.data.samples import printable
from posthoc_lt.errors import PosthocError, show


@dataclass(frozen=True)
class Findings:
    """What reading data found out.

    Args:
        skipped: for each split the samples left out, by index, with name and fault.
        several_frames: for each split how many images have more frames than the one taken.
    """

    skipped: Mapping[str, Mapping[int, tuple[str, str]]] = field(default_factory=dict)
    several_frames: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def by(cls, readers: Mapping[str, Reader]) -> Findings:
        """Those of some splits, read."""
        skipped = {
            split: {
                index: (printable(reader.samples.name(index)), why) for index, why in sorted(reader.skipped.items())
            }
            for split, reader in readers.items()
            if reader.skipped
        }
        return cls(skipped, {split: len(reader.framed) for split, reader in readers.items() if reader.framed})

    def provenance(self) -> dict[str, str]:
        """As JSON for a feature file; what there is nothing to say of lacks."""
        found = {"skipped": self.skipped, "several_frames": self.several_frames}
        return {key: json.dumps(each) for key, each in found.items() if each}

    @classmethod
    def of(cls, provenance: Mapping[str, str]) -> Findings:
        """Those that a feature file tells.

        Raises:
            PosthocError: it tells them in another form than `provenance` gives them.

        >>> Findings.of({"skipped": '{"val": {"3": ["a.png", "cut short"]}}'}).skipped
        {'val': {3: ('a.png', 'cut short')}}
        """
        try:
            skipped, framed = (json.loads(provenance.get(key, "{}")) for key in ("skipped", "several_frames"))
            return cls(
                {
                    split: {int(i): (str(name), str(why)) for i, (name, why) in each.items()}
                    for split, each in skipped.items()
                },
                {split: int(count) for split, count in framed.items()},
            )
        except (ValueError, TypeError, AttributeError, RecursionError):
            told = {key: provenance[key] for key in ("skipped", "several_frames") if key in provenance}
            raise PosthocError(
                f"features whose provenance says {show(told, 120)}", "what extract writes", "extract the features again"
            ) from None


def limit_of(provenance: Mapping[str, str]) -> int | None:
    """The most images a split that a feature file was made of; None where it is not told."""
    limit = provenance.get("limit", "")
    return int(limit) if limit.isascii() and limit.isdecimal() and len(limit) < 19 else None
