from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kdx_analysis.runs import RunSet
from kdx_analysis.study.study import Study
from tests import toys

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_process_draws() -> Iterator[None]:
    """Draw a report's figures here unless a test asks for workers, which take seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.pictures.usual_jobs", lambda: 1)
        yield


@dataclass(frozen=True)
class Finished:
    """A study of two objectives and two seeds that has run, without its report."""

    study: Study
    out: Path
    runs: RunSet


def toy_study(**changes) -> Study:
    options = {
        "data": toys.dataset(),
        "teacher": "digits_teacher",
        "student": "digits_student",
        "objectives": ("hard", "kd"),
        "seeds": 2,
        **toys.SECTIONS,
    }
    return Study(**(options | changes))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    out = tmp_path_factory.mktemp("finished")
    study = toy_study()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdx_analysis.report.Report.save_html", lambda self, out: out)
        runs = study.run(out)
    return Finished(study, out, runs)
