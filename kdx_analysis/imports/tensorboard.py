"""Scalars and hyperparameters of TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kdx_analysis.errors import KdxError
from kdx_analysis.imports.names import Names, SourceRun

_HPARAMS = "_hparams_/session_start_info"


def read_tensorboard(path: Path, names: Names) -> list[SourceRun]:
    """The runs of an event directory, a run each folder with event files.

    Folders count at ``path`` and below it. Hyperparameters that were logged beside the scalars are
    settings. Needs the package tensorboard.
    """
    folders = sorted({file.parent for file in path.rglob("events.out.tfevents.*")})
    if not folders:
        raise KdxError(f"no event file (events.out.tfevents.*) at or below {str(path)!r}")
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError:
        raise KdxError(
            "reading event files needs the package tensorboard: pip install "
            "'kdx_analysis[tensorboard]'"
        ) from None
    runs = []
    for folder in folders:
        everything = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
        events = event_accumulator.EventAccumulator(str(folder), size_guidance=everything)
        events.Reload()
        metrics = pd.DataFrame(_points(events), columns=["name", "step", "value"])
        name = folder.relative_to(path).as_posix()
        runs.append(
            SourceRun(
                path.name if name == "." else name,
                _settings(events),
                metrics.assign(n=float("nan")),
            )
        )
    return runs


def _points(events: Any) -> list[tuple[str, int, float]]:
    """Tag, step and value of all scalars, of both forms in which they are written."""
    from tensorboard.util import tensor_util

    tags = events.Tags()
    points = [
        (tag, event.step, event.value) for tag in tags["scalars"] for event in events.Scalars(tag)
    ]
    for tag in tags["tensors"]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            points += [
                (tag, event.step, float(tensor_util.make_ndarray(event.tensor_proto).item()))
                for event in events.Tensors(tag)
            ]
    return points


def _settings(events: Any) -> dict[str, Any]:
    from tensorboard.plugins.hparams import plugin_data_pb2

    try:
        content = events.SummaryMetadata(_HPARAMS).plugin_data.content
    except KeyError:
        return {}
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {
        name: _plain(getattr(value, value.WhichOneof("kind")))
        for name, value in start.hparams.items()
    }


def _plain(value: Any) -> Any:
    """Event files know no whole numbers; a float from 2⁵³ on may stand for several, and stays."""
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        else value
    )
