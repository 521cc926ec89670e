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

from kdx_analysis.bench import BENCHES, Setting, run_bench
from kdx_analysis.config import ObjectiveConfig, ProbeConfig, TrainingConfig
from kdx_analysis.data import load_dataset
from kdx_analysis.data.sources import DATASETS
from kdx_analysis.metrics import METRICS, evaluated
from kdx_analysis.models import HME, build_model
from kdx_analysis.models.zoo import MODELS
from kdx_analysis.objectives import OBJECTIVES, Objective, rungs
from kdx_analysis.plots import FIGURES
from kdx_analysis.probes import PROBES, TrainingProbe
from kdx_analysis.records import RECORDS
from kdx_analysis.registry import Registry
from kdx_analysis.training import Epoch, fit
from kdx_analysis.training.loggers import LOGGERS, check_loggers, logged
from tests import toys
from tests.plots.conftest import CLASSES, write_all

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
LINES = 10
REGISTRIES: dict[str, Registry[Any]] = {
    "metric": METRICS,
    "model": MODELS,
    "data set": DATASETS,
    "probe": PROBES,
    "objective": OBJECTIVES,
    "distiller": OBJECTIVES,
    "figure": FIGURES,
    "logger": LOGGERS,
    "bench": BENCHES,
}
EVERY = (*REGISTRIES.values(), RECORDS)


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
    before = [set(registry) for registry in EVERY]
    exec(recipes()[request.param], {"__name__": "mine"})
    (name,) = set(REGISTRIES[request.param]) - before[list(REGISTRIES).index(request.param)]
    yield name
    for registry, names in zip(EVERY, before, strict=True):
        for added in set(registry) - names:
            registry.forget(added)


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
    code = recipes()[thing].splitlines()
    lines = {number for number in lines if code[number - 1].strip()}
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


@follows("probe")
def test_a_probe_gives_records_that_are_checked(added):
    torch.manual_seed(0)
    student = build_model("digits_student", 3, 1)
    settings = {"per_class": 2, "checkpoints": 1, "null_draws": 19, "permutations": 19}
    hard = ObjectiveConfig(name="hard")
    probe = TrainingProbe("student", student, toys.dataset(), hard, ProbeConfig(**settings), 1)
    probe(Epoch(1, 1, 0.0, 0.0, None, None), student)
    assert [key.name for key in RECORDS[added].keys] == ["epoch", "split"]
    assert probe.tables()[added]["split"].tolist() == ["train", "val"]


@follows("objective")
def test_an_objective_is_a_rung_behind_the_one_that_it_follows(added):
    assert [row.name for row in rungs()][-3:] == ["kd_shuffled", added, "kd"]
    margins, teacher = torch.zeros(2, 4), torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    objective = Objective(ObjectiveConfig(name=added))
    terms = objective.terms(margins, torch.tensor([0, 3]), teacher, torch.Generator())
    assert (terms["distillation"] >= 0).all()
    assert OBJECTIVES[added].summary.endswith("; second choice")


@follows("distiller")
def test_a_distiller_sees_features_while_it_trains(added, monkeypatch):
    torch.manual_seed(0)
    student, teacher = (build_model(f"digits_{who}", 3, 1) for who in ("student", "teacher"))
    terms: list[torch.Tensor] = []
    made = OBJECTIVES[added].make
    on_features = made.on_features

    def kept(self, batch):
        given = on_features(self, batch)
        terms.append(given["strength"])
        return given

    monkeypatch.setattr(made, "on_features", kept)
    config = TrainingConfig(epochs=1, batch_size=8)
    objective = ObjectiveConfig(name=added)
    fit(student, toys.dataset(), objective, config, seed=0, teacher=teacher.eval())
    assert terms
    for term in terms:
        assert term.ndim == 1
        assert term.min() >= 0
        assert term.requires_grad


@follows("logger")
def test_a_logger_is_told_of_a_training(added, tmp_path, capsys):
    check_loggers([added])
    with logged([added], tmp_path, "study", "run", {"seed": 0}) as log:
        log({"val/accuracy": 0.5}, 3)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "study run {'seed': 0}",
        "study run 3 {'val/accuracy': 0.5}",
        "study run success",
    ]


@follows("figure")
def test_a_figure_is_written_with_its_data(added, tmp_path):
    runs = write_all(tmp_path / "runs", ["hard", "kd"], [0, 1], CLASSES, ["binary"])
    picture, data = FIGURES[added].write(runs, tmp_path)
    assert (picture.name, data.name) == (f"{added}.svg", f"{added}.csv")
    assert len(data.read_text().splitlines()) > 4


@follows("bench")
def test_a_bench_is_run_beside_what_it_is_held_against(added):
    setting = Setting(torch.device("cpu"))
    (rows,) = run_bench(BENCHES[added], setting, rounds=1, memory=False)
    assert [row.contestant for row in rows] == ["loop", "the same again", "cdist"]
    assert rows[2].target == 2
    assert rows[2].ratio > 0


def test_nothing_that_a_recipe_added_is_left():
    names = {name for registry in EVERY for name in registry}
    assert not names & {"opposed_most", "three_stages", "garden", "sureness", "kd_top2"}
    assert not names & {"strength", "lines", "severities", "distances"}
