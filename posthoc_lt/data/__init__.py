"""Data of any form: a person points at it, every split is listed, and read in batches. One form a file."""

from posthoc_lt.data.dataset import Data, fingerprint
from posthoc_lt.data.reader import Reader, findings
from posthoc_lt.data.samples import Samples, printable
from posthoc_lt.data.source import DataSpec, open_data
from posthoc_lt.data.subsets import held_out, limited

__all__ = [
    "Data",
    "DataSpec",
    "Reader",
    "Samples",
    "findings",
    "fingerprint",
    "held_out",
    "limited",
    "open_data",
    "printable",
]
