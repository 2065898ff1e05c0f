"""Data of any form: a person points at it, every split is listed, and read in batches. One form a file."""

from posthoc_lt.data.dataset import Data, fingerprint
from posthoc_lt.data.findings import Findings, limit_of
from posthoc_lt.data.own import is_own_data
from posthoc_lt.data.reader import Reader
from posthoc_lt.data.samples import Samples, printable
from posthoc_lt.data.source import DataSpec, open_data
from posthoc_lt.data.subsets import held_out, limited

__all__ = [
    "Data",
    "DataSpec",
    "Findings",
    "Reader",
    "Samples",
    "fingerprint",
    "held_out",
    "is_own_data",
    "limit_of",
    "limited",
    "open_data",
    "printable",
]
