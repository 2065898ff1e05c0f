"""Files of our own: features and heads, in safetensors, written whole or not at all."""

from posthoc_lt.files.atomic import replacing, require_writable
from posthoc_lt.files.container import FEATURES, HEAD, container_kind
from posthoc_lt.files.feature_file import load_features, save_features
from posthoc_lt.files.head_file import SavedHead, load_head, save_head

__all__ = [
    "FEATURES",
    "HEAD",
    "SavedHead",
    "container_kind",
    "load_features",
    "load_head",
    "replacing",
    "require_writable",
    "save_features",
    "save_head",
]
