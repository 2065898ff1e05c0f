"""Files of our own: features and heads, in safetensors, written whole or not at all."""

from posthoc_lt.files.atomic import replacing
from posthoc_lt.files.feature_file import load_features, save_features
from posthoc_lt.files.head_file import SavedHead, load_head, save_head

__all__ = ["SavedHead", "load_features", "load_head", "replacing", "save_features", "save_head"]
