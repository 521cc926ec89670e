import sys

import pytest

from kdx_analysis.errors import KdxError
from kdx_analysis.imports import import_runs

writers = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")
pytest.importorskip("tensorboard")


def write(folder, points, *, new_style=False, hparams=None) -> None:
    """Points are (tag, step, value)."""
    with writers.SummaryWriter(str(folder)) as writer:
        for tag, step, value in points:
            writer.add_scalar(tag, value, step, new_style=new_style)
        if hparams:
            writer.add_hparams(hparams, {}, run_name=".")


POINTS = [
    ("Loss/train", 1, 2.5),
    ("Loss/train", 2, 1.5),
    ("val_acc", 1, 0.5),
    ("val_acc", 2, 0.75),
    ("lr", 1, 0.1),
]


@pytest.mark.parametrize("new_style", [False, True])
def test_scalars_of_both_forms(tmp_path, new_style):
    write(tmp_path / "kd_0", POINTS, new_style=new_style)
    (run,) = import_runs(
        tmp_path / "kd_0", "tensorboard", tmp_path / "out", keys={"objective": "kd", "seed": "0"}
    )
    assert run.record("metrics")[["epoch", "split", "metric", "value"]].to_numpy().tolist() == [
        [1, "train", "loss", 2.5],
        [1, "val", "accuracy", 0.5],
        [2, "train", "loss", 1.5],
        [2, "val", "accuracy", 0.75],
    ]
    assert run.info["source"]["left_out"] == ["lr"]
    assert run.info["selection"] == {"rule": "unknown", "split": None, "epoch": 2}


def test_hyperparameters_are_keys_and_settings(tmp_path):
    for seed in (0, 1):
        hparams = {"method": "crd", "seed": seed, "lr": 0.5, "nesterov": True}
        write(tmp_path / "runs" / f"s{seed}", POINTS, hparams=hparams)
    runs = import_runs(
        tmp_path / "runs", "tensorboard", tmp_path / "out", columns={"objective": "method"}
    )
    assert [(run.objective, run.seed) for run in runs] == [("crd", 0), ("crd", 1)]
    assert runs.runs[0].info["config"]["settings"] == {"lr": 0.5, "nesterov": True}
    assert [run.info["source"]["run"] for run in runs] == ["s0", "s1"]


def test_folders_that_nothing_tells_apart_are_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "runs" / name, POINTS)
    with pytest.raises(
        KdxError, match="run 'b' of the source and run 'a' of the source are both student 'kd'"
    ):
        import_runs(
            tmp_path / "runs", "tensorboard", tmp_path / "out", keys={"objective": "kd", "seed": 0}
        )


def test_every_point_at_one_step_is_refused(tmp_path):
    write(tmp_path / "runs", [("train/loss", 0, 2.5), ("train/loss", 0, 1.5)])
    with pytest.raises(KdxError, match="has 2 values of 'train/loss' in epoch 0"):
        import_runs(
            tmp_path / "runs", "tensorboard", tmp_path / "out", keys={"objective": "kd", "seed": 0}
        )


def test_no_metric_of_a_split(tmp_path):
    write(tmp_path / "runs", [("loss", 1, 2.5)])
    with pytest.raises(
        KdxError, match=r"no name among the metrics of runs, runs says its split \(loss\): map one"
    ):
        import_runs(
            tmp_path / "runs", "tensorboard", tmp_path / "out", keys={"objective": "kd", "seed": 0}
        )


def test_no_event_files_and_no_package(tmp_path, monkeypatch):
    with pytest.raises(KdxError, match="no event file"):
        import_runs(tmp_path, "tensorboard", tmp_path / "out")
    (tmp_path / "events.out.tfevents.1").touch()
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    with pytest.raises(KdxError, match=r"pip install 'kdx_analysis\[tensorboard\]'"):
        import_runs(tmp_path, "tensorboard", tmp_path / "out")
