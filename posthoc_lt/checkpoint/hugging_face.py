"""Hugging Face folders: config.json beside the weights, run by transformers (extra ``hf``) from these files alone.

Those that timm wrote hold tensors and the name of their network, which timm makes as for any other file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint.formats import Format, Loaded, raw_bytes, recognise
from posthoc_lt.checkpoint.preprocessing import Preprocessing
from posthoc_lt.checkpoint.sentence_encoder import SentenceEncoder, is_sentence_encoder, longest, read_pooling
from posthoc_lt.checkpoint.tokens import Tokens
from posthoc_lt.checkpoint.zoo import importable, library
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.text import read_text

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_BESIDE = (".json", ".txt", ".model")
_CLASSIFIERS = ("ForImageClassification", "ForSequenceClassification")
_PLANES = ("input_ids", "attention_mask", "token_type_ids")
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_FOR_IMAGENET = 384  # ConvNeXt's processors cut the middle out below this size


def hugging_face_kind(path: Path) -> Format | None:
    """What a folder holds: a classifier, a sentence encoder, a network of timm, or None of these."""
    if not os.path.isfile(path / "config.json"):  # false, too, for a name that no file can have
        return None
    if "architecture" in _json(path / "config.json"):
        return TIMM
    return HUGGING_FACE if _kind(path) else SENTENCE_ENCODER


def _load(path: Path) -> Loaded:
    tensors: dict[str, Tensor] = {}
    for file in _shards(path):
        content = recognise(file).load(file).content
        tensors |= {name: value for name, value in _named(content).items() if isinstance(value, Tensor)}
    beside = sorted(file for file in path.iterdir() if file.suffix in _BESIDE and file.is_file())
    return Loaded({"parameters": tensors, "config": _json(path / "config.json")}, {}, (*_shards(path), *beside))


def _load_timm(path: Path) -> Loaded:
    loaded, config = _load(path), _json(path / "config.json")
    assert isinstance(loaded.content, Mapping)
    header = {"architecture": str(config["architecture"]), "pretrained_cfg": json.dumps(config.get("pretrained_cfg"))}
    return Loaded(loaded.content["parameters"], header, loaded.files)


def _named(content: object) -> Mapping[str, object]:
    return content if isinstance(content, Mapping) else {}


def _shards(path: Path) -> list[Path]:
    """The files that hold the weights, as transformers looks for them."""
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise PosthocError(
            f"folder {show(path)}, which has a config.json and no weights",
            f"one of {listed(_WEIGHTS)}",
            "write the model again with model.save_pretrained(folder)",
        )
    return list(recognise(found).load(found).files[1:]) if found.suffix == ".json" else [found]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        raise PosthocError(f"{show(path)}, which cannot be read ({show(error)})", "JSON", "write it again") from None
    return found


def _write(original: Path, content: object, path: Path) -> None:
    """A copy of the folder, but for the tensors whose values differ."""
    assert isinstance(content, Mapping)
    shutil.copytree(original, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    new, left = content["parameters"], dict(content["parameters"])
    for file in _shards(original):
        known = recognise(file)
        old = _named(known.load(file).content)
        tensors = {name: new.get(name, value) for name, value in old.items()}
        left = {name: tensor for name, tensor in left.items() if name not in old}
        if any(isinstance(value, Tensor) and not _same(value, tensors[name]) for name, value in old.items()):
            known.write(file, tensors, path / file.name)
    if left:
        raise PosthocError(
            f"{listed(left)}, for which {show(original)} has no place",
            "a tensor that the folder holds already: its network is made as config.json says",
            "choose a head without bias, such as tau-norm's",
        )


def _same(a: Tensor, b: Any) -> bool:
    return isinstance(b, Tensor) and torch.equal(raw_bytes(a), raw_bytes(b))


def _network(path: Path) -> nn.Module:
    """The classifier as transformers makes it, every weight of it from the folder; texts come as one tensor."""
    kind, transformers = _kind(path), transformers_library()
    make = getattr(transformers, f"AutoModel{kind}")
    pooling = None if kind else read_pooling(path)
    with _quiet(transformers):
        try:
            network, told = make.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
            )
        except Exception as error:  # transformers raises whatever it meets
            raise _refused(path, error) from None
    lacking = [*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])]
    if lacking := [name for name in lacking if pooling is None or "pooler" not in name]:
        raise PosthocError(
            f"folder {show(path)}, whose weights lack {listed(lacking, 3)}",
            "every tensor of the network that config.json describes",
            "give the folder of the trained classifier, as model.save_pretrained wrote it",
        )
    if kind != "ForImageClassification":
        _take_planes(network, _tokens(path).names)
    module: nn.Module = network if pooling is None else SentenceEncoder(network, pooling)
    return module.float().eval().requires_grad_(False)


def _take_planes(network: nn.Module, names: tuple[str, ...]) -> None:
    """Let a network of texts take its inputs as one tensor (N, len(names), tokens)."""

    def unfold(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (planes,) = args
        return (), {**kwargs, **{name: planes[:, index] for index, name in enumerate(names)}}

    network.register_forward_pre_hook(unfold, with_kwargs=True)


def _kind(path: Path) -> str:
    """What the network is for, as the ending of its class tells; empty for a sentence encoder."""
    named = str((_json(path / "config.json").get("architectures") or [""])[0])
    kind = next((kind for kind in _CLASSIFIERS if named.endswith(kind)), "")
    if not kind and not is_sentence_encoder(path):
        raise PosthocError(
            f"folder {show(path)}, whose network is {show(named or 'not named')}",
            f"a network {' or '.join(_CLASSIFIERS)}, or a sentence encoder with its modules.json",
            "give one of these; of any other network, make the features yourself and use posthoc-lt import",
        )
    return kind


def _inputs(path: Path) -> tuple[Preprocessing | Tokens | None, tuple[str, ...]]:
    """How inputs are prepared, None where the folder does not tell, and the classes, () where they have no names."""
    config = _json(path / "config.json")
    prepared = _images(path, config) if _kind(path) == "ForImageClassification" else _tokens(path)
    labels = config.get("id2label") or {}
    names = tuple(str(labels.get(str(index), "")) for index in range(len(labels)))
    bare = not all(names) or all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return prepared, () if bare else names


def _tokens(path: Path) -> Tokens:
    transformers = transformers_library()
    with _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises whatever it meets
            raise _refused(path, error) from None
    if tokenizer.pad_token is None:
        raise PosthocError(f"a tokenizer without padding in {show(path)}", "one that pads", "set its pad_token")
    files = sorted(file for file in path.iterdir() if "token" in file.name or file.stem in ("vocab", "merges"))
    version = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    names = tuple(name for name in _PLANES if name in tokenizer.model_input_names)
    most = _json(path / "config.json").get("max_position_embeddings")
    length = min(tokenizer.model_max_length, most if isinstance(most, int) else 512, longest(path))
    return Tokens(tokenizer, names, length, version)


def _images(path: Path, config: Mapping[str, Any]) -> Preprocessing | None:
    """What preprocessor_config.json says, or None where it says what `Preprocessing` cannot do."""
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return None
    said = _json(file)
    mean, std = said.get("image_mean"), said.get("image_std")
    if not said.get("do_normalize", True):
        mean, std = [0.0] * config.get("num_channels", 3), [1.0] * config.get("num_channels", 3)
    exact = said.get("do_rescale", True) and abs(said.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
    shape = _shape(said)
    if not exact or shape is None or not isinstance(mean, list) or not isinstance(std, list):
        return None
    return Preprocessing(tuple(mean), tuple(std), **shape)


def _shape(said: Mapping[str, Any]) -> dict[str, Any] | None:
    if not said.get("do_resize", True):
        return {} if not said.get("do_center_crop") else None
    size = said.get("size")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = said.get("crop_size") if said.get("do_center_crop") else None
    side = crop.get("height") if isinstance(crop, dict) else crop
    method = _FILTERS.get(said.get("resample", 2))
    if not isinstance(size, dict) or method is None:
        return None
    shortest = size.get("shortest_edge")
    if shortest is None:
        square = size.get("height") == size.get("width") and side in (None, size.get("height"))
        return {"input_size": size["height"], "squash": True, "interpolation": method} if square else None
    if side is not None:
        return {"input_size": side, "crop": side / shortest, "interpolation": method} if side <= shortest else None
    if "crop_pct" not in said:
        return None
    cut = {"crop": said["crop_pct"] or 0.875} if shortest < _FOR_IMAGENET else {"squash": True}
    return {"input_size": shortest, "interpolation": method, **cut}


def _refused(path: Path, error: Exception) -> PosthocError:
    reason = show(str(error).strip().split("\n")[0], 200)
    return PosthocError(
        f"folder {show(path)}, which transformers does not load from its own files alone ({reason})",
        "a folder as save_pretrained writes it, of a network that is part of transformers: code in it is not run",
        "save the model and its tokenizer or image processor there again, or upgrade transformers",
    )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and notes."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def transformers_library() -> Any:
    """The library transformers.

    Raises:
        PosthocError: it is not installed.
    """
    if importable("torchvision"):
        with suppress(PosthocError):  # transformers imports it too, and fails where it was built for another torch
            library("torchvision")
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise PosthocError(
            "a Hugging Face folder, and transformers, which makes its network, is not installed",
            "the extra for Hugging Face",
            "install it with: pip install 'posthoc-lt[hf]'",
        ) from None


HUGGING_FACE = Format("hugging face", lambda *_: False, _load, _write, (), _network, inputs=_inputs, grows=False)
"""What save_pretrained writes."""

SENTENCE_ENCODER = HUGGING_FACE._replace(name="sentence encoder", headless=True)
"""What sentence-transformers writes."""

TIMM = Format(
    "timm folder",
    lambda *_: False,
    _load_timm,
    lambda original, content, path: _write(original, {"parameters": content}, path),
    (),
    grows=False,
)
"""What timm writes for the Hugging Face hub."""
