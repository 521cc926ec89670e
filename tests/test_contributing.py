"""CONTRIBUTING.md, followed to the letter: what it adds is listed, and works."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdx_analysis.data import load_dataset
from kdx_analysis.data.sources import DATASETS
from kdx_analysis.metrics import METRICS, evaluated
from kdx_analysis.models import HME, build_model
from kdx_analysis.models.zoo import MODELS
from kdx_analysis.plots import FIGURES
from kdx_analysis.registry import Registry
from tests.plots.conftest import CLASSES, write_all

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
LINES = 10
REGISTRIES: dict[str, Registry[Any]] = {
    "metric": METRICS,
    "model": MODELS,
    "data set": DATASETS,
    "figure": FIGURES,
}


def recipes() -> dict[str, str]:
    """Thing → the code that adds one, from the sections of 'How to add …' that have code."""
    sections = re.findall(r"^### An? (.+?)\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    blocks = {
        thing: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for thing, text in sections
    }
    return {thing: "\n".join(code) for thing, code in blocks.items() if code}


@pytest.fixture
def added(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name under which a recipe has filed its thing, which is forgotten afterwards."""
    registry = REGISTRIES[request.param]
    before = set(registry)
    exec(recipes()[request.param], {"__name__": "mine"})
    names = set(registry) - before
    yield " ".join(names)
    for name in names:
        registry.forget(name)


def follows(thing: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("added", [thing], indirect=True)


def test_every_recipe_is_followed():
    assert set(recipes()) == set(REGISTRIES)


@pytest.mark.parametrize("thing", REGISTRIES)
def test_a_recipe_is_short(thing):
    lines = set()
    for statement in ast.parse(recipes()[thing]).body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            first = min(
                [statement, *getattr(statement, "decorator_list", [])], key=lambda x: x.lineno
            )
            lines |= set(range(first.lineno, statement.end_lineno + 1))
    assert 0 < len(lines) <= LINES


@follows("metric")
def test_a_metric_is_evaluated_beside_the_others(added):
    cosines = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.25], [0.25, 1.0]]])
    assert evaluated("cosines", cosines)[added].value.tolist() == [-0.5, 0.25]
    assert METRICS[added].home == "mine.opposed_most"


@follows("model")
def test_a_model_is_built_by_its_name_and_made_into_an_explainer(added):
    model = build_model(added, num_classes=3, in_channels=1)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert HME.from_student(model, 3, experts=2)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@follows("data set")
def test_a_data_set_is_loaded_by_its_name(added, tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / f"{added}.npz", images=images, labels=np.arange(60) % 2)
    data = load_dataset(added, data_dir=tmp_path)
    assert (data.classes, len(data.test)) == (("rose", "tulip"), 12)
    assert len(data.train) + len(data.val) == 48


@follows("figure")
def test_a_figure_is_written_with_its_data(added, tmp_path):
    runs = write_all(tmp_path / "runs", ["hard", "kd"], [0, 1], CLASSES, ["binary"])
    picture, data = FIGURES[added].write(runs, tmp_path)
    assert (picture.name, data.name) == (f"{added}.svg", f"{added}.csv")
    assert len(data.read_text().splitlines()) > 4


def test_nothing_that_a_recipe_added_is_left():
    assert not {"opposed_most", "three_stages", "garden", "severities"} & {
        name for registry in REGISTRIES.values() for name in registry
    }
