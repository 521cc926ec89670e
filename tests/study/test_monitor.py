import io

import pytest
from rich.console import Console

from kdx_analysis.errors import KdxError
from kdx_analysis.io import read_json, write_json
from kdx_analysis.study import monitor
from kdx_analysis.training import Epoch
from kdx_analysis.training.progress import ProgressFile, write_plan

HERE = {"host": "here", "pid": 1, "created": 0.0}
GONE = {"host": "here", "pid": 2, "created": 0.0}


def alive(process) -> bool:
    return process == HERE


@pytest.fixture
def study(tmp_path):
    """Done: the teacher (10 s an epoch). Running: a student at 1 of 4 epochs, 20 s each. Waiting:
    two. Stopped: one.
    """
    runs = [
        ("teacher/t", "teacher"),
        ("runs/a", "student kd seed 0"),
        ("runs/b", "student kd seed 1"),
        ("runs/c", "explainer [kd] seed 0"),
        ("runs/d", "explainer kd seed 1"),
    ]
    write_plan(tmp_path, [(tmp_path / path, title) for path, title in runs])
    (tmp_path / "teacher" / "t").mkdir(parents=True)
    state = {"started": 100.0, "epochs": 4}
    write_json(
        tmp_path / "progress/t.json",
        state | {"epoch": 4, "updated": 140.0, "loss": 0.5, "process": GONE},
    )
    write_json(
        tmp_path / "progress/a.json",
        state
        | {
            "epoch": 1,
            "updated": 120.0,
            "loss": 1.25,
            "val_accuracy": 0.5,
            "temperature": None,
            "gate_entropy": None,
            "process": HERE,
        },
    )
    write_json(
        tmp_path / "progress/c.json",
        state
        | {
            "epoch": 2,
            "updated": 130.0,
            "loss": 1.0,
            "val_accuracy": 0.25,
            "temperature": 2.5,
            "gate_entropy": 0.75,
            "process": GONE,
        },
    )
    return tmp_path


def test_every_state_and_the_time_left_by_hand(study):
    seen = monitor.watched(study, now=150.0, alive=alive)
    assert seen.runs["state"].tolist() == ["done", "running", "waiting", "stopped", "waiting"]
    student = seen.runs.iloc[1]
    assert (student["epoch"], student["epochs"], student["loss"], student["val_accuracy"]) == (
        1,
        4,
        1.25,
        0.5,
    )
    assert (student["left_s"], student["seen_s"]) == (60.0, 30.0)
    assert seen.runs["left_s"].isna().sum() == 4
    # the student 60 s, another student 4·20 s, two explainers 4·15 s each; one run at a time
    assert seen.left == pytest.approx(60 + 80 + 2 * 60)
    assert not seen.finished
    assert seen.heading.endswith(
        "1 of 5 runs done, 1 running, 1 stopped, 2 waiting, about 4 min left"
    )


def test_two_at_work_take_half_as_long(study):
    write_json(study / "progress/d.json", read_json(study / "progress/c.json") | {"process": HERE})
    assert monitor.watched(study, now=150.0, alive=alive).left == pytest.approx(
        (60 + 80 + 60 + 30) / 2
    )


def test_a_study_that_stands_still_says_how_to_go_on(study):
    seen = monitor.watched(study, now=150.0, alive=lambda process: False)
    assert seen.left is None
    assert "2 stopped" in seen.heading
    assert seen.heading.endswith("the same kdx run goes on with it")


def test_before_the_first_epoch_nothing_is_estimated(tmp_path):
    write_plan(tmp_path, [(tmp_path / "runs" / "a", "student kd seed 0")])
    assert monitor.watched(tmp_path).runs["state"].tolist() == ["waiting"]
    ProgressFile(tmp_path / "progress" / "a.json", 5)
    seen = monitor.watched(tmp_path)
    assert (seen.runs["state"].tolist(), seen.runs["epoch"].tolist(), seen.left) == (
        ["running"],
        [0],
        None,
    )


def test_the_file_of_a_training_follows_its_epochs(tmp_path):
    file = ProgressFile(tmp_path / "progress" / "a.json", 5)
    file(Epoch(3, 5, 1.5, 0.25, 0.5, float("nan")), None)
    told = read_json(tmp_path / "progress" / "a.json")
    assert (
        told["epoch"],
        told["epochs"],
        told["loss"],
        told["val_accuracy"],
        told["temperature"],
    ) == (
        3,
        5,
        1.5,
        0.25,
        0.5,
    )
    assert told["gate_entropy"] is None
    assert told["updated"] >= told["started"]
    assert [path.name for path in (tmp_path / "progress").iterdir()] == ["a.json"]


def test_a_training_goes_on_where_its_file_can_not_be_written(tmp_path):
    (tmp_path / "progress").write_text("a file in the place of the folder")
    ProgressFile(tmp_path / "progress" / "a.json", 5)(Epoch(1, 5, 1.5, 0.25, None, None), None)


def test_a_process_is_known_by_more_than_its_number(tmp_path):
    own = ProgressFile(tmp_path / "a.json", 5).state["process"]
    assert monitor._is_alive(own)
    assert not monitor._is_alive(own | {"created": own["created"] - 100})
    assert monitor._is_alive(own | {"host": "elsewhere", "pid": -1})


def test_a_finished_study_of_its_own_accord(finished):
    seen = monitor.watched(finished.out)
    assert seen.finished
    assert len(seen.runs) == len(finished.runs)
    assert (seen.runs["epoch"] == 2).all()
    gates = seen.runs["run"].str.startswith("explainer")
    assert (seen.runs["gate_entropy"].notna() == gates).all()
    assert seen.left is None


def test_the_terminal_follows_until_all_runs_are_done(study):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        for run in ("runs/a", "runs/b", "runs/c", "runs/d"):
            (study / run).mkdir(parents=True)

    monitor.watch(study, console, wait)
    shown = console.file.getvalue()
    assert waits == [1]
    assert "explainer [kd] seed 0" in shown
    assert "5 of 5 runs done" in shown


def test_interrupting_the_watch_is_no_error(study):
    console = Console(file=io.StringIO(), width=100)

    def wait(seconds):
        raise KeyboardInterrupt

    monitor.watch(study, console, wait)


def test_a_directory_without_a_study(tmp_path):
    with pytest.raises(
        KdxError, match="holds no study that was started; give the directory of kdx run"
    ):
        monitor.watched(tmp_path)
