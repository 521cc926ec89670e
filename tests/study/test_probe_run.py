import numpy as np
import pandas as pd
import pytest
import torch

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_parquet
from kdx_analysis.probes import conflict_of
from kdx_analysis.runs import Run
from kdx_analysis.study import probe_run as probing
from tests import toys
from tests.conftest import toy_study

FAITH = {"faithfulness", "faithfulness_agreement"}
EVERY = {"conflict", "conflict_summary", "output_conflict", "affinity"}


def teacher(finished) -> Run:
    return finished.runs.filter(role="teacher").runs[0]


@pytest.fixture(scope="module")
def probed(finished) -> tuple[Run, probing.Probed]:
    run = finished.runs.filter(role="explainer", objective="kd", seed=0).runs[0]
    return run, probing.probe_run(run, finished.study, teacher(finished).path)


def test_a_finished_explainer_is_what_it_was_at_the_end_of_its_training(probed) -> None:
    run, tables = probed[0], probed[1].tables
    for kind, keys in (
        ("gates", ["level", "child_index", "parent"]),
        ("gate_summary", ["of", "level", "attention", "metric"]),
        ("conflict", ["split", "term", "level", "a", "b"]),
        ("contention", ["split", "term", "metric"]),
    ):
        recorded = (
            run.record(kind).query("epoch == 2").drop(columns="epoch").set_index(keys).sort_index()
        )
        anew = (
            tables[kind]
            if "split" in keys
            else tables[kind].query("split == 'train'").drop(columns="split")
        )
        anew = anew.set_index(keys).sort_index()[recorded.columns]
        pd.testing.assert_frame_equal(anew, recorded, rtol=1e-3, atol=1e-4)


def test_train_and_validation_stand_side_by_side(probed) -> None:
    tables = probed[1].tables
    assert all(set(table["split"]) == {"train", "val"} for table in tables.values())
    assert set(tables) > EVERY | FAITH
    shown = probing.side_by_side(tables)
    assert {"train", "val"} < set(shown.columns)
    assert {"modulation", "drop"} < set(shown["metric"])
    assert not shown.isna().any(axis=None)


def test_affinity_of_the_final_weights_stands_beside_its_mean_over_training(probed) -> None:
    run, found = probed
    mean = found.tables["affinity_through_training"].query(
        "metric == 'affinity' and split == 'val'"
    )
    recorded = (
        run.record("affinity")
        .query("metric == 'affinity' and split == 'val'")
        .groupby(["a", "b"])["value"]
    )
    expected = recorded.mean()[list(zip(mean["a"], mean["b"], strict=True))]
    np.testing.assert_allclose(mean["value"], expected)
    assert set(mean["epochs"]) == {run.record("affinity")["epoch"].nunique()}
    last = run.record("affinity").query("metric == 'affinity' and epoch == 2 and split == 'val'")
    alone = found.tables["affinity"].query("metric == 'affinity' and split == 'val'")
    np.testing.assert_allclose(alone["value"], last["value"], rtol=1e-3, atol=1e-5)
    shown = probing.side_by_side(found.tables).set_index(["of", "metric"])
    assert "[null's mean" in shown.loc[("affinity_through_training", "median_affinity"), "val"]


def test_where_there_is_no_range_it_is_said(probed) -> None:
    """The toy study draws 19 of conflict's null; affinity of the final weights 39."""
    shown = probing.side_by_side(probed[1].tables).set_index("of")[["train", "val"]].stack()
    assert not shown.str.contains("nan").any()
    conflict = shown["conflict_summary"][shown["conflict_summary"] != "undefined"]
    assert len(conflict)
    assert conflict.str.endswith(" [no range below 39 draws]").all()
    assert shown["affinity"].str.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]").all()


def test_records_and_figures_are_written(probed, tmp_path) -> None:
    run, found = probed
    figures = probing.write_probe(found, tmp_path, run.classes)
    by_split = {
        f"{name}_{split}" for name in ("explanation", "faithfulness") for split in ("train", "val")
    }
    assert {path.stem for path in figures} == {
        "conflict",
        "affinity",
        "output_conflict",
        "measures",
        "gates",
        *by_split,
    }
    assert all(path.stat().st_size > 1000 for path in figures)
    for kind, table in found.tables.items():
        pd.testing.assert_frame_equal(read_parquet(tmp_path / f"{kind}.parquet"), table)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_models_without_gates_are_probed_on_the_same_images(finished, role) -> None:
    run = finished.runs.filter(role=role).runs[0]
    tables = probing.probe_run(run, finished.study, teacher(finished).path, ("val",)).tables
    assert set(tables) == EVERY
    model, _ = probing.model_of(run, finished.study)
    data = toys.dataset()
    chosen = data.probe_set("val", 2, 0)
    images = data.normalise(chosen.images.take(torch.arange(len(chosen))))
    margins = None if role == "teacher" else (lambda outputs: outputs)
    expected = conflict_of(
        model, images, chosen.labels, margins=margins, null_draws=19, permutations=19
    )
    np.testing.assert_allclose(tables["conflict"]["cosine"], expected.pairs["cosine"], rtol=1e-5)
    assert "backward passes" in probing.announce(run, finished.study, ("val",))


def test_a_tree_has_the_weights_and_parents_of_its_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
    study = toy_study(objectives=("hard",), seeds=1, explainer={"experts": 3, "phase2": {}})
    runs = study.run(tmp_path)
    (run,) = runs.filter(role="tree").runs
    model, _ = probing.model_of(run, study)
    assert list(model.experts) == run.info["experts"]
    data = toys.dataset()
    images = data.normalise(data.test.images.take(torch.arange(len(data.test))))
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == data.test.labels).double().mean().item()
    assert (
        right
        == run.record("metrics").query("split == 'test' and metric == 'accuracy'")["value"].item()
    )
    tables = probing.probe_run(run, study, runs.filter(role="teacher").runs[0].path).tables
    assert set(tables) == EVERY | FAITH | {
        "contention",
        "contention_by_expert",
        "routing",
        "agreement",
        "affinity_through_training",
    }
    assert {"routing", "agreement", "affinity", "conflict"} <= set(run.kinds)
    recorded = run.record("routing").drop(columns="epoch")
    anew = tables["routing"].query("split == 'train'")[recorded.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(anew, recorded)


def test_a_run_outside_its_study_is_refused(finished, tmp_path) -> None:
    run = finished.runs.runs[0]
    with pytest.raises(KdxError, match=r"no study.yaml above"):
        probing.study_of(Run(tmp_path / "alone", run.info))
