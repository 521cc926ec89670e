from pathlib import Path

from kdx_analysis.runs import Run
from kdx_analysis.runs.spent import spent


def run(role: str, **seconds: float) -> Run:
    return Run(Path(role), {"role": role, "seconds": seconds} if seconds else {"role": role})


def test_seconds_are_summed_over_the_runs_of_a_role():
    runs = [
        run("explainer", training=5.0, probes=40.0),
        run("student", training=2.0, probes=0.5),
        run("student", training=3.0, probes=0.25),
        run("student"),  # an older one
    ]
    table = spent(runs)
    assert table.to_dict("index") == {
        "student": {"runs": 2, "training": 5.0, "probes": 0.75},
        "explainer": {"runs": 1, "training": 5.0, "probes": 40.0},
    }
    assert list(table.index) == ["student", "explainer"]


def test_older_runs_tell_nothing():
    assert spent([run("teacher")]).empty
    assert spent([]).empty
