"""Any figure of the confusion counts at every knob value, from one walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from posthoc_lt import columns
from posthoc_lt.columns import blocks, computed
from posthoc_lt.metrics import counted
from posthoc_lt.search.curve import Curve
from posthoc_lt.search.envelope import Walk
from posthoc_lt.search.figures import Figure, Groups, class_terms, class_weight, influence
from posthoc_lt.search.least import least_over_classes

# From some of a walk's changes to what they add to the counts of classes: these (e,), the cells from which on (e,),
# and how much (e, K).
Additions = Callable[[slice], tuple[Tensor, Tensor, Tensor]]


def trace(walk: Walk, figure: Figure, groups: Groups = None) -> Curve:
    """The exact curve of a figure between the walk's bounds.

    A change of prediction touches two classes. Each class's counts are followed through its own changes,
    and the change of its terms is added up over all of them in the order of the knob: E log E work for E
    changes, and no matrix of classes by cells.

    Args:
        walk: all predictions.
        figure: what to trace; all curves of one walk share their cells.
        groups: class masks by name, for a figure of a group.
    """
    if figure.worth is not None:
        return _trace_pairs(walk, figure, groups)
    edges, _ = walk.cells
    right, actual, predicted = counted(walk.labels, walk.first, walk.classes)
    weight, start = class_weight(figure, actual, groups), class_terms(figure, right, actual, predicted)
    jumps = torch.zeros(len(edges), start.shape[1], dtype=torch.float64)
    least = torch.full((len(edges) - 1, 1), torch.inf, dtype=torch.float64)
    for members, classes, cells, total in _histories(walk, _flows(walk)):
        terms = class_terms(figure, right[classes] + total[:, 0], actual[classes], predicted[classes] + total[:, 1])
        if figure.least:
            counting = members & (weight > 0)
            least = torch.minimum(least, least_over_classes(start, classes, cells, terms, counting, len(least)))
            continue
        previous = terms.roll(1, dims=0)
        opens = torch.ones(len(classes), dtype=torch.bool)
        opens[1:] = classes[1:] != classes[:-1]
        previous[opens] = start[classes[opens]]
        jumps.index_add_(0, cells, (terms - previous) * weight[classes, None])
    if figure.least:
        return Curve(edges, figure.finish(least))
    jumps[0] += (start * weight[:, None]).sum(dim=0)
    return Curve(edges, figure.finish(jumps.cumsum(dim=0)[:-1]))


def _trace_pairs(walk: Walk, figure: Figure, groups: Groups) -> Curve:
    """The curve of a figure with a `worth`: a change of prediction changes what its own sample is worth."""
    edges, cell = walk.cells
    weigh = influence(figure, walk.labels, walk.first, walk.classes, groups)
    jumps = torch.zeros(len(edges), dtype=torch.float64)
    for rows in blocks(len(walk.time)):
        own = walk.labels[walk.sample[rows]]
        jumps.index_add_(0, cell[rows], weigh.of(own, walk.after[rows]) - weigh.of(own, walk.before[rows]))
    for rows in blocks(len(walk.labels)):
        jumps[0] += weigh.of(walk.labels[rows], walk.first[rows]).sum()
    return Curve(edges, jumps.cumsum(dim=0)[:-1])


def spread(walk: Walk, figure: Figure, knob: float, groups: Groups = None) -> Tensor:
    """The standard error of figure(t) − figure(`knob`) in every cell, linearised at `knob`.

    SE² = Σ (vᵢ(t) − vᵢ*)² over samples, v the `influence` of a sample as predicted at t. For balanced
    accuracy this is Σ wᵢ²(1[right at t] − 1[right at t*])². For the least of the classes, which answers to
    one class alone, see `figures.paired_error`.
    """
    edges, cell = walk.cells
    there = predicted_at(walk, knob)
    if figure.least:
        return _largest_spread(walk, figure, there, groups)
    weigh = influence(figure, walk.labels, there, walk.classes, groups)
    jumps = torch.zeros(len(edges), dtype=torch.float64)
    for rows in blocks(len(walk.time)):
        sample = walk.sample[rows]
        own = walk.labels[sample]
        base = weigh.of(own, there[sample])
        before, after = ((weigh.of(own, each[rows]) - base).square() for each in (walk.before, walk.after))
        jumps.index_add_(0, cell[rows], after - before)
    for rows in blocks(len(walk.labels)):
        own = walk.labels[rows]
        jumps[0] += (weigh.of(own, walk.first[rows]) - weigh.of(own, there[rows])).square().sum()
    return jumps.cumsum(dim=0)[:-1].clamp(min=0.0).sqrt()


def _largest_spread(walk: Walk, figure: Figure, there: Tensor, groups: Groups) -> Tensor:
    """√m_c/n_c of the class c for which it is largest, in every cell; m_c samples flip against `there`."""
    edges, cell = walk.cells
    actual = torch.bincount(walk.labels, minlength=walk.classes)
    start = torch.zeros_like(actual)
    for rows in blocks(len(walk.labels)):
        own = walk.labels[rows]
        flipped = (walk.first[rows] == own) != (there[rows] == own)
        start += torch.bincount(own[flipped], minlength=walk.classes)

    def flips(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        sample = walk.sample[rows]
        own = walk.labels[sample]
        right = there[sample] == own
        before, after = ((each[rows] == own) != right for each in (walk.before, walk.after))
        return own, cell[rows], (after.long() - before.long())[:, None]

    first = start.double().sqrt() / actual.clamp(min=1)
    counting = class_weight(figure, actual, groups) > 0
    least = torch.full((len(edges) - 1, 1), torch.inf, dtype=torch.float64)
    for members, classes, cells, total in _histories(walk, flips):
        moved = (start[classes] + total[:, 0]).double().sqrt() / actual[classes]
        among = members & counting
        found = least_over_classes(-first[:, None], classes, cells, -moved[:, None], among, len(least))
        least = torch.minimum(least, found)
    return -least[:, 0]


def predicted_at(walk: Walk, knob: float) -> Tensor:
    """Every sample's prediction (N,) at one knob value that is on no edge."""
    predicted = computed(len(walk.first), lambda rows: walk.first[rows])
    for rows in blocks(len(walk.time)):
        past = walk.time[rows] < knob
        sample, order = walk.sample[rows][past].sort(stable=True)
        last = sample != sample.roll(-1)  # a sample's changes are in the order of the knob
        last[-1:] = True
        predicted[sample[last]] = walk.after[rows][past][order[last]]
    return predicted


def _flows(walk: Walk) -> Additions:
    """What changes of prediction add to the samples that are rightly, and that are at all, predicted as a class."""
    _, cell = walk.cells

    def flows(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        own, before, after = walk.labels[walk.sample[rows]], walk.before[rows], walk.after[rows]
        right = torch.cat([-(before == own).long(), (after == own).long()])
        predicted = torch.cat([-torch.ones_like(before), torch.ones_like(after)])
        return torch.cat([before, after]), cell[rows].repeat(2), torch.stack([right, predicted], dim=1)

    return flows


def _histories(walk: Walk, additions: Additions) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Every class's additions summed up to each cell that has some, for a group of classes at a time.

    Returns:
        Iterator: the group, a mask (C,); and of its S sums the classes (S,), together, the cells (S,), in order, and
        the sums (S, K).
    """
    width, every = len(walk.cells[0]), list(blocks(len(walk.time)))
    met = torch.zeros(walk.classes, dtype=torch.int64)
    for rows in every:
        met += torch.bincount(additions(rows)[0], minlength=walk.classes)
    for members in _groups(met.clamp(max=width)):
        keys, change = torch.empty(0, dtype=torch.int64), None
        for rows in every:
            classes, cells, added = additions(rows)
            inside = members[classes]
            keys, where = torch.unique(torch.cat([keys, (classes * width + cells)[inside]]), return_inverse=True)
            added = added[inside] if change is None else torch.cat([change, added[inside]])
            sums = (torch.zeros_like(keys).index_add_(0, where, each) for each in added.unbind(dim=1))
            change = torch.stack([*sums], dim=1)
        assert change is not None
        classes, total = keys // width, change.cumsum(dim=0)
        # Sums run over classes one after another: take off what the classes before have added.
        before = torch.cat([total.new_zeros(1, total.shape[1]), total])
        yield members, classes, keys % width, total - before[torch.searchsorted(classes, classes)]


def _groups(sizes: Tensor) -> Iterator[Tensor]:
    """Masks of consecutive classes (C,) whose sizes sum to little more than two blocks, or that are one class."""
    group = torch.div(sizes.cumsum(0) - sizes, 2 * columns.BLOCK, rounding_mode="floor")
    for index in group.unique():  # type: ignore[no-untyped-call]
        yield group == index
