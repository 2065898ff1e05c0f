"""Running the network once, so that everything after it works on cached features."""

from posthoc_lt.extraction.in_memory import extract, extract_source
from posthoc_lt.extraction.loaders import extract_loaders
from posthoc_lt.extraction.network import spread
from posthoc_lt.extraction.source import IDENTITY, Source, is_current, open_source
from posthoc_lt.extraction.to_file import extract_to

__all__ = [
    "IDENTITY",
    "Source",
    "extract",
    "extract_loaders",
    "extract_source",
    "extract_to",
    "is_current",
    "open_source",
    "spread",
]
