"""Large problems: paths of drafts that are finished once asked for, heads on disk, several processes."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path as File

import pytest
import torch
from launch import side_by_side
from method_cases import problem

from posthoc_lt.family import Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.priors import class_weights
from posthoc_lt.search import choose
from posthoc_lt.search.goal import Goal
from posthoc_lt.solver import blocks, fit_scaling, penalties, scaling
from posthoc_lt.solver.minimise import memory

kept_on_disk = sys.modules["posthoc_lt.solver.penalties"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("crt", {}),
        ("crt", {"sampler": "instance", "loss": "logit-adjusted"}),
        ("refit", {}),
        ("lws", {}),
        ("affine", {}),
    ],
)
def test_a_path_of_drafts_is_finished_where_it_is_asked_for(
    name: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(4, counts=(400, 90, 30, 4), dimensions=8)
    exact = METHODS[name](**options).fit(p.head(), p.training())
    assert isinstance(exact, Path)
    monkeypatch.setattr(blocks, "LARGE", 0)
    path = METHODS[name](**options).fit(p.head(), p.training())
    assert isinstance(path, Path)
    assert path.knobs == penalties(None, large=True) == exact.knobs[::2]
    drafts = [k for k, each in enumerate(path.certificates) if not each.converged]
    assert drafts
    for index, knob in enumerate(path.knobs):
        steps, head = path.certificates[index].iterations, path.at(knob)
        assert path.certificates[index].converged
        assert path.certificates[index].iterations >= steps
        assert path.at(knob) is path.heads[index] is head
        least = exact.certificates[2 * index].objective
        assert path.certificates[index].objective == pytest.approx(least, rel=1e-2, abs=1e-4)
        z = torch.tensor(p.x)
        found, wanted = (torch.softmax(each(z), dim=1) for each in (head, exact.at(knob)))
        assert (found - wanted).abs().mean() < 5e-3


def test_no_head_is_chosen_for_what_its_draft_does() -> None:
    x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    right, half = (
        Head(4 * torch.eye(3), torch.zeros(3)),
        Head(torch.diag(torch.tensor([4.0, 4.0, 0.0])), torch.zeros(3)),
    )
    heads, asked = [right, half], []

    def finish(index: int) -> None:
        asked.append(index)
        if index == 0:
            heads[0] = Head(-torch.eye(3), torch.zeros(3))

    choice = choose(Path((1.0, 0.1), heads, (), finish), Features(x, y), Goal(rule="metric"))
    assert (choice.knob, choice.head) == (0.1, half)
    assert asked[:2] == [0, 1]


def test_large_heads_are_kept_on_disk_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    in_memory = METHODS["ridge"]().fit(p.head(), p.training())
    monkeypatch.setattr(kept_on_disk, "ON_DISK", 1)
    on_disk = METHODS["ridge"]().fit(p.head(), p.training())
    assert isinstance(in_memory, Path)
    assert isinstance(on_disk, Path)
    for one, other in zip(in_memory.heads, on_disk.heads, strict=True):
        assert torch.equal(one.weight, other.weight)
    assert torch.equal(pickle.loads(pickle.dumps(on_disk.heads[0])).weight, in_memory.heads[0].weight)


@pytest.mark.parametrize("offsets", [False, True])
def test_scalings_of_many_classes_are_preconditioned_by_class_and_end_alike(
    offsets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(4, counts=(400, 90, 30, 4), dimensions=8)
    features, weights = Features(torch.tensor(p.x), torch.tensor(p.y)), class_weights(torch.tensor(p.counts))
    centre = torch.tensor([[1.0, 0.0]] if offsets else [[0.0]]).repeat(4, 1)
    whole = fit_scaling(p.head(), features, weights, penalties(None), centre)
    monkeypatch.setattr(scaling, "WIDE", 0)
    for one, other in zip(whole, fit_scaling(p.head(), features, weights, penalties(None), centre), strict=True):
        assert other.certificate.converged
        assert other.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-9)


@pytest.mark.parametrize(("classes", "steps"), [(1000, 10), (8142, 2)])
def test_very_large_heads_are_solved_with_a_shorter_memory(classes: int, steps: int) -> None:
    assert memory(torch.empty(classes, 2049, device="meta")).maxlen == steps


SCRIPT = """
import sys, torch
import posthoc_lt.features
from method_cases import problem
from posthoc_lt import ranks
from posthoc_lt.methods import METHODS
from posthoc_lt.solver import blocks

posthoc_lt.features.CHUNK_ELEMENTS = 64 * 40
p, found = problem(4, counts=(400, 150, 60, 9), dimensions=40), {}
with ranks.joined():
    for blocks.LARGE in (0, 1 << 60):
        plain = ((name, {}) for name in ("crt", "refit", "lws", "affine", "ridge", "lda"))
        for name, options in (*plain, ("crt", {"max_norm": 0.5})):
            path = METHODS[name](**options).fit(p.head(), p.training())
            for knob in path.knobs[::6]:
                found[(name, *options, blocks.LARGE, knob)] = path.at(knob).weight, path.at(knob).bias
    torch.save(found, f"{sys.argv[1]}/{ranks.world()}-{ranks.rank()}.pt")
"""


def test_several_processes_solve_for_the_heads_of_one(tmp_path: File) -> None:
    for processes in (1, 2):
        done = side_by_side(["-c", SCRIPT, str(tmp_path)], File(__file__).parent, processes)
        assert [each.status for each in done] == [0] * processes, [each.err for each in done]
    alone, *both = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for together in both:
        assert together.keys() == alone.keys()
        for key, parts in alone.items():
            torch.testing.assert_close(together[key], parts, rtol=1e-5, atol=1e-5)
