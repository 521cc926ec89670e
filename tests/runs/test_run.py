import pandas as pd
import pytest
import torch
from torch import nn

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_json, write_json
from kdx_analysis.runs import Run, environment, run_id, write_run
from kdx_analysis.runs.run import FORMAT, INFO, WEIGHTS
from kdx_analysis.training.checkpoints import fingerprint, load_weights

TABLE = pd.DataFrame(
    {"epoch": [1], "split": ["test"], "metric": ["accuracy"], "value": [0.5], "n": [8]}
)
TREE = pd.DataFrame({"child_level": [2], "child": [0], "parent": [0], "subtask": ["ant"]})
INFORMATION = {
    "id": "one",
    "study": "toy",
    "role": "student",
    "objective": "kd",
    "decomposition": "binary",
    "seed": 3,
    "data": {"classes": ["ant", "bee"]},
    "config": {},
}


def test_a_run_comes_back(tmp_path):
    model = nn.Linear(2, 3)
    run = write_run(tmp_path / "one", INFORMATION, {"metrics": TABLE, "tree": TREE}, model)
    assert (run.id, run.role, run.objective, run.seed, run.classes) == (
        "one",
        "student",
        "kd",
        3,
        ("ant", "bee"),
    )
    assert run.kinds == ("metrics", "tree")
    pd.testing.assert_frame_equal(run.record("metrics"), TABLE)
    assert run.keys == {
        "run": "one",
        "study": "toy",
        "role": "student",
        "objective": "kd",
        "decomposition": "binary",
        "vam": "",
        "seed": 3,
    }
    other = nn.Linear(2, 3)
    load_weights(run.path / WEIGHTS, other)
    assert fingerprint(other) == fingerprint(model)
    assert Run.load(str(run.path)).info == run.info == {"format": FORMAT, **INFORMATION}


def test_a_finished_run_is_never_written_over(tmp_path):
    write_run(tmp_path / "one", INFORMATION, {"metrics": TABLE})
    again = write_run(tmp_path / "one", INFORMATION | {"seed": 4}, {})
    assert (again.seed, again.kinds) == (3, ("metrics",))


def test_a_run_that_can_not_be_written_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="nan"):
        write_run(
            tmp_path / "one",
            INFORMATION | {"seed": float("nan")},
            {"metrics": TABLE},
            nn.Linear(1, 1),
        )
    assert list(tmp_path.iterdir()) == []


def test_what_holds_no_run(tmp_path):
    with pytest.raises(KdxError, match=f"holds no readable run.*{INFO}"):
        Run.load(tmp_path)
    write_json(tmp_path / INFO, {"format": FORMAT + 1})
    with pytest.raises(
        KdxError, match=f"is not of format {FORMAT}; it was written by another version"
    ):
        Run.load(tmp_path)
    (tmp_path / INFO).write_text("{")
    with pytest.raises(KdxError, match="holds no readable run"):
        Run.load(tmp_path)


def test_an_absent_record_is_answered_with_those_there_are(tmp_path):
    run = write_run(tmp_path / "one", INFORMATION, {"metrics": TABLE})
    with pytest.raises(KdxError, match="run 'one' has no 'gates' records; it has metrics"):
        run.record("gates")


def test_an_id_is_readable_and_safe_as_a_path():
    name = run_id("explainer", "kd λ=0.5/../x T=1.0", 2, {"a": 1})
    assert name.startswith("explainer-kd_=0.5_.._x_T=1.0-seed2-")
    assert "/" not in name
    assert run_id("teacher", "", 0, {}).startswith("teacher-seed0-")
    assert len({run_id("student", "kd", 0, {"a": value}) for value in (1, 2)}) == 2
    assert run_id("student", "kd", 0, {}, vam="../γ = 1").startswith("student-kd-=_1-seed0-")


def test_the_environment_is_json_and_names_versions_and_hardware(tmp_path):
    told = environment()
    write_json(tmp_path / "a.json", told)
    assert read_json(tmp_path / "a.json") == told
    assert told["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert told["hardware"]["cores"] >= 1


def test_the_wrong_column_is_named_on_write_and_on_load(tmp_path):
    wrong = TABLE.assign(value="high")
    with pytest.raises(KdxError, match="column 'value' of 'metrics' records holds 'high'"):
        write_run(tmp_path / "one", INFORMATION, {"metrics": wrong})
    assert not (tmp_path / "one").exists()
    with pytest.raises(KdxError, match="unknown kind of record 'metric'; did you mean 'metrics'"):
        write_run(tmp_path / "one", INFORMATION, {"metric": TABLE})
    run = write_run(tmp_path / "one", INFORMATION, {"metrics": TABLE})
    path = run.path / "records" / "metrics.parquet"
    TABLE.drop(columns="split").to_parquet(path)
    with pytest.raises(KdxError, match=r"run 'one': records of the kind 'metrics' lack .*'split'"):
        run.record("metrics")


def test_what_an_extension_wrote_loads_without_it(tmp_path):
    run = write_run(tmp_path / "one", INFORMATION, {"metrics": TABLE})
    TABLE.to_parquet(run.path / "records" / "sureness.parquet")
    pd.testing.assert_frame_equal(run.record("sureness"), TABLE)
