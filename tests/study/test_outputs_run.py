import pytest
import torch

from kdx_analysis.runs import Run
from kdx_analysis.runs.outputs import OUTPUTS
from tests.conftest import toy_study

ONE_EPOCH = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0}


def test_runs_that_keep_no_outputs_get_them_from_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
    study = toy_study(seeds=1, training=ONE_EPOCH, teacher_training=ONE_EPOCH)
    runs = study.run(tmp_path)
    weights = {run.id: (run.path / "model.safetensors").read_bytes() for run in runs}
    kept = {run.id: {split: run.outputs(split) for split in ("val", "test")} for run in runs}
    for run in runs:
        (run.path / OUTPUTS).unlink()
    assert {run.role for run in runs} >= {"teacher", "student", "explainer"}
    for run in study.run(tmp_path):
        assert weights[run.id] == (run.path / "model.safetensors").read_bytes()
        for split, before in kept[run.id].items():
            after = Run.load(run.path).outputs(split)
            # A folded or evaluated model may take its sums in another order.
            torch.testing.assert_close(after.scores, before.scores, rtol=1e-5, atol=1e-5)
            assert torch.equal(after.ids, before.ids)
            assert (after.fingerprint, after.kind) == (before.fingerprint, before.kind)


@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_fidelity_is_there_again(tmp_path, monkeypatch, missing):
    monkeypatch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
    study = toy_study(
        seeds=1, training=ONE_EPOCH, teacher_training=ONE_EPOCH, roles=["student"], siblings=1
    )
    runs = study.run(tmp_path)
    before = runs.fidelity().pairs
    for run in runs.filter(role=missing):
        (run.path / OUTPUTS).unlink()
    after = study.run(tmp_path).fidelity().pairs
    assert (after["value"] - before["value"]).abs().max() < 1e-4
