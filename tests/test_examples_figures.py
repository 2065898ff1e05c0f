from __future__ import annotations

import re
from pathlib import Path

import pytest
from by_path import EXAMPLES, load
from PIL import Image

import posthoc_lt
from posthoc_lt import FeatureSet

pytestmark = pytest.mark.usefixtures("beside")


def test_the_figures_of_the_readme_are_drawn_by_the_script(features: FeatureSet, tmp_path: Path) -> None:
    module = load("figures.py")
    made = module.draw(posthoc_lt.rebalance(features, methods="logit-adjust"), tmp_path)
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert re.findall(r'src="examples/figures/([a-z]+\.png)"', readme) == [path.name for path in made]
    for path in made:
        with Image.open(path) as drawn, Image.open(EXAMPLES / "figures" / path.name) as kept:
            assert drawn.size == kept.size
