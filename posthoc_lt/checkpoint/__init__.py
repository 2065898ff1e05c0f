"""From a checkpoint file to a network with a known head, and back into the file."""

from posthoc_lt.checkpoint.fold import changes, fold, head_places, require_suffix, stored_head, write
from posthoc_lt.checkpoint.form import HeadForm, cast_like, placed, refuse_bias
from posthoc_lt.checkpoint.formats import INDEX
from posthoc_lt.checkpoint.identify import Architecture, Candidate, TwinsError, candidates, identify, plainest
from posthoc_lt.checkpoint.locate import (
    CPU_TOLERANCE,
    LocatedHead,
    OutOfMemoryError,
    capture,
    difference,
    find_head,
    run_network,
    tolerance,
)
from posthoc_lt.checkpoint.network import load_network
from posthoc_lt.checkpoint.own_code import is_own_code
from posthoc_lt.checkpoint.preprocessing import Preprocessing
from posthoc_lt.checkpoint.read import Checkpoint, read
from posthoc_lt.checkpoint.tokens import Transform
from posthoc_lt.checkpoint.weights import value_at

__all__ = [
    "CPU_TOLERANCE",
    "INDEX",
    "Architecture",
    "Candidate",
    "Checkpoint",
    "HeadForm",
    "LocatedHead",
    "OutOfMemoryError",
    "Preprocessing",
    "Transform",
    "TwinsError",
    "candidates",
    "capture",
    "cast_like",
    "changes",
    "difference",
    "find_head",
    "fold",
    "head_places",
    "identify",
    "is_own_code",
    "load_network",
    "placed",
    "plainest",
    "read",
    "refuse_bias",
    "require_suffix",
    "run_network",
    "stored_head",
    "tolerance",
    "value_at",
    "write",
]
