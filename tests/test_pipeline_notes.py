from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import posthoc_lt
from posthoc_lt import Features, FeatureSet, Head, PosthocError, save_features
from posthoc_lt.cli import run

HEAD = Head(5 * torch.eye(4), torch.zeros(4))


def noisy(noise: float, seed: int, samples: int = 100, scale: float = 4.0) -> Features:
    """One-hot features of four classes in turn, with noise: the head is right where it is small."""
    labels = torch.arange(4 * samples) % 4
    made = torch.Generator().manual_seed(seed)
    x = scale * (torch.nn.functional.one_hot(labels, 4) + noise * torch.randn(4 * samples, 4, generator=made))
    return Features(x, labels)


def notes(train: Features | None, val: Features, test: Features | None = None) -> tuple[str, ...]:
    counts = None if train is not None else torch.tensor([500, 90, 30, 5])
    features = FeatureSet(HEAD, train, val, test, train_counts=counts)
    return posthoc_lt.compare(features, methods="logit-adjust", device="cpu").notes


def test_held_out_data_of_a_network_that_errs_needs_no_note(features: FeatureSet) -> None:
    assert posthoc_lt.compare(features, methods="logit-adjust").notes == ()
    assert notes(noisy(0.1, 0), noisy(0.6, 1), noisy(0.6, 2)) == ()


def test_validation_learned_by_heart_is_noted(features: FeatureSet) -> None:
    """Train images of the embedded case, extracted again with a little noise: no row is bit for bit the same."""
    train = features.train
    assert train is not None
    x = train.x.float()
    again = Features(x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), train.labels)
    assert again.shared_with(train) == 0
    [note] = posthoc_lt.compare(replace(features, val=again), methods="logit-adjust").notes
    assert "as on data that the network was trained on" in note


def test_an_easy_problem_is_noted_only_where_it_is_no_harder_than_train() -> None:
    assert len(notes(noisy(0.1, 0), noisy(0.1, 1))) == 1
    assert len(notes(None, noisy(0.1, 1))) == 1
    assert notes(noisy(1e-3, 0, scale=9), noisy(0.2, 1)) == ()  # right, and far less sure of it than on train
    assert notes(noisy(0.1, 0), noisy(0.1, 1, samples=5)) == ()  # 20 samples all right prove nothing


def test_validation_that_is_far_easier_than_test_is_noted() -> None:
    [note] = notes(None, noisy(0.35, 1), noisy(0.8, 2))
    assert "balanced accuracy on val" in note
    assert notes(None, noisy(0.35, 1, samples=4), noisy(0.8, 2, samples=4)) == ()
    assert notes(None, noisy(0.8, 1), noisy(0.35, 2)) == ()


def test_shared_samples_are_noted_below_a_half_and_refused_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = noisy(0.6, 0), noisy(0.6, 1)
    for count in (30, 200):
        x = torch.cat([train.x[-count:], val.x[count:]])
        mixed = FeatureSet(HEAD, train, Features(x, val.y))
        path = tmp_path / f"{count}.safetensors"
        save_features(mixed, path)
        for command in ("logit-adjust", "rebalance", "compare"):
            status = run([command, "--features", str(path), "--format", "json"])
            told = " ".join(capsys.readouterr().err.split())
            if count == 30:
                assert status == 0
                assert "30 of 400 val samples are train samples, bit for bit" in told
            else:
                assert status == 1
                assert "200 of whose 400 samples are train samples, bit for bit" in told
        if count == 200:
            with pytest.raises(PosthocError, match="share no sample"):
                posthoc_lt.rebalance(mixed)


def test_train_samples_that_a_sampler_drew_again_are_noted(features: FeatureSet) -> None:
    train = features.train
    assert train is not None
    weight = 1 / features.counts.double()[train.labels]
    drawn = torch.multinomial(weight, len(train), replacement=True, generator=torch.Generator().manual_seed(0))
    copies = len(train) - len(torch.unique(drawn))
    [note] = posthoc_lt.compare(replace(features, train=train.subset(drawn)), methods="logit-adjust").notes
    assert note.startswith(f"{copies} of {len(train)} train samples are copies of others")


def test_a_loader_that_leaves_samples_out_is_noted() -> None:
    def loader(seed: int, drop_last: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
        made = noisy(0.6, seed, samples=25)
        return DataLoader(TensorDataset(made.x, made.labels), batch_size=16, drop_last=drop_last)

    def told(train: DataLoader[tuple[torch.Tensor, ...]]) -> tuple[str, ...]:
        return posthoc_lt.rebalance(model, train, loader(1), methods="logit-adjust", device="cpu").notes

    model = torch.nn.Linear(4, 4)
    model.load_state_dict({"weight": HEAD.weight, "bias": HEAD.bias})
    assert told(loader(0)) == ()
    [note] = told(loader(0, drop_last=True))
    assert "(train: 96 of 100)" in note
    batches = TensorDataset(*(each.reshape(4, 25, *each.shape[1:]) for each in loader(0).dataset.tensors))  # type: ignore[attr-defined]
    assert told(DataLoader(batches, batch_size=None)) == ()  # whose length counts batches


def test_what_was_left_out_is_shown(features: FeatureSet) -> None:
    assert features.train is not None
    x = features.train.x.clone()
    x[3, 5] = torch.nan
    found = posthoc_lt.rebalance(replace(features, train=Features(x, features.train.labels)))
    for name, reason in found.skipped.items():
        assert f"Left out {name}: {reason}" in repr(found)
        assert f"Left out {name}" in found._repr_html_()
    assert "crt" in found.skipped
