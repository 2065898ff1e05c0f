"""From a checkpoint file to a network with a known head, and back into the file."""

from posthoc_lt.checkpoint.fold import cast_like, changes, fold, refuse_bias, write
from posthoc_lt.checkpoint.identify import Architecture, identify
from posthoc_lt.checkpoint.locate import (
    CPU_TOLERANCE,
    LocatedHead,
    capture,
    difference,
    find_head,
    read_head,
    tolerance,
)
from posthoc_lt.checkpoint.network import load_network
from posthoc_lt.checkpoint.preprocessing import Preprocessing
from posthoc_lt.checkpoint.read import Checkpoint, at_route, read

__all__ = [
    "CPU_TOLERANCE",
    "Architecture",
    "Checkpoint",
    "LocatedHead",
    "Preprocessing",
    "at_route",
    "capture",
    "cast_like",
    "changes",
    "difference",
    "find_head",
    "fold",
    "identify",
    "load_network",
    "read",
    "read_head",
    "refuse_bias",
    "tolerance",
    "write",
]
