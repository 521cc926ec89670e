"""What a user's own files register goes through a study, two jobs at a time, into the report."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kdx_analysis.config import StudyConfig
from kdx_analysis.errors import KdxError
from kdx_analysis.extensions import Extension, extension_of, load, load_same, loaded, need
from kdx_analysis.metrics import METRICS
from kdx_analysis.runs import RunSet
from kdx_analysis.study.study import Study
from tests import toys

README = Path(__file__).parents[1] / "README.md"
STUDY = """\
name: own
data: {name: garden, val_fraction: 0.2}
teacher: {model: three_stages, training: {epochs: 2, batch_size: 16}}
student: three_stages
explainer: {experts: 2}
objectives: [hard, kd_shuffled, kd_top2, kd, mean_feature]
training: {epochs: 2, batch_size: 16}
probes: {per_class: 3, checkpoints: 2, null_draws: 19, permutations: 19, affinity: off}
seeds: [0, 1]
extensions: [mine.py, figures/mine_drawn.py]
"""


def blocks() -> list[str]:
    """The Python of README's section on files of one's own, block by block."""
    section = README.read_text().partition("\n## Add your own\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.S)


def kdx(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from kdx_analysis.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=600
    )


@dataclass(frozen=True)
class Own:
    """A study made with a user's own files."""

    folder: Path
    printed: str
    runs: RunSet
    page: str


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    folder = tmp_path_factory.mktemp("own")
    trains = [block for block in blocks() if "import figure" not in block]
    draws = [block for block in blocks() if "import figure" in block]
    (folder / "mine.py").write_text("\n\n".join(trains))
    (folder / "figures").mkdir()
    (folder / "figures" / "mine_drawn.py").write_text("\n\n".join(draws))
    split = toys.split("whole", per_class=20)
    images = split.images.take(torch.arange(len(split))).numpy()
    (folder / "data").mkdir()
    np.savez(folder / "data" / "garden.npz", images=images, labels=split.labels.numpy())
    (folder / "own.yaml").write_text(STUDY)
    ran = kdx("run", "own.yaml", "--out", "out", "--jobs", 2, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    page = (folder / "out" / "report" / "report.html").read_text()
    return Own(folder, ran.stdout, RunSet.load(folder / "out"), page)


def test_every_example_is_short():
    assert len(blocks()) == 6
    assert all(len(block.strip().splitlines()) < 30 for block in blocks())
    assert all(
        len([line for line in block.splitlines() if line.strip()]) <= 25 for block in blocks()
    )


def test_own_objectives_and_probe_are_in_the_runs(own: Own) -> None:
    assert {"kd_top2", "mean_feature"} <= set(own.runs.objectives)
    explainers = own.runs.filter(role="explainer")
    assert len(explainers) == 10
    for run in own.runs:
        assert ("sureness" in run.kinds) == (run.role != "teacher")
        assert "affinity" not in run.kinds
    assert set(own.runs.frame("sureness")["split"]) == {"train", "val"}
    assert own.runs.frame("sureness").groupby("run")["epoch"].nunique().eq(2).all()


def test_an_adapter_trains_and_is_no_part_of_the_students_weights(own: Own) -> None:
    hard, feature = (
        own.runs.filter(role="student", objective=name, seed=0).runs[0]
        for name in ("hard", "mean_feature")
    )
    losses = [run.record("metrics").query("metric == 'loss'")["value"] for run in (hard, feature)]
    assert (losses[0].to_numpy() != losses[1].to_numpy()).all()
    sizes = [(run.path / "model.safetensors").stat().st_size for run in (hard, feature)]
    assert sizes[0] == sizes[1]


def test_what_is_added_appears_in_the_report(own: Own) -> None:
    assert "kd − kd_top2" in own.page
    assert "most opposed pair" in own.page
    assert "second choice" in own.page
    assert "How sure is a model of the right class?" in own.page
    assert "mean_feature" in own.page
    assert pd.read_csv(own.folder / "out" / "report" / "figures" / "sureness.csv")["value"].size > 0
    ladder = pd.read_csv(own.folder / "out" / "report" / "figures" / "ladder.csv")
    assert {"kd_top2", "kd_shuffled", "kd"} <= set(ladder["rung"].dropna())
    assert "opposed_most" in set(ladder["metric"])


def test_runs_say_what_they_were_made_with(own: Own) -> None:
    for run in own.runs:
        assert {each["file"] for each in run.info["extensions"]} == {"mine.py", "mine_drawn.py"}
        assert set(run.info["config"]["extensions"]) == {"mine.py"}


def test_a_figure_can_change_without_training_anew_and_an_objective_cannot(own: Own) -> None:
    drawn = own.folder / "figures" / "mine_drawn.py"
    drawn.write_text(drawn.read_text() + "\n# drawn otherwise\n")
    again = kdx("run", "own.yaml", "--out", "out", cwd=own.folder)
    assert again.returncode == 0, again.stderr
    assert "21 done already" in again.stdout
    mine = own.folder / "mine.py"
    before = mine.read_text()
    mine.write_text(before + "\n# trained otherwise\n")
    plan = kdx("run", "own.yaml", "--out", "out", "--set", "training.epochs=0", cwd=own.folder)
    mine.write_text(before)
    assert plan.returncode == 2  # refused before any training


def test_commands_take_the_files_by_name(own: Own) -> None:
    listed = kdx("list", "objectives", "--load", "mine.py", cwd=own.folder)
    assert "kd_top2: control: the teacher's two highest targets alone" in listed.stdout
    figure = kdx("figure", "sureness", "out", "--load", "figures/mine_drawn.py", cwd=own.folder)
    assert figure.returncode == 0, figure.stderr
    assert (own.folder / "figures" / "sureness.svg").is_file()


def test_a_folder_of_results_names_no_code_to_run(own: Own) -> None:
    run = own.runs.filter(role="student", objective="hard", seed=0).runs[0]
    refused = kdx("probe", run.path, "--split", "val", cwd=own.folder)
    assert refused.returncode == 2
    assert "is not loaded by itself" in refused.stderr
    report = kdx("report", "out", "--out", "plain/report.html", cwd=own.folder)
    assert report.returncode == 0, report.stderr  # without the user's own figure and metric
    assert "How sure is a model" not in (own.folder / "plain" / "report.html").read_text()


def test_a_file_is_run_once_and_anew_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "counted.py"
    source = (
        "from kdx_analysis.metrics import metric\n"
        "@metric('counted', reads='cosines', title={title!r})\n"
        "def counted(cosines):\n    return cosines.sum(dim=(-2, -1))\n"
    )
    file.write_text(source.format(title="one"))
    first = load(file)
    try:
        assert load(file) is first
        assert METRICS["counted"].title == "one"
        assert extension_of(METRICS["counted"]) == first
        file.write_text(source.format(title="two"))
        assert load(file).sha256 != first.sha256
        assert METRICS["counted"].title == "two"
    finally:
        METRICS.forget("counted")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def", r"line 1: SyntaxError"),
        ("\n1 / 0", r"line 2: ZeroDivisionError"),
        ("from kdx_analysis.metrics import metric\nmetric('x', reads='nothing', title='')(len)",
         r"reads 'nothing'; a metric reads one of"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(content)
    with pytest.raises(KdxError, match=message):
        load(file)
    with pytest.raises(KdxError, match="no Python file"):
        load(tmp_path / "missing.py")


def test_paths_of_a_yaml_are_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "name: x\ndata: {name: digits}\nteacher: {model: digits_teacher}\nstudent: digits_student\n"
        "objectives: [hard]\nextensions: [sub/never_loaded.py]\n"
    )
    config = StudyConfig.load(tmp_path / "study.yaml")
    assert config.extensions == (str(tmp_path / "sub" / "never_loaded.py"),)
    with pytest.raises(KdxError, match=r"never_loaded\.py, which is not loaded by itself"):
        need(config.extensions)


def test_an_edit_while_a_study_trains_is_not_run_in_the_middle_of_it(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    file.write_text("ran = 1\n")
    first = load(file)
    file.write_text("1 / 0\n")
    assert loaded([file]) == (first,)
    load_same([first])  # nor in a worker that has it
    other = tmp_path / "other.py"
    other.write_text("ran = 2\n")
    with pytest.raises(KdxError, match="was edited while the study was running"):
        load_same([Extension(other, first.sha256, "unused")])


def test_files_of_one_name_can_not_be_told_apart_by_a_run(tmp_path: Path) -> None:
    study = {"name": "x", "data": {"name": "digits"}, "teacher": {"model": "digits_teacher"}}
    study |= {"student": "digits_student", "objectives": ["hard"]}
    with pytest.raises(KdxError, match=r"extension mine\.py is given more than once"):
        StudyConfig.parse({**study, "extensions": ["a/mine.py", "b/mine.py"]})


def test_the_yaml_of_a_folder_of_results_names_no_code_to_run(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(
        "import pathlib\npathlib.Path(__file__ + '.ran').touch()\n"
    )
    (tmp_path / "study.yaml").write_text(
        "name: x\ndata: {name: digits}\nteacher: {model: digits_teacher}\nstudent: digits_student\n"
        "objectives: [hard]\nextensions: [hostile.py]\n"
    )
    run = tmp_path / "runs" / "student-hard-seed0-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(KdxError, match=r"hostile\.py, which is not loaded by itself"):
        Study.load(tmp_path / "study.yaml")
    assert not (tmp_path / "hostile.py.ran").exists()
    load(tmp_path / "hostile.py")  # as the user names it
    assert Study.load(tmp_path / "study.yaml").config.name == "x"
