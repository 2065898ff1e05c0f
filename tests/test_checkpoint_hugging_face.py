"""Hugging Face folders: images and texts, extracted and run by transformers, the head replaced in a copy."""

from __future__ import annotations

import builtins
import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_network import new_head, write_images
from torch import Tensor

from posthoc_lt.checkpoint import Preprocessing, identify, read
from posthoc_lt.checkpoint.hugging_face import transformers_library
from posthoc_lt.cli import run
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract

pytest.importorskip("transformers")
transformers = transformers_library()  # beside a torchvision that it can import, where there is one
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "plain", "film", "very", "not", "a", "the")
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # float32 in two ways
LABELS = ("plain", "good", "bad")  # not in the order of the alphabet


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("hf") / "data")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vit(folder: str, labels: tuple[str, ...] = ("ant", "bee", "cat"), **processor: Any) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(
        **size, image_size=8, patch_size=4, num_channels=3, id2label=dict(enumerate(labels))
    )
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()  # transformers begins with weights so small that all images look alike
        model.vit.embeddings.position_embeddings.normal_()
    model.save_pretrained(folder)
    said = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 2, "do_normalize": True}
    said |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2], "rescale_factor": 1 / 255, **processor}
    Path(folder, "preprocessor_config.json").write_text(json.dumps(said))
    return model


def bert(folder: str, **options: Any) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=12, id2label=dict(enumerate(LABELS)), **size
    )
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.5)
    model.save_pretrained(folder, **options)
    Path("vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast("vocab.txt", model_max_length=12).save_pretrained(folder)
    Path("vocab.txt").unlink()
    return model


def write_texts(path: str = "texts.csv") -> list[str]:
    """A table of texts, most of them longer or shorter than others; those of val, in order."""
    rng = np.random.default_rng(0)
    val = []
    with Path(path).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "split"])
        for split, count in (("train", 12), ("val", 9)):
            for index in range(count):
                text = " ".join(rng.choice(WORDS[5:], size=int(rng.integers(1, 20))))
                table.writerow([text, LABELS[index % 3], split])
                val += [text] if split == "val" else []
    return val


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@torch.no_grad()
def text_logits(folder: str, texts: list[str]) -> Tensor:
    """One text at a time, so that no padding can matter."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    each = [tokenizer(text, truncation=True, max_length=12, return_tensors="pt") for text in texts]
    return torch.cat([model(**one).logits for one in each])


def test_an_image_classifier_gives_the_new_head(images: Path) -> None:
    model = vit("model")
    features = extract("model", images)
    assert features.classes == ("ant", "bee", "cat")
    assert features.provenance["head_name"] == "classifier"
    head = new_head(features)
    exported = export("model", head, "balanced", features=features)
    assert exported.changed == ("classifier.weight", "classifier.bias")
    patched = transformers.AutoModelForImageClassification.from_pretrained("balanced").eval()
    paths = [p for name in features.classes for p in sorted((images / "val" / name).iterdir())]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(p).convert("RGB"), dtype=np.float64)) for p in paths])
    x = (pixels / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    x = x.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        hidden = model.vit(x).last_hidden_state[:, 0]
        logits = patched(x).logits
    torch.testing.assert_close(logits.double(), hidden.double() @ head.weight.double().T + head.bias.double(), **CLOSE)
    assert features.val is not None
    torch.testing.assert_close(features.val.x.float(), hidden, rtol=2e-3, atol=2e-3)
    before, after = files("model"), files("balanced")
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
    assert before.keys() == after.keys()
    old, new = load_file("model/model.safetensors"), load_file("balanced/model.safetensors")
    assert {name for name in old if not torch.equal(old[name], new[name])} == set(exported.changed)
    assert len(before["model.safetensors"]) == len(after["model.safetensors"])


@pytest.mark.parametrize("shard", [None, "2KB"])
def test_a_text_classifier_gives_the_new_head(shard: str | None) -> None:
    model = bert("model", **({} if shard is None else {"max_shard_size": shard}))
    assert (len(list(Path("model").glob("model-*.safetensors"))) > 1) == (shard is not None)
    texts = write_texts()
    features = extract("model", "texts.csv", batch_size=4)
    assert features.classes == LABELS
    assert features.train is not None
    assert features.val is not None
    assert features.val.y is not None
    assert features.val.y.tolist() == [0, 1, 2] * 3
    head = new_head(features)
    export("model", head, "balanced", features=features)
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    with torch.no_grad():
        each = [tokenizer(text, truncation=True, max_length=12, return_tensors="pt") for text in texts]
        hidden = torch.cat([model.bert(**one).pooler_output for one in each])
    torch.testing.assert_close(features.val.x.float(), hidden, rtol=2e-3, atol=2e-3)
    expected = hidden.double() @ head.weight.double().T + head.bias.double()
    torch.testing.assert_close(text_logits("balanced", texts).double(), expected, **CLOSE)
    before, after = files("model"), files("balanced")
    changed = [name for name in before if before[name] != after[name]]
    assert len(changed) in ((1,) if shard is None else (1, 2))
    assert all(name.endswith(".safetensors") for name in changed)


def test_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    bert("model")
    write_texts()
    assert run(["extract", "--ckpt", "model", "--data", "texts.csv"]) == 0
    assert "hugging face, head classifier: 3 classes, 8 dimensions" in capsys.readouterr().out
    assert run(["extract", "--ckpt", "model", "--data", "texts.csv"]) == 0
    assert "is up to date" in capsys.readouterr().err
    assert run(["logit-adjust", "--tau", "1.0", "--out", "head.safetensors"]) == 0
    assert run(["export", "--ckpt", "model"]) == 0
    assert run(["export", "--ckpt", "model", "--format", "json"]) == 0
    capsys.readouterr()
    assert run(["inspect", "model", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["arch"] == "hugging face"
    assert text_logits("balanced", ["good film"]).shape == (1, 3)
    before = files("balanced")
    assert run(["logit-adjust", "--tau", "2.0", "--out", "head.safetensors", "--force"]) == 0
    assert run(["export", "--ckpt", "model"]) == 1
    assert "exists and holds something else" in capsys.readouterr().err
    assert files("balanced") == before
    assert run(["export", "--ckpt", "model", "--force"]) == 0
    assert files("balanced") != before
    assert sorted(os.listdir()) == ["balanced", "feats.safetensors", "head.safetensors", "model", "texts.csv"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (8, 1.0, True, "bilinear")),
        ({"size": 8, "resample": 3}, (8, 1.0, True, "bicubic")),
        (
            {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            (8, 0.5, False, "bilinear"),
        ),
        ({"size": {"shortest_edge": 8}, "crop_pct": 0.5}, (8, 0.5, False, "bilinear")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 1.0, True, "bilinear")),
    ],
)
def test_the_processor_is_read(said: dict[str, Any], expected: tuple[object, ...]) -> None:
    vit("model", **said)
    found = identify(read("model")).preprocessing
    assert isinstance(found, Preprocessing)
    assert (found.input_size, found.crop, found.squash, found.interpolation) == expected


def test_a_processor_that_says_something_else_is_told() -> None:
    vit("model", rescale_factor=1 / 127.5)
    assert "does not tell how its images are prepared" in identify(read("model")).note
    Path("model/preprocessor_config.json").unlink()
    assert "does not tell how its images are prepared" in identify(read("model")).note


def test_labels_of_another_kind_do_not_reorder_the_folders(images: Path) -> None:
    vit("model", labels=("first", "second", "third"))
    assert extract("model", images).classes == ("ant", "bee", "cat")
    vit("reordered", labels=("cat", "ant", "bee"))
    features = extract("reordered", images)
    assert features.classes == ("cat", "ant", "bee")
    assert features.val is not None
    assert features.val.y is not None
    assert features.val.y.tolist() == [1] * 5 + [2] * 5 + [0] * 5


def test_what_cannot_be_used_says_so(images: Path) -> None:
    vit("model")
    write_texts()
    with pytest.raises(PosthocError, match=r"holds texts, for hugging face, which takes images"):
        extract("model", "texts.csv")
    bert("texts")
    with pytest.raises(PosthocError, match=r"takes texts.*columns text, label and split"):
        extract("texts", images)
    with pytest.raises(PosthocError, match=r"for a network of texts"):
        extract("texts", "texts.csv", mean=[0.5])
    config = json.loads(Path("model/config.json").read_text())
    for changed, told in (
        ({"architectures": ["ViTModel"]}, "whose network is ViTModel"),
        ({"num_labels": 4, "id2label": None}, "whose weights lack classifier"),
        ({"model_type": "unheard-of"}, "does not load from its own files alone"),
    ):
        Path("model/config.json").write_text(json.dumps({**config, **changed}))
        with pytest.raises(PosthocError, match=told):
            extract("model", images)
    Path("model/config.json").write_text("{")
    with pytest.raises(PosthocError, match=r"config.json, which cannot be read"):
        extract("model", images)
    Path("model/config.json").write_text(json.dumps(config))
    Path("model/model.safetensors").unlink()
    with pytest.raises(PosthocError, match=r"a config.json and no weights"):
        extract("model", images)


def test_code_in_the_folder_is_not_run(images: Path) -> None:
    vit("model")
    config = json.loads(Path("model/config.json").read_text())
    own = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    Path("model/config.json").write_text(json.dumps({**config, "auto_map": own, "model_type": "evil"}))
    Path("model/evil.py").write_text(
        "import pathlib; pathlib.Path('run').touch()\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(PosthocError, match=r"code in it is not run"):
        extract("model", images)
    assert not Path("run").exists()


def test_without_the_extra_the_error_names_it(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bert("model")
    write_texts()
    real = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: real("absent_" + name))
    with pytest.raises(PosthocError, match=r"pip install 'posthoc-lt\[hf\]'"):
        extract("model", "texts.csv")
