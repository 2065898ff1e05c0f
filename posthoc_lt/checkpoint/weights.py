"""Which sets of weights a loaded file holds, and where each of their tensors lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and Lightning put before every key."""

NESTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "state_dict_best",
    "best_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
"""Where training scripts keep the state dict, the most usual first."""

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Where they keep its moving average, which timm's loader, as most evaluation code, takes before the raw weights."""

BODIES = ("feat_model", "state_dict_model", "backbone", "encoder", "feature_extractor", "model", "net")
CLASSIFIERS = ("classifier", "state_dict_classifier", "head", "fc", "linear")
SCALES = ("state_dict_lws_model", "lws_model")
"""The parts of a network saved as several state dicts, as classifier-balancing (1910.09217) and MiSLAS do."""

_ASIDE = ("loss", "criterion", "metric", "acc", "n_averaged")
"""Words in the names of what a training loop keeps among the weights."""

_DEEPEST = 8

Path = tuple[str, ...]


class WeightSet(NamedTuple):
    """One network's weights within a file.

    Args:
        key: what tells it from the others; empty for a state dict that is the whole file.
        places: parameter names, without wrappers, to the keys that lead to each tensor.
        stripped: the wrappers' prefixes that every key carried, outermost first.
        beside: the names of tensors that lie among the weights and are none, such as a loss's class weights.
    """

    key: str
    places: Mapping[str, Path]
    stripped: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def weight_sets(content: object) -> list[WeightSet]:
    """Every set of weights in a loaded object, the one that most evaluation code loads first.

    >>> import torch
    >>> state = {"fc.weight": torch.ones(2, 2)}
    >>> [found.key for found in weight_sets({"state_dict": state, "state_dict_ema": state})]
    ['state_dict_ema', 'state_dict']
    """
    found = list(_search(content, (), set()))
    averaged = [each for each in found if each.key.split("/")[-1] in AVERAGED]
    raw = [each for each in found if each not in averaged]
    # An average of something else, or of a part, is no stand-in for the network.
    whole = [each for each in averaged if not raw or each.places.keys() >= raw[0].places.keys()]
    return whole + raw + [each for each in averaged if each not in whole]


def own_weights(content: object) -> WeightSet:
    """The weights of a file that holds its own network, under the names that this network gives them."""
    state = value_at(content, ("parameters",))
    return WeightSet("", {name: ("parameters", name) for name in state} if isinstance(state, Mapping) else {})


def value_at(content: object, path: Path) -> object:
    """What lies at the end of `path`, or None where nothing does."""
    for key in path:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _search(content: object, route: Path, seen: set[int]) -> Iterator[WeightSet]:
    """`seen` are the wrappers that were entered: one that holds itself, or one in many places, is entered once."""
    if not isinstance(content, Mapping) or len(route) > _DEEPEST:
        return
    inner = [name for name in (*NESTS, *AVERAGED) if isinstance(content.get(name), Mapping)]
    if inner:
        if id(content) in seen:
            return
        seen.add(id(content))
    if (split := _split(content, route)) is not None:
        yield split
        return
    nested = [found for name in inner for found in _search(content[name], (*route, name), seen)]
    if nested:
        yield from nested
    elif tensors := _tensors(content):
        yield from _flat(tensors, route)


def _tensors(content: object) -> list[str]:
    if not isinstance(content, Mapping):
        return []
    return [key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)]


def _split(content: Mapping[object, object], route: Path) -> WeightSet | None:
    """A network whose body and classifier are state dicts of their own."""
    body = next((name for name in BODIES if _tensors(content.get(name))), None)
    classifiers = [name for name in (*CLASSIFIERS, *SCALES) if _tensors(content.get(name))]
    if body is None or not classifiers or classifiers[0] in SCALES:
        return None
    places: dict[str, Path] = {}
    for part in (body, *classifiers):
        own = _unwrapped({key: (*route, part, key) for key in _tensors(content[part])})[1]
        label = part.removeprefix("state_dict_")
        bare = any("." not in name for name in own) and part not in SCALES
        for name, place in own.items():
            places[f"{label}.{name}" if bare or name in places else name] = place
    return WeightSet("/".join(route), places)


def _flat(keys: list[str], route: Path) -> Iterator[WeightSet]:
    """One state dict: one network, or a network and its average side by side, as Lightning modules hold them."""
    groups: dict[str, dict[str, Path]] = {}
    for key in keys:
        groups.setdefault(key.partition(".")[0], {})[key] = (*route, key)
    roots = [name for name in groups if name in NESTS or name in AVERAGED]
    twins = [name for name in roots if _suffixes(groups[name]) == _suffixes(groups[roots[0]])]
    if len(twins) > 1:
        for name in twins:
            rest = tuple(key for key in keys if key.partition(".")[0] not in twins)
            own = {key.removeprefix(f"{name}."): place for key, place in groups[name].items()}
            stripped, places = _unwrapped(own)
            yield WeightSet("/".join((*route, name)), places, (f"{name}.", *stripped), rest)
        return
    beside = [key for key in keys if any(word in key.partition(".")[0].lower() for word in _ASIDE)]
    if not roots or len(beside) == len(keys):
        beside = []
    stripped, places = _unwrapped({key: (*route, key) for key in keys if key not in beside})
    yield WeightSet("/".join(route), places, stripped, tuple(beside))


def _suffixes(group: Mapping[str, Path]) -> set[str]:
    return {key.partition(".")[2] for key in group}


def _unwrapped(places: Mapping[str, Path]) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The prefixes that every key carries, and the places without them; a part compiled on its own likewise."""
    places, stripped = dict(places), []
    while wrapper := next((w for w in WRAPPERS if all(k.startswith(w) and k != w for k in places)), None):
        stripped.append(wrapper)
        places = {key[len(wrapper) :]: place for key, place in places.items()}
    return tuple(stripped), {key.replace("_orig_mod.", ""): place for key, place in places.items()}
