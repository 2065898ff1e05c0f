"""What can go wrong around a command: files that vanish or change, several at once, dead workers, clocks, no memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import out_of, refusal_of
from safetensors.torch import save_file
from small_network import Small, small, write_images
from torch import Tensor, nn

from posthoc_lt import (
    PosthocError,
    load_features,
    load_head,
)
from posthoc_lt.checkpoint import read
from posthoc_lt.cli import run
from posthoc_lt.extraction import extract, extract_source, extract_to, open_source

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def build() -> nn.Module:
    return small()


class Refusing(nn.Module):
    """A device with memory for as many images as the environment says."""

    def __init__(self, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.network, self.error = small(), error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > int(os.environ["MOST"]):
            raise self.error()
        found: Tensor = self.network(x)
        return found


def refusing() -> nn.Module:
    return Refusing(lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def refusing_on_cpu() -> nn.Module:
    return Refusing(lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"))


class Data:
    """Twelve images a split; where told to, the process that reads the last is killed."""

    def __init__(self, split: str) -> None:
        generator = torch.Generator().manual_seed(len(split))
        self.x, self.split = torch.randn(12, 1, 8, 8, generator=generator), split
        self.targets = [index % 3 for index in range(12)]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 11 and self.split == "train" and os.environ.get("TRAP"):  # none that the head is proved on
            os.kill(os.getpid(), signal.SIGKILL)
        return self.x[index], self.targets[index]


def splits(split: str) -> Any:
    return Data(split) if split != "test" else None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, a checkpoint and this module, the shell standing there."""
    write_images(tmp_path / "data")
    torch.save(small().state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faulty", sys.modules[__name__])
    return tmp_path


# Files that vanish or change


def test_an_image_that_vanishes_is_named_or_skipped(place: Path) -> None:
    gone = place / "data" / "val" / "bee" / "3.png"
    for skip in (False, True):
        gone.write_bytes((gone.parent / "4.png").read_bytes()[:-1] + b"\0")
        source = open_source("model.pt", "data", arch="faulty:build", skip=skip)
        gone.unlink()
        if not skip:
            with pytest.raises(PosthocError, match=r"val/bee/3\.png, which cannot be read \(.*No such file"):
                extract_source(source, device="cpu")
            continue
        found = extract_source(source, device="cpu")
        assert found.val is not None
        assert len(found.val) == 14
        assert [name for name, _ in json.loads(found.provenance["skipped"])["val"].values()] == ["data/val/bee/3.png"]


def test_an_image_that_changes_makes_its_features_stale(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source("model.pt", "data", arch="faulty:build")
    shutil.copyfile(place / "data" / "val" / "ant" / "0.png", place / "data" / "val" / "bee" / "3.png")
    extract_to("feats.safetensors", source, device="cpu")
    assert "another checkpoint, transform or set of images" in refusal_of(EXTRACT.split(), capsys)[1]


EXTRACT = "extract --ckpt model.pt --arch faulty:build"


def other_weights() -> dict[str, Tensor]:
    return {name: value + 1 if value.is_floating_point() else value for name, value in small().state_dict().items()}


@pytest.mark.parametrize("change", ["replaced", "written over", "gone"])
def test_a_checkpoint_that_changes_while_it_is_read_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Else its hash would be that of another file than its tensors come from."""
    module = sys.modules["posthoc_lt.checkpoint.read"]
    hashed = module._sha256

    def meanwhile(files: Any) -> str:
        if change == "replaced":
            torch.save(other_weights(), "other.pt")
            os.replace("other.pt", "model.pt")
        elif change == "written over":
            torch.save(other_weights(), "model.pt")
        else:
            os.unlink("model.pt")
        found: str = hashed(files)
        return found

    monkeypatch.setattr(module, "_sha256", meanwhile)
    with pytest.raises(PosthocError, match=r"model\.pt, which changed while it was read"):
        read("model.pt")


def test_a_shard_that_changes_while_another_is_loaded_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"m-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, part in zip(names, ("fc.weight", "fc.bias"), strict=True):
        save_file({part: torch.ones(2, 2)}, name)
    index = {"weight_map": dict(zip(("fc.weight", "fc.bias"), names, strict=True))}
    Path("m.safetensors.index.json").write_text(json.dumps(index))
    module = sys.modules["posthoc_lt.checkpoint.read"]
    known = module.kind_of(Path("m.safetensors.index.json"), False)

    def load(path: Path) -> Any:
        loaded = known.load(path)
        save_file({"fc.weight": torch.zeros(2, 2)}, names[0])
        return loaded

    monkeypatch.setattr(module, "kind_of", lambda *_: known._replace(load=load))
    with pytest.raises(PosthocError, match=r"m-00001-of-00002\.safetensors, which changed while it was read"):
        read("m.safetensors.index.json")


# Several at once


# Workers, clocks, terminals


def test_a_worker_that_is_killed_is_told_and_the_rest_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{EXTRACT} --data faulty:splits -b 4 -j 2 --out".split()
    with monkeypatch.context() as patch:
        patch.setenv("TRAP", "killed")
        status, told = refusal_of([*command, "one"], capsys)
    assert status == 1
    assert "a worker process" in told
    assert "--workers" in told
    assert not (place / "one").exists()
    for name in ("one", "two"):
        out_of(" ".join([*command, name]), capsys)
    assert (place / "one").read_bytes() == (place / "two").read_bytes()


@pytest.mark.parametrize("seconds", [0, 1, 2**31 - 1, 4 * 10**9])
def test_the_clock_decides_nothing(place: Path, seconds: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of 1970, and of a century that has not come: what is cached is known by equality alone."""
    for path in [*(place / "data").rglob("*"), place / "model.pt"]:
        os.utime(path, (seconds, seconds))
    out_of(EXTRACT, capsys)
    os.utime("feats.safetensors", (seconds, seconds))
    made = Path("feats.safetensors").read_bytes()
    assert run(EXTRACT.split()) == 0
    assert "is up to date" in capsys.readouterr().err
    os.utime(place / "data" / "val" / "bee" / "3.png", (seconds + 1, seconds + 1))
    assert "--force" in refusal_of(EXTRACT.split(), capsys)[1]
    out_of("logit-adjust --tau 1 --out head.safetensors", capsys)
    os.utime("head.safetensors", (seconds, seconds))
    out_of("logit-adjust --tau 1 --out head.safetensors", capsys)  # the very same again
    assert Path("feats.safetensors").read_bytes() == made


@pytest.mark.parametrize(("streams", "status"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0), (">/dev/full", 1)])
def test_nobody_listens(place: Path, streams: str, status: int) -> None:
    """The shell has closed a stream, or its disk is full: what is written is written, and no traceback appears."""
    assert run([*EXTRACT.split(), "-q"]) == 0
    command = f"{sys.executable} -m posthoc_lt logit-adjust --out head.safetensors {streams}"
    done = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "fault of posthoc-lt" not in done.stderr
    assert load_head(Path("head.safetensors")).provenance["method"] == "logit-adjust"


# Memory


@pytest.mark.parametrize("network", ["refusing", "refusing_on_cpu"])
def test_extraction_backs_off_to_what_fits(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    """The whole command, on a network that has memory for eight images, the number that the head is proved on."""
    torch.save(refusing().state_dict(), "model.pt")
    command = f"extract --ckpt model.pt --arch faulty:{network} -j 0 --out"
    monkeypatch.setenv("MOST", "99")
    out_of(f"{command} enough --batch-size 16", capsys)
    monkeypatch.setenv("MOST", "8")
    out_of(f"{command} short --batch-size 16", capsys)
    enough, short = load_features(Path("enough")), load_features(Path("short"))
    for name, split in enough.splits().items():
        torch.testing.assert_close(short.splits()[name].x, split.x, rtol=2**-10, atol=1e-6)
        assert torch.equal(short.splits()[name].labels, split.labels)
    monkeypatch.setenv("MOST", "0")
    status, told = refusal_of(f"{command} none".split(), capsys)
    assert status == 1
    assert "too large for the device's memory" in told
    assert not (place / "none").exists()


def test_a_network_whose_code_fails_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AttributeError("no _hooks"), KeyError("x"), AssertionError(), ZeroDivisionError("0")):
        network = Small()
        monkeypatch.setattr(network, "forward", lambda x, error=error: (_ for _ in ()).throw(error))
        monkeypatch.setattr(sys.modules[__name__], "build", lambda network=network: network)
        with pytest.raises(PosthocError, match="on which the network fails"):
            extract("model.pt", "data", arch="faulty:build")
