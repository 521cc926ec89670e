"""Outputs of finished runs that keep none, as runs of before there were any."""

from __future__ import annotations

from kdx_analysis.io import staged_file
from kdx_analysis.runs import Run, RunSet
from kdx_analysis.runs.outputs import OUTPUTS, outputs_of, write_outputs
from kdx_analysis.study.finished import finished_model
from kdx_analysis.study.shift_run import Study
from kdx_analysis.training import fabric_for, predict, reproducible


def keep_outputs(study: Study, runs: RunSet) -> None:
    """Write what their models give on validation and test, from the weights that runs hold.

    Runs that keep their outputs already are left as they are. So an older study has its fidelity by
    the same command, and nothing is trained anew.

    Args:
        study: that made the runs.
        runs: all of it.
    """
    for run in runs:
        if run.outputs("test") is None:
            _keep(study, run)


def _keep(study: Study, run: Run) -> None:
    data, config = study.dataset, study.config.training_of(run.role)
    fabric = fabric_for(config)
    with reproducible(run.seed, config.threads):
        model = finished_model(run, study).to(fabric.device)
        there = data.to(fabric.device)
        with fabric.autocast():
            scores = {split.name: predict(model, split, there) for split in (there.val, there.test)}
    with staged_file(run.path / OUTPUTS) as partial:
        write_outputs(partial, outputs_of(scores, data, run.info["decomposition"]))
