"""What tests share: one thread, so that small solves do not fight over cores, and the embedded case."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from by_path import EXAMPLES, load
from hypothesis import HealthCheck, settings
from torch import nn

from posthoc_lt import FeatureSet, extract, load_features, save_features
from posthoc_lt.cli.demo import unpack

# A loaded machine is no failure: no test here is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded case unpacked and extracted: model.pt, data/, feats.safetensors.

    Tests read it; a test that writes works in a folder of its own.
    """
    folder = tmp_path_factory.mktemp("case")
    unpack(folder)
    save_features(extract(folder / "model.pt", folder / "data"), folder / "feats.safetensors")
    return folder


@pytest.fixture(scope="session")
def features(case: Path) -> FeatureSet:
    """The embedded case's features."""
    return load_features(case / "feats.safetensors")


@pytest.fixture(scope="session")
def original_model() -> Callable[[], nn.Module]:
    """The researcher's own model code, which knows nothing of this package."""
    module = load("fashion_lt/resnet.py")

    def build() -> nn.Module:
        model = module.resnet20(in_channels=1, num_classes=10)
        assert isinstance(model, nn.Module)
        return model.eval()

    return build


@pytest.fixture(scope="module")
def beside() -> Iterator[None]:
    """The folder of the examples on the path, as when one of them runs."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="session")
def hostile() -> ModuleType:
    """The benchmark of that name, imported as when it runs, with its folder on the path but only for that moment."""
    folder = str(EXAMPLES / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("hostile")
    finally:
        sys.path.remove(folder)


@pytest.fixture
def there(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the case in it, and the shell standing there."""
    for name in ("model.pt", "feats.safetensors"):
        shutil.copyfile(case / name, tmp_path / name)
    (tmp_path / "data").symlink_to(case / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
