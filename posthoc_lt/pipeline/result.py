"""What `rebalance` returns: the chosen head, why it was chosen, and what to do with it."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import difference, group_difference
from posthoc_lt.export import Exported, apply, export
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import SavedHead, save_head
from posthoc_lt.files.atomic import replacing
from posthoc_lt.head import Head
from posthoc_lt.pipeline.figures import draw
from posthoc_lt.pipeline.fit import Fitted, Selection
from posthoc_lt.pipeline.notes import notes
from posthoc_lt.pipeline.story import story
from posthoc_lt.report import Table, verdict
from posthoc_lt.report.page import page
from posthoc_lt.report.text import metric_name
from posthoc_lt.search import UTILITY, value

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods fitted on the same features.

    Args:
        features: what they were fitted, chosen and judged on.
        fitted: every method, the untouched head first.
        skipped: methods that could not be fitted, with the reason.
    """

    features: FeatureSet
    fitted: tuple[Fitted, ...]
    skipped: Mapping[str, str]

    @cached_property
    def comparison(self) -> Table:
        """Every method against the baseline, paired."""
        return self._table(None)

    def _table(self, chosen: Fitted | None) -> Table:
        rows = [each.row(chosen=each is chosen) for each in self.fitted]
        chosen_on = "val" if any(each.chosen_on_val for each in self.fitted) else None
        return Table.against(rows, self.features.classes, chosen_on=chosen_on)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Signs that validation is not held-out data, a sentence each; most often none."""
        return tuple(notes(self.features, self.fitted[0]))

    @property
    def table(self) -> pandas.DataFrame:
        """The comparison as a pandas frame: a row a method."""
        return self.comparison.frame()

    def __repr__(self) -> str:
        return "\n".join([self.comparison.text(), *self._left_out()])

    def _repr_html_(self) -> str:
        return self.comparison.html() + "".join(f"<p>{html.escape(each)}</p>" for each in self._left_out())

    def _left_out(self) -> list[str]:
        return [f"Left out {name}: {reason}" for name, reason in self.skipped.items()]


@dataclass(frozen=True, eq=False)
class Procedure:
    """Fitting every method and taking the best, judged on samples left out of the choice.

    Each fold is predicted by the method that is best on the other folds, with its knob chosen there too. What those
    other folds said of a method came from knobs that this fold had helped to choose: a second-order leak, which
    nested folds would close at five times the cost.

    Args:
        predicted: (N,) on validation, each by a method and a knob chosen on other folds.
        figure: the metric of these predictions.
    """

    predicted: Tensor
    figure: float

    def __repr__(self) -> str:
        return f"Procedure({len(self.predicted)} predictions, figure={self.figure:.3f})"


@dataclass(frozen=True, eq=False, repr=False)
class Result(Comparison):
    """A rebalanced head and all that led to it.

    Args:
        chosen: the method that validation supports.
        selection: the metric and rule that chose.
        scores: the cross-fitted validation metric of every method that could have been chosen, by label.
        procedure: what all of this choosing is worth, judged on validation.
        model: the network, where it was given in memory.
    """

    chosen: Fitted
    selection: Selection
    scores: Mapping[str, float]
    procedure: Procedure
    model: nn.Module | None = None

    @property
    def head(self) -> Head:
        """The chosen head."""
        return self.chosen.head

    @property
    def method(self) -> str:
        """The chosen method's name."""
        return self.chosen.name

    @property
    def knobs(self) -> dict[str, float]:
        """The chosen method's knobs by name; empty where it has none."""
        return self.chosen.knobs

    @property
    def tau(self) -> float | None:
        """The chosen τ; None where the method has none."""
        return self.knobs.get("tau")

    @cached_property
    def comparison(self) -> Table:
        """Every method against the baseline, paired, the chosen one marked."""
        return self._table(self.chosen)

    @property
    def optimism(self) -> float:
        """How much the chosen head's validation metric flatters: apparent, minus that of the `procedure`."""
        val, goal = self.chosen.val, self.selection.goal(self.features)
        assert val is not None  # rebalance does not start without it
        return value(goal.figure, val.labels, val.predicted, val.classes, goal.groups) - self.procedure.figure

    @property
    def reason(self) -> str:
        """Why this method, and what validation says of such a choice when it is judged on other samples."""
        before = self.fitted[0].val
        assert before is not None
        metric = before.yardstick.name if self._judged_by_metric else metric_name(self.selection.metric)
        knobs = "".join(f" ({name} = {number:.3g})" for name, number in self.knobs.items())
        own, honest = 100 * self.scores[self.chosen.label], 100 * self.procedure.figure
        gain = before.yardstick.difference(before.labels, before.predicted, self.procedure.predicted, before.classes)
        return (
            f"{self.chosen.label}{knobs} has the best cross-fitted validation {metric}, {own:.1f}%. Choosing method "
            f"and knob in this way, judged on folds left out of the choice, gives {honest:.1f}%; against the untouched "
            f"head that is {100 * gain.delta:+.1f} points of {before.yardstick.name} [{100 * gain.low:+.1f}, "
            f"{100 * gain.high:+.1f}]."
        )

    @property
    def verdict(self) -> str:
        """One sentence: what was gained, and what it cost the head classes."""
        split = self.comparison.split
        before, after = (getattr(each, split) for each in (self.fitted[0], self.chosen))
        few, many = (group_difference(before, after, group) for group in ("few", "many"))
        goal = self.selection.goal(self.features)
        one, two = (value(goal.figure, e.labels, e.predicted, e.classes, goal.groups) for e in (before, after))
        values = None if self._judged_by_metric else (one, two)
        return verdict(before, after, difference(before, after), few, many, split, goal.metric, values)

    @property
    def _judged_by_metric(self) -> bool:
        """Whether what was chosen by is the yardstick itself."""
        return self.selection.metric in ("balanced-accuracy", UTILITY)

    def plot(self, kind: str | None = None, axes: Axes | None = None) -> Axes:
        """Draw the result on matplotlib axes (extra ``plot``).

        Args:
            kind: ``tau``, the exact validation metric at every knob value; ``classes``, each class's accuracy
                before and after; ``norms``, weight norms against class size; ``pareto``, every trade of many-shot
                against few-shot accuracy; ``reliability``, accuracy against confidence; ``confusion``, the
                mistakes that changed most. By default ``tau`` where the chosen method has such a curve, else
                ``classes``.
            axes: where to draw; a new figure by default.

        Raises:
            PosthocError: the kind is unknown, there is no such curve, or matplotlib is missing.
        """
        return draw(self, kind or ("classes" if self.chosen.choice.curve is None else "tau"), axes)

    def report(
        self, path: str | os.PathLike[str], force: bool = False, *, facts: Mapping[str, str] | None = None
    ) -> None:
        """Write the result as one self-contained HTML page (extra ``report``), whole or not at all.

        Args:
            path: where to.
            force: write over another file.
            facts: what else the page shall tell of where it comes from, such as the command that made it.

        Raises:
            PosthocError: Jinja2 or matplotlib is missing, the place cannot be written to, or holds another
                file and not `force`.
        """
        with replacing(Path(path), force) as temporary:
            temporary.write_text(page(story(self, facts or {})), encoding="utf-8")

    def saved(self) -> SavedHead:
        """The head with the strings that its file carries."""
        return saved_head(self.chosen, self.features)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write the head file, whole or not at all.

        Raises:
            PosthocError: the place cannot be written to, or holds another file and not `force`.
        """
        save_head(self.saved(), Path(path), force)

    def export(
        self,
        checkpoint: str | os.PathLike[str],
        out: str | os.PathLike[str],
        *,
        arch: str | None = None,
        data: str | os.PathLike[str] | None = None,
        force: bool = False,
        add_bias: bool = False,
        allow_pickle: bool = False,
    ) -> Exported:
        """Fold the head into a checkpoint of the same kind, verified on real inputs; see `posthoc_lt.export`."""
        place = None if data is None else Path(data)
        return export(
            Path(checkpoint),
            self.head,
            Path(out),
            features=self.features,
            arch=arch,
            data=place,
            force=force,
            add_bias=add_bias,
            allow_pickle=allow_pickle,
        )

    def apply(self, add_bias: bool = False) -> nn.Module:
        """A copy of the network that was given in memory, with the chosen head.

        Args:
            add_bias: add a bias to a layer that has none, where the head needs one.

        Raises:
            PosthocError: the features did not come from a network in memory.
        """
        if self.model is None:
            raise PosthocError(
                "features that did not come from a network in memory",
                "a result of rebalance(model, train_loader, val_loader)",
                "use result.export('model.pt', 'balanced.pt')",
            )
        return apply(self.model, self.features.provenance["head_name"], self.head, add_bias=add_bias)

    def __repr__(self) -> str:
        knobs = "".join(f", {name}={value:.3g}" for name, value in self.knobs.items())
        return f"Result({self.method}{knobs})\n{super().__repr__()}\n{self.verdict}"

    def _repr_html_(self) -> str:
        return f"{super()._repr_html_()}<p>{html.escape(self.verdict)}</p>"


def origin(features: FeatureSet) -> dict[str, str]:
    """Where a head on these features comes from, for its file."""
    return {key: features.provenance[key] for key in _KEPT if key in features.provenance}


def saved_head(fitted: Fitted, features: FeatureSet) -> SavedHead:
    """A fitted head with where it comes from: the method, its knob and options, and its features' checkpoint."""
    knobs = {name: repr(value) for name, value in fitted.knobs.items()}
    options = {"options": fitted.options} if fitted.options else {}
    how = {**knobs, **options, "method": fitted.name, "decided_by": fitted.choice.decided_by}
    return SavedHead(fitted.head, {**origin(features), **how})


_KEPT = ("checkpoint", "checkpoint_sha256", "head_name", "arch", "transform")
