"""Files of our own: features and heads, in safetensors, written whole or not at all."""

from posthoc_lt.files.atomic import replacing, require_writable
from posthoc_lt.files.container import FEATURES, HEAD, Pieces
from posthoc_lt.files.feature_file import load_features, save_features, writing_features
from posthoc_lt.files.head_file import SavedHead, load_head, save_head
from posthoc_lt.files.parts import Part, Parts, discard, working
from posthoc_lt.files.shards import SHARD_BYTES, container_kind, find

__all__ = [
    "FEATURES",
    "HEAD",
    "SHARD_BYTES",
    "Part",
    "Parts",
    "Pieces",
    "SavedHead",
    "container_kind",
    "discard",
    "find",
    "load_features",
    "load_head",
    "replacing",
    "require_writable",
    "save_features",
    "save_head",
    "working",
    "writing_features",
]
