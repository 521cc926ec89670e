from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdx_analysis.config import ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs
from kdx_analysis.imports.weights import import_weights
from kdx_analysis.models import build_model
from kdx_analysis.probes import conflict_of
from kdx_analysis.report import Report
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.training.checkpoints import load_weights
from tests import toys

PROBES = {"per_class": 2, "null_draws": 19, "permutations": 19}


@pytest.fixture
def given(finished, tmp_path):
    """Imports weights of a finished study as if they had been trained elsewhere."""

    def call(role="student", data=None, **options) -> tuple[Run, Run]:
        run = finished.runs.filter(role=role, seed=0, objective=["kd", ""]).runs[0]
        keys = {
            "role": role,
            "objective": "kd",
            "seed": 0,
            "decomposition": run.info["decomposition"],
        }
        keys |= options.pop("keys", {})
        model = options.pop("model", run.info["config"]["model"])
        weights = options.pop("weights", run.path / "model.safetensors")
        data = data or toys.dataset()
        options = {"keys": keys, "probes": ProbeConfig(**PROBES), **options}
        return run, import_weights(weights, model, data, tmp_path / "out", **options)

    return call


def test_a_student_is_scored_as_it_was_and_probed_without_gates(given, finished, tmp_path):
    teacher = finished.runs.filter(role="teacher").runs[0]
    original, run = given(teacher=teacher.path)
    assert run.kinds == ("conflict", "conflict_summary", "metrics", "output_conflict")
    at_end = original.record("metrics").query("epoch == 2")
    for split in ("val", "test"):
        was, found = (
            table[table["split"] == split].set_index("metric")["value"]
            for table in (at_end, run.record("metrics"))
        )
        assert found.to_dict() == pytest.approx(was.to_dict())
    assert set(found.index) == {"accuracy", "hard_loss", "agreement"}
    probed = run.record("conflict").query("split == 'val'")
    data = toys.dataset()
    chosen = data.probe_set("val", 2, 0)
    images = data.normalise(chosen.images.take(torch.arange(len(chosen))))
    model = build_model("digits_student", 3, 1)
    load_weights(original.path / "model.safetensors", model)
    expected = conflict_of(
        model.eval(), images, chosen.labels, margins=lambda m: m, null_draws=19, permutations=19
    )
    np.testing.assert_allclose(probed["cosine"], expected.pairs["cosine"], rtol=1e-5)
    loaded = RunSet.load(tmp_path / "out")
    assert loaded.values("conflict_rate", role="student").shape == (1, 1)
    assert loaded.values("agreement", role="student").loc[0, "kd"] == found["agreement"]


def test_what_no_state_dict_tells_is_stated_as_unknown(given):
    _, run = given()
    assert run.info["source"]["unknown"] == [
        "images trained on",
        "training",
        "epoch of the figures",
        "selection",
    ]
    assert run.info["selection"] == {"rule": "unknown", "split": None, "epoch": 0}
    assert run.info["data"] == toys.dataset().describe()
    assert {split: len(ids) for split, ids in run.info["probe_sets"].items()} == {
        "train": 6,
        "val": 6,
    }
    assert (run.record("metrics")["epoch"] == 0).all()
    assert "agreement" not in set(run.record("metrics")["metric"])


def test_a_pickled_state_dict_and_a_teacher_by_name_and_weights(given, finished, tmp_path):
    teacher = finished.runs.filter(role="teacher").runs[0]
    torch.save({"state_dict": load_file(teacher.path / "model.safetensors")}, tmp_path / "t.pth")
    _, run = given(teacher=f"digits_teacher@{tmp_path / 't.pth'}")
    assert "agreement" in set(run.record("metrics")["metric"])
    _, taught = given("teacher", weights=tmp_path / "t.pth")
    assert (taught.role, taught.objective, taught.info["source"]["name"]) == (
        "teacher",
        "",
        "t.pth",
    )


def test_a_module_of_one_s_own_is_left_as_it_was(tmp_path):
    model = toys.RowTeacher(scale=1.0)
    torch.save(toys.RowTeacher(scale=9.0).state_dict(), tmp_path / "w.pt")
    data = toys.dataset()
    import_weights(
        tmp_path / "w.pt", model, data, tmp_path / "in", keys={"objective": "x", "seed": 0}
    )
    with pytest.raises(
        KdxError, match=r"the classes of the model of w\.pt stand in another order than the data's"
    ):
        import_weights(
            tmp_path / "w.pt",
            model,
            reordered(),
            tmp_path / "out",
            keys={"objective": "x", "seed": 0},
        )
    assert model.scale.item() == 1.0
    assert model.training
    assert not (tmp_path / "out").exists()


def reordered() -> Dataset:
    """Data whose first two classes have changed places."""
    data = toys.dataset(classes=("bee", "ant", "cat"))
    splits = {split.name: split for split in (data.train, data.val, data.test)}
    other = torch.tensor([1, 0, 2])
    return replace(data, **{name: replace(s, labels=other[s.labels]) for name, s in splits.items()})


REFUSED = {
    "another model": ({"model": "resnet20"}, r"weights in .*model.safetensors' don't fit"),
    "no seed": ({"keys": {"seed": None}}, r"model.safetensors does not say its seed"),
    "gates": ({"keys": {"role": "explainer"}}, r"weights can be a student's or a teacher's"),
    "a decomposition that is none": (
        {"keys": {"decomposition": "ternary"}},
        r"it must be multiclass or binary",
    ),
    "a teacher of probabilities": (
        {"teacher": nn.Sequential(toys.RowTeacher(), nn.Sigmoid())},
        r"the teacher gives probabilities, not logits",
    ),
    "a model of probabilities": (
        {
            "model": nn.Sequential(build_model("digits_student", 3, 1), nn.Softmax(dim=1)),
            "weights": "wrapped.pt",
        },
        r"the model of wrapped.pt gives probabilities, not logits",
    ),
    "no file": ({"weights": "none.pt"}, "cannot load weights from 'none.pt'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_and_nothing_written(given, tmp_path, monkeypatch, case):
    options, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    if case == "a model of probabilities":
        torch.save(options["model"].state_dict(), "wrapped.pt")
    with pytest.raises(KdxError, match=message):
        given(**options)
    assert not (tmp_path / "out").exists()


def test_pickles_that_run_code_are_refused(given, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(KdxError, match="cannot load weights"):
        given(weights=tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_the_report_on_imported_runs_says_what_is_unknown(given, tmp_path):
    _, student = given()
    (tmp_path / "r.csv").write_text(
        "objective,seed,epoch,train_loss,val_acc,test_acc\n<b>crd</b>,0,1,2,.5,.5\n"
    )
    others = import_runs(tmp_path / "r.csv", "csv", tmp_path / "out")
    page = (
        Report(RunSet.of([student, *others]))
        .save_html(tmp_path / "report")
        .read_text(encoding="utf-8")
    )
    assert "No attribution is possible: none of the 2 runs is an explainer" in page
    assert "csv r.csv (unknown: decomposition, model, data set" in page
    assert "state_dict model.safetensors (unknown: images trained on" in page
    assert "24, an unknown number of" in page or "24 and an unknown number of" in page
    assert "<b>crd" not in page
    assert "test data never used to select" not in page
    assert isinstance(pd.read_csv(tmp_path / "report" / "figures" / "training.csv"), pd.DataFrame)


def test_a_student_s_teacher_becomes_a_run_that_a_second_student_shares(given, finished, tmp_path):
    teacher = finished.runs.filter(role="teacher").runs[0]
    _, student = given(teacher=teacher.path)
    _, second = given(teacher=teacher.path, keys={"seed": 1})
    loaded = RunSet.load(tmp_path / "out")
    assert [run.role for run in loaded] == ["teacher", "student", "student"]
    (own,) = loaded.filter(role="teacher")
    assert own.info["study"] == student.info["study"]
    assert own.seed == student.info["teacher"] == second.info["teacher"] == 0
    assert student.info["config"]["teacher"] == own.info["source"]["sha256"]
    given_outputs, kept = own.outputs("test"), teacher.outputs("test")
    assert given_outputs.scores.equal(kept.scores)
    assert given_outputs.fingerprint == student.outputs("test").fingerprint == kept.fingerprint
    assert given_outputs.kind == "logits"
    assert student.outputs("test").kind == "margins"


def test_teachers_of_other_weights_are_told_apart_by_number(given, finished, tmp_path):
    _, sibling = given("teacher", keys={"seed": 0})
    _, student = given(teacher=toys.RowTeacher())
    _, other = given(teacher=toys.RowTeacher(2.0))
    assert [run.info.get("teacher") for run in (sibling, student, other)] == [None, 1, 2]
    assert len(RunSet.load(tmp_path / "out")) == 5
    another = finished.runs.filter(role="student", objective="hard", seed=1).runs[0]
    with pytest.raises(KdxError, match=r"both student 'kd' with seed 0"):
        given(teacher=toys.RowTeacher(2.0), weights=another.path / "model.safetensors")


def test_outputs_of_an_imported_run_are_those_of_its_figures(given):
    _, run = given()
    for split in ("val", "test"):
        kept = run.outputs(split)
        right = (kept.scores.argmax(dim=1) == kept.labels).double().mean().item()
        metrics = run.record("metrics").query("split == @split and metric == 'accuracy'")
        assert metrics["value"].item() == right
