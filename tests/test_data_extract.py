"""Extraction from other forms than whole folders, on the command line, from the images to the patched checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import json_of, out_of, refusal_of

from posthoc_lt import FeatureSet, load_features
from posthoc_lt.cli import run

EACH = {"train": 4, "val": 3, "test": 2}

Run = pytest.CaptureFixture[str]


@pytest.fixture
def small(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few images a class of the embedded case in data/, its checkpoint, and lists that name them."""
    shutil.copy(case / "model.pt", tmp_path)
    for split, count in EACH.items():
        lines = []
        for label, folder in enumerate(sorted((case / "data" / split).iterdir())):
            place = tmp_path / "data" / split / folder.name
            place.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, place)
                lines.append(f"{split}/{folder.name}/{path.name} {label}\n")
        (tmp_path / f"{split}.txt").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(features: FeatureSet, cached: FeatureSet, case: Path, split: str, names: list[str]) -> None:
    """The features of `names`, in this order, are those of the whole case's cache."""
    every = sorted(str(path.relative_to(case / "data")) for path in (case / "data" / split).glob("*/*"))
    index = torch.tensor([every.index(name) for name in names])
    mine, theirs = features.splits()[split], cached.splits()[split]
    torch.testing.assert_close(mine.x.float(), theirs.x[index].float(), rtol=2**-9, atol=1e-4)
    assert torch.equal(mine.labels, theirs.labels[index])


def proved(capsys: Run) -> int:
    """How many images a patched checkpoint is proved on."""
    out_of("logit-adjust --tau 1 --out head.safetensors --force", capsys)
    verified = json_of("export --ckpt model.pt --out balanced.pt --force", capsys)["verified_on"]
    assert isinstance(verified, int)
    return verified


def test_lists_give_the_same_features_and_a_proof(small: Path, case: Path, features: FeatureSet, capsys: Run) -> None:
    command = "extract --ckpt model.pt --data data --train train.txt --val val.txt --test test.txt"
    made = json_of(command, capsys)
    assert [row["samples"] for row in made["splits"]] == [40, 30, 20]
    found = load_features(Path("feats.safetensors"))
    for split in EACH:
        lines = (small / f"{split}.txt").read_text().splitlines()
        rows_of(found, features, case, split, [line.rsplit(maxsplit=1)[0] for line in lines])
    assert proved(capsys) == 30
    assert "is up to date" in run_note(command, capsys)
    (small / "val.txt").write_text((small / "val.txt").read_text().replace(" 9\n", " 8\n"))
    assert "another checkpoint, transform or set of images" in refusal_of(command.split(), capsys)[1]


def run_note(command: str, capsys: Run) -> str:
    """What a command that succeeds says on standard error."""
    capsys.readouterr()
    assert run(command.split()) == 0
    return capsys.readouterr().err


def test_a_holdout_is_told_and_proved(small: Path, capsys: Run) -> None:
    shutil.rmtree(small / "data" / "val")
    note = run_note("extract --ckpt model.pt --holdout 0.25 --seed 5", capsys)
    assert "honest only if the network was not trained on these images" in note
    found = load_features(Path("feats.safetensors"))
    assert found.counts.tolist() == [3] * 10
    assert found.val is not None
    assert found.val.counts(10).tolist() == [1] * 10
    assert proved(capsys) == 10


def test_what_is_skipped_is_listed_recorded_and_still_proved(
    small: Path, case: Path, features: FeatureSet, capsys: Run
) -> None:
    paths = sorted((small / "data" / "val").glob("*/*.png"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[7].write_bytes(b"no image")
    next((small / "data" / "train").glob("0-*/*.png")).unlink()
    (small / "data" / "train" / "0-t-shirt" / "x\x1b[31m.png").symlink_to("nowhere")
    command = "extract --ckpt model.pt"
    status, message = refusal_of(command.split(), capsys)
    assert status == 1
    assert r"x\x1b[31m.png, which cannot be read" in message
    assert "--on-error skip" in message
    note = run_note(command + " --on-error skip", capsys)
    assert "Skipped 2 of 30 val samples" in note
    assert f"{paths[0].relative_to(small)} (" in note
    assert r"Skipped 1 of 40 train samples, which cannot be read: data/train/0-t-shirt/x\x1b[31m.png (" in note
    found = load_features(Path("feats.safetensors"))
    assert set(json.loads(found.provenance["skipped"])["val"]) == {"0", "7"}
    kept = [str(path.relative_to(small / "data")) for index, path in enumerate(paths) if index not in (0, 7)]
    rows_of(found, features, case, "val", kept)
    assert found.counts.tolist() == [4] * 10
    assert proved(capsys) == 28


def test_a_bare_folder_is_an_unlabelled_val_and_chooses_tau(small: Path, capsys: Run) -> None:
    folders = list((small / "data" / "val").iterdir())
    for path in (small / "data" / "val").glob("*/*.png"):
        path.rename(small / "data" / "val" / f"{path.parent.name}-{path.name}")
    for folder in folders:
        folder.rmdir()
    made = json_of("extract --ckpt model.pt", capsys)
    (val,) = [row for row in made["splits"] if row["split"] == "val"]
    assert (val["samples"], val["accuracy"]) == (30, None)
    found = load_features(Path("feats.safetensors"))
    assert found.val is not None
    assert found.val.y is None
    assert json_of("tau-search", capsys)["decided_by"] == "label-free"
    assert proved(capsys) == 30


def test_own_tensors_are_taken_as_they_are(small: Path, case: Path, features: FeatureSet, capsys: Run) -> None:
    code = """
import numpy as np, torch
from pathlib import Path
from PIL import Image
class Rows(torch.utils.data.Dataset):
    def __init__(self, split):
        self.paths = sorted(Path("data", split).glob("*/*.png"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        x = np.array(Image.open(self.paths[index]), dtype=np.float32)
        return torch.from_numpy(x)[None] / 127.5 - 1, int(self.paths[index].parent.name[0])
def rows(split):
    return None if split == "test" else Rows(split)
"""
    (small / "own_tensors.py").write_text(code)
    command = "extract --ckpt model.pt --data own_tensors:rows"
    out_of(f"{command} -j 1", capsys)
    found = load_features(Path("feats.safetensors"))
    assert list(found.splits()) == ["train", "val"]
    for split in ("train", "val"):
        names = [str(path.relative_to("data")) for path in sorted(Path("data", split).glob("*/*.png"))]
        rows_of(found, features, case, split, names)
    assert proved(capsys) == 30
    status, message = refusal_of(f"{command} --limit 5 --out new".split(), capsys)
    assert (status, "--counts" in message) == (1, True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--train gone.txt", "list gone.txt, which cannot be read"),
        ("--data train.txt", "as --train, --val or --test"),
        ("--train train.txt", "check the folder that paths start from"),
        ("--data texts.csv", "which takes images"),
        ("--data data --train train.txt --val data/val", "--classes"),
        ("--data data --train nine.txt --val val.txt --classes names.txt", "2 class names"),
        ("--data data --val val.txt", "--counts"),
    ],
)
def test_data_that_does_not_fit_is_told(small: Path, capsys: Run, options: str, told: str) -> None:
    (small / "texts.csv").write_text("text,label,split\nhello,0,train\n")
    (small / "names.txt").write_text("a\nb\n")
    shutil.copy("train.txt", "nine.txt")
    status, message = refusal_of(["extract", "--ckpt", "model.pt", *options.split()], capsys)
    assert status == 1
    assert told in message
    assert not Path("feats.safetensors").exists()
