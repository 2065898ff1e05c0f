"""Networks with the same tensors that compute differently: the checkpoint's own images tell which of them it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import out_of, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pooled import average, maximum
from scipy.stats import ttest_rel
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from posthoc_lt.checkpoint import TwinsError
from posthoc_lt.checkpoint import fingerprint as index_module
from posthoc_lt.checkpoint.fingerprint import Known, fingerprint
from posthoc_lt.checkpoint.zoo import library
from posthoc_lt.cli import run
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction import extract, open_source
from posthoc_lt.extraction.twins import Score, balanced, foremost
from posthoc_lt.files import load_features

BOTH = {"pooled:maximum": 0, "pooled:average": 1}


def images(folder: Path) -> tuple[Tensor, Tensor]:
    """Train images and labels, read without the toolkit, as grey networks usually take them."""
    paths = sorted(folder.glob("data/train/*/*"))
    names = sorted({path.parent.name for path in paths})
    pixels = np.stack([np.array(Image.open(path), dtype=np.float32) for path in paths])
    x = torch.from_numpy(pixels)[:, None] / 255 * 2 - 1
    return x, torch.tensor([names.index(path.parent.name) for path in paths])


def trained(network: nn.Module, x: Tensor, y: Tensor, steps: int = 80) -> dict[str, Tensor]:
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    balance = (1.0 / torch.bincount(y).double())[y]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.multinomial(balance, 64, replacement=True, generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.state_dict()


@pytest.fixture(scope="module")
def states(case: Path) -> dict[str, dict[str, Tensor]]:
    """The weights of each network, trained for about a second."""
    x, y = images(case)
    found = {}
    for name, build in (("pooled:maximum", maximum), ("pooled:average", average)):
        torch.manual_seed(0)
        found[name] = trained(build(), x, y)
    return found


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """An index of networks with these tensors alone: a function for each name."""

    def write(functions: dict[str, int]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in maximum().state_dict().items()}
        key = fingerprint({name: shape for name, shape in shapes.items() if not name.startswith("fc.")})
        known = tuple(Known(name, ("fc",), number) for name, number in functions.items())
        monkeypatch.setattr(index_module, "_index", lambda: ({"pooled": "0"}, {key: known}))

    write(BOTH)
    return write


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("name", BOTH)
def test_the_network_that_it_was_trained_as_is_taken_and_said(
    there: Path,
    states: dict[str, dict[str, Tensor]],
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (other,) = set(BOTH) - {name}
    torch.save(states[name], there / "twin.pt")
    assert run(["extract", "--ckpt", "twin.pt", "--out", "twin.safetensors"]) == 0
    note = capsys.readouterr().err.replace("\n", " ")
    assert f"Taken as {name}" in note
    assert f"as {other} (log-likelihood lower by" in note
    assert "--arch takes another" in note
    features = load_features(Path("twin.safetensors"))
    assert features.provenance["arch"] == name
    assert features.provenance["arch_chosen_by"].endswith(" train images")
    with monkeypatch.context() as without:  # the same choice again, and nothing to do: no network is run
        without.setattr("posthoc_lt.extraction.source.settle", None)
        assert run(["extract", "--ckpt", "twin.pt", "--out", "twin.safetensors"]) == 0
    note = capsys.readouterr().err.replace("\n", " ")
    assert f"Taken as {name}, as {features.provenance['arch_chosen_by']} told when its features" in note
    torch.save(states[other], there / "other.pt")
    assert run(["extract", "--ckpt", "other.pt", "--out", "twin.safetensors"]) == 1
    assert f"Taken as {other}. Other networks" in capsys.readouterr().err.replace("\n", " ")
    out_of("logit-adjust --features twin.safetensors --tau 1 --out head.safetensors", capsys)
    export = "export --ckpt twin.pt --features twin.safetensors --head head.safetensors --out new.pt"
    out_of(f"{export} --arch {name}", capsys)


@pytest.mark.usefixtures("index")
def test_arch_overrides_the_images_and_python_is_told_too(
    there: Path, states: dict[str, dict[str, Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(states["pooled:maximum"], "twin.pt")
    extract("twin.pt", limit=10)
    assert "Taken as pooled:maximum" in caplog.text
    source = open_source("twin.pt", arch="pooled:average")
    assert (source.architecture.name, source.architecture.note) == ("pooled:average", "")
    assert "arch_chosen_by" not in source.provenance


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("splits", [("val", "test"), ("test",)])
def test_without_train_other_splits_tell(
    there: Path, states: dict[str, dict[str, Tensor]], splits: tuple[str, ...]
) -> None:
    torch.save(states["pooled:average"], "twin.pt")
    for split in splits:
        shutil.copytree(there / "data" / split, there / "part" / split)
    source = open_source("twin.pt", "part", counts=[5] * 10)
    assert source.architecture.name == "pooled:average"
    assert source.provenance["arch_chosen_by"].endswith(f" {splits[0]} images")


@pytest.mark.parametrize("case_of", ["untrained", "other order", "unlabelled", "few", "seven", "absent"])
def test_where_images_do_not_tell_it_is_refused_with_the_list(
    there: Path, states: dict[str, dict[str, Tensor]], index: Callable[[dict[str, int]], None], case_of: str
) -> None:
    state, functions, why = dict(states["pooled:average"]), dict(BOTH), "128 train images do not tell: right are"
    torch.save(state, "twin.pt")
    if case_of == "untrained":
        torch.manual_seed(0)
        torch.save(maximum().state_dict(), "twin.pt")
    elif case_of == "other order":  # of the classes: whatever wins would win by being the less sure
        torch.save(
            {**state, "fc.weight": state["fc.weight"].roll(1, 0), "fc.bias": state["fc.bias"].roll(1)}, "twin.pt"
        )
    elif case_of == "unlabelled":
        (there / "part/val").mkdir(parents=True)
        shutil.copyfile(next(there.glob("data/val/*/*.png")), there / "part/val/0.png")
        why = "no labelled images"
    elif case_of == "few":
        for folder in there.glob("data/val/*"):
            shutil.copytree(folder, there / "part/val" / folder.name, ignore=lambda _, names: sorted(names)[1:])
        why = "10 val images do not tell"
    elif case_of == "seven":
        functions |= {f"pooled:otherwise{number}": number for number in range(2, 7)}
        why = "more of them than the 6"
    elif case_of == "absent":
        functions["pooled:nowhere_to_be_found"] = 2
        why = "has no function nowhere_to_be_found"
    index(functions)
    part = (there / "part").exists()
    with pytest.raises(TwinsError, match="pooled:average; pooled:maximum") as caught:
        open_source("twin.pt", "part" if part else "data", counts=[5] * 10 if part else None)
    assert why in str(caught.value)
    assert "--arch pooled:average" in str(caught.value)


def test_what_agrees_in_effect_or_does_not_run_is_said(
    there: Path, states: dict[str, dict[str, Tensor]], index: Callable[[dict[str, int]], None]
) -> None:
    index({"pooled:maximum": 0, "pooled:strided": 1, "pooled:average": 2, "pooled:much_wider": 3})
    torch.save(states["pooled:average"], "twin.pt")
    source = open_source("twin.pt")
    assert source.architecture.name == "pooled:average"  # the plainer of the two
    assert source.provenance["arch_chosen_by"] == "128 train images"
    assert "as pooled:maximum (log-likelihood lower" in source.architecture.note
    assert "pooled:much_wider does not run on images of this size" in source.architecture.note
    assert "pooled:strided agrees with it" in source.architecture.note


@pytest.mark.usefixtures("index")
def test_labels_that_do_not_fit_are_told_as_such(there: Path, states: dict[str, dict[str, Tensor]]) -> None:
    torch.save(states["pooled:average"], "twin.pt")
    shutil.copytree(there / "data" / "train", there / "part" / "train")
    (there / "part/train/one-more").mkdir()
    shutil.copyfile(next(there.glob("data/val/*/*.png")), there / "part/train/one-more/0.png")
    with pytest.raises(PosthocError, match="network of 10 classes and 11 classes"):
        open_source("twin.pt", "part")


def test_refused_on_the_command_line_in_one_paragraph(
    there: Path, index: Callable[[dict[str, int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(maximum().state_dict(), "twin.pt")
    status, message = refusal_of(["extract", "--ckpt", "twin.pt", "--out", "twin.safetensors"], capsys)
    assert status == 1
    assert "images do not tell" in message


def score(name: str, likelihood: list[float], right: list[bool]) -> Score:
    y = torch.arange(len(right)) % 4
    return Score(name, torch.tensor(likelihood, dtype=torch.float64), torch.where(torch.tensor(right), y, y + 1), y)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([8, 16, 32, 128]))
def test_a_choice_is_a_landslide_by_a_paired_test(seed: int, gap: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.normal(-2, 1, count)
    high = low + rng.normal(gap, 1, count)
    scores = [
        score("a", low.tolist(), (rng.random(count) < 0.6).tolist()),
        score("b", high.tolist(), (rng.random(count) < 0.8).tolist()),
    ]
    found = foremost(scores)
    more = np.mean(high - low) > 0.1 and ttest_rel(high, low).statistic > 3 and scores[1].right >= scores[0].right
    less = np.mean(low - high) > 0.1 and ttest_rel(low, high).statistic > 3 and scores[0].right >= scores[1].right
    sound = {each.name for each in scores if count >= 16 and each.right > count / 4 + 3 * np.sqrt(count * 3 / 16)}
    expected = {name for name, ahead in (("a", less), ("b", more)) if ahead} & sound
    assert ({found.name} if found else set()) == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.integers(0, 3))
def test_every_beginning_of_the_sample_is_as_equal_in_classes_as_can_be(labels: list[int], seed: int) -> None:
    class Listed:
        def __init__(self) -> None:
            self.labels = torch.tensor(labels)
            self.own_code = False

        def __len__(self) -> int:
            return len(labels)

    order = balanced(Listed(), seed)  # type: ignore[arg-type]  # all of Samples that is read
    assert len(order) == len(set(order)) == min(128, len(labels))
    for size in (7, 32, 128):
        taken = [labels[index] for index in order[:size]]
        most = max(map(taken.count, taken))
        assert all(taken.count(label) >= min(labels.count(label), most - 1) for label in labels)


def test_a_bare_resnet18_is_told_from_its_twin(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    try:
        network = library("timm").create_model("resnet18", num_classes=10).eval()
    except PosthocError:
        pytest.skip("timm is not installed")
    x, y = images(there)
    colour = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    x = nn.functional.interpolate(x, 45, mode="bilinear")[..., 2:42, 2:42]  # as torchvision crops 7/8 of the side
    x = (x / 2 + 0.5 - colour[0]) / colour[1]
    with torch.no_grad():
        network.train()(x[::3])  # so that its normalisation has statistics of these images
        hidden = network.eval().forward_head(network.forward_features(x), pre_logits=True)
    middle, scale = hidden.mean(0), hidden.std(0).clamp(min=1e-3)
    fit = LogisticRegression(C=1, max_iter=1000, class_weight="balanced").fit(
        ((hidden - middle) / scale).numpy(), y.numpy()
    )
    weight = torch.tensor(fit.coef_).float() / scale
    head = {"fc.weight": weight, "fc.bias": torch.tensor(fit.intercept_).float() - weight @ middle}
    torch.save(network.state_dict() | head, "twin.pt")
    command = ["extract", "--ckpt", "twin.pt", "--out", "twin.safetensors", "--input-size", "40", "--limit", "64"]
    assert run(command) == 0
    assert "as timm:resnetblur18 (log-likelihood lower by" in capsys.readouterr().err
    assert "resnet18" in load_features(Path("twin.safetensors")).provenance["arch"]
