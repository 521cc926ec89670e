"""Figures drawn in processes of their own: the same files, whatever goes wrong there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdx_analysis import plots
from kdx_analysis.plots import workers
from kdx_analysis.plots.workers import Drawers, Job
from kdx_analysis.runs import RunSet

SCRIPT = """
import pickle, sys
from kdx_analysis import plots
from kdx_analysis.plots.workers import Drawers, Job
print("begun")
with Drawers(2) as drawers:
    figure = plots.FIGURES["entropy"]
    drawers.submit(Job(figure, pickle.load(open(sys.argv[1], "rb"))))
    drawers._workers[0].thread.join(0 if len(sys.argv) > 2 else None)
    drawers.finish()
print(sorted(drawers.files["entropy"]), drawers.errors)
"""


@pytest.fixture
def job(small: RunSet) -> Job:
    return Job(plots.entropy, plots.entropy.data(small))


def test_a_worker_draws_what_this_process_draws(job: Job) -> None:
    with Drawers(2) as drawers:
        drawers.submit(job)
        while not drawers.files:
            with drawers._changed:
                drawers._changed.wait(timeout=0.05)
        drawers.finish()
    assert drawers.errors == {}
    assert drawers.files == {"entropy": job.drawn()}
    assert all(worker._process.poll() is not None for worker in drawers._workers)


def test_a_machine_without_processes_draws_here(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(workers.subprocess, "Popen", refuse)
    with Drawers(4) as drawers:
        drawers.submit(job)
        drawers.finish()
    assert sorted(drawers.files["entropy"]) == ["png", "svg"]


@pytest.mark.parametrize("program", ["/bin/false", "/bin/cat"])
def test_a_worker_that_dies_or_talks_nonsense_costs_nothing(
    job: Job, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([program], **options)  # type: ignore[call-overload, no-any-return]

    real = subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", other)
    with Drawers(2) as drawers:
        drawers.submit(job)
        drawers.finish()
    assert sorted(drawers.files["entropy"]) == ["png", "svg"]


def test_an_error_names_its_figure() -> None:
    with Drawers(1) as drawers:
        drawers.submit(Job(plots.entropy, pd.DataFrame({"nothing": [1]})))
        drawers.finish()
    assert drawers.files == {}
    assert "while drawing the figure 'entropy'" in drawers.errors["entropy"].__notes__


def test_a_script_without_a_main_guard_runs_once(job: Job, tmp_path: Path) -> None:
    job.data.to_pickle(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "data"), "at once"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "begun\n['png', 'svg'] {}\n"
