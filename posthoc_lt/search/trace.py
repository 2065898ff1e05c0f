"""Any figure of the confusion counts at every knob value, from one walk."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.search.curve import Curve, rounded
from posthoc_lt.search.envelope import Walk
from posthoc_lt.search.figures import Figure, Groups, class_terms, class_weight, influence
from posthoc_lt.search.least import least_over_classes


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
    edges, cell = _cells(walk)
    if figure.worth is not None:
        return _trace_pairs(walk, figure, edges, cell, groups)
    actual = torch.bincount(walk.labels, minlength=walk.classes)
    weight = class_weight(figure, actual, groups)
    right, predicted = _start(walk)
    start = class_terms(figure, right, actual, predicted)
    classes, cells, right, predicted = _histories(walk, cell, right, predicted)
    terms = class_terms(figure, right, actual[classes], predicted)
    if figure.least:
        counting = weight > 0
        return Curve(edges, figure.finish(least_over_classes(start, classes, cells, terms, counting, len(edges) - 1)))
    previous = terms.roll(1, dims=0)
    opens = torch.ones(len(classes), dtype=torch.bool)
    opens[1:] = classes[1:] != classes[:-1]
    previous[opens] = start[classes[opens]]
    jumps = torch.zeros(len(edges), start.shape[1], dtype=torch.float64)
    jumps.index_add_(0, cells, (terms - previous) * weight[classes, None])
    jumps[0] += (start * weight[:, None]).sum(dim=0)
    return Curve(edges, figure.finish(jumps.cumsum(dim=0)[:-1]))


def _trace_pairs(walk: Walk, figure: Figure, edges: Tensor, cell: Tensor, groups: Groups) -> Curve:
    """The curve of a figure with a `worth`: a change of prediction changes what its own sample is worth."""
    weigh = influence(figure, walk.labels, walk.first, walk.classes, groups)
    own, jumps = walk.labels[walk.sample], torch.zeros(len(edges), dtype=torch.float64)
    jumps.index_add_(0, cell, weigh.of(own, walk.after) - weigh.of(own, walk.before))
    jumps[0] += weigh.of(walk.labels, walk.first).sum()
    return Curve(edges, jumps.cumsum(dim=0)[:-1])


def spread(walk: Walk, figure: Figure, knob: float, groups: Groups = None) -> Tensor:
    """The standard error of figure(t) − figure(`knob`) in every cell, linearised at `knob`.

    SE² = Σ (vᵢ(t) − vᵢ*)² over samples, v the `influence` of a sample as predicted at t. For balanced
    accuracy this is Σ wᵢ²(1[right at t] − 1[right at t*])². For the least of the classes, which answers to
    one class alone, see `figures.paired_error`.
    """
    edges, cell = _cells(walk)
    there = predicted_at(walk, knob)
    if figure.least:
        return _largest_spread(walk, figure, there, cell, len(edges) - 1, groups)
    weigh = influence(figure, walk.labels, there, walk.classes, groups)
    reference = weigh.of(walk.labels, there)
    own, base = walk.labels[walk.sample], reference[walk.sample]
    jumps = torch.zeros(len(edges), dtype=torch.float64)
    jumps.index_add_(
        0, cell, (weigh.of(own, walk.after) - base).square() - (weigh.of(own, walk.before) - base).square()
    )
    jumps[0] += (weigh.of(walk.labels, walk.first) - reference).square().sum()
    return jumps.cumsum(dim=0)[:-1].clamp(min=0.0).sqrt()


def _largest_spread(walk: Walk, figure: Figure, there: Tensor, cell: Tensor, cells: int, groups: Groups) -> Tensor:
    """√m_c/n_c of the class c for which it is largest, in every cell; m_c samples flip against `there`."""
    actual = torch.bincount(walk.labels, minlength=walk.classes)
    own, right = walk.labels[walk.sample], (there == walk.labels)
    before, after = ((predicted == own) != right[walk.sample] for predicted in (walk.before, walk.after))
    start = torch.bincount(walk.labels[(walk.first == walk.labels) != right], minlength=walk.classes)
    classes, opened, total = _totals(own, cell, (after.long() - before.long())[:, None])
    flipped = (start[classes] + total[:, 0]).double().sqrt() / actual[classes]
    first = start.double().sqrt() / actual.clamp(min=1)
    counting = class_weight(figure, actual, groups) > 0
    return -least_over_classes(-first[:, None], classes, opened, -flipped[:, None], counting, cells)[:, 0]


def predicted_at(walk: Walk, knob: float) -> Tensor:
    """Every sample's prediction (N,) at one knob value that is on no edge."""
    order = walk.time.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    past = walk.time < knob
    last = torch.full_like(walk.first, -1).scatter_reduce_(0, walk.sample[past], rank[past], "amax")
    moved = last >= 0
    predicted = walk.first.clone()
    predicted[moved] = walk.after[order[last[moved]]]
    return predicted


def _cells(walk: Walk) -> tuple[Tensor, Tensor]:
    """The edges of all cells, and for each change the cell that it opens."""
    ends = rounded(torch.tensor(walk.bounds, dtype=torch.float64))
    edges, where = torch.unique(torch.cat([ends, rounded(walk.time)]), return_inverse=True)
    return edges, where[2:]


def _start(walk: Walk) -> tuple[Tensor, Tensor]:
    right = torch.bincount(walk.labels[walk.labels == walk.first], minlength=walk.classes)
    return right, torch.bincount(walk.first, minlength=walk.classes)


def _histories(walk: Walk, cell: Tensor, right: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every class's counts after each cell in which they change, classes together, cells in order."""
    own = walk.labels[walk.sample]
    gains = torch.cat([-(walk.before == own).long(), (walk.after == own).long()])
    flows = torch.cat([-torch.ones_like(cell), torch.ones_like(cell)])
    changes = torch.stack([gains, flows], dim=1)
    classes, cells, total = _totals(torch.cat([walk.before, walk.after]), torch.cat([cell, cell]), changes)
    return classes, cells, right[classes] + total[:, 0], predicted[classes] + total[:, 1]


def _totals(classes: Tensor, cells: Tensor, changes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every class's changes (E, K) added up after each cell that has some, classes together, cells in order."""
    width = int(cells.max()) + 1 if len(cells) else 1
    key, where = torch.unique(classes * width + cells, return_inverse=True)
    classes, cells = key // width, key % width
    change = torch.zeros(len(key), changes.shape[1], dtype=torch.int64).index_add_(0, where, changes)
    total = change.cumsum(dim=0)
    # Sums run over classes one after another: take off what the classes before have added.
    first = torch.searchsorted(classes, classes)
    return classes, cells, total - torch.cat([total.new_zeros(1, changes.shape[1]), total])[first]
