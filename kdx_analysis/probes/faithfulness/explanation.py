"""One class: its path through the experts, what each of them looks at, and how much it matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME
from kdx_analysis.models.modes import unwrapped
from kdx_analysis.probes.faithfulness.ablation import Baseline, Faithfulness, ablate
from kdx_analysis.probes.faithfulness.attribution import (
    Attribution,
    as_html,
    conductance,
    experts_of,
    integrated_gradients,
)
from kdx_analysis.probes.record import Record
from kdx_analysis.probes.subtasks import check_classes, integers, labelled, named, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Explanation(Record):
    """One class: images, what each expert of its path looks at, and how much that expert matters.

    Attributes:
        name: of the class.
        subtask: its number.
        path: the expert of levels 2…L that A makes its strongest, each level given the one above
            it.
        attributions: integrated gradients of its margin through each of them, a few images of the
            class.
        conductance: mean over those images, per level N_l.
        ablation: of all experts, on all images.
    """

    FILE = "explanation_record"

    name: str
    subtask: int
    path: tuple[int, ...]
    attributions: tuple[Attribution, ...]
    conductance: tuple[Tensor, ...]
    ablation: Faithfulness

    def to_frame(self) -> pd.DataFrame:
        """One row an expert: what it is to the class.

        Columns: subtask, level, expert, on_path, alpha, effective, drop, change, conductance, n.
        """
        frame = self.ablation.to_frame()
        frame = frame[frame["subtask_index"] == self.subtask].reset_index(drop=True)
        on_path = [
            self.path[level - 2] == i
            for level, i in zip(frame["level"], frame["expert"], strict=True)
        ]
        frame = frame.assign(on_path=on_path, conductance=torch.cat(self.conductance).numpy())
        keys, worth = ["subtask", "level", "expert", "on_path"], ["alpha", "effective"]
        return frame[[*keys, *worth, "drop", "change", "conductance", "n"]]

    def plot(self, ax: Axes | None = None) -> tuple[Figure, np.ndarray]:
        """Images, heat maps of the path's experts, and how much they matter, as (figure, axes).

        In ``ax`` the last expert of the path: its heat maps over the images.
        """
        from kdx_analysis.probes.faithfulness.drawing import attribution, explanation

        return explanation(self) if ax is None else attribution(self.attributions[-1], ax)

    def _repr_html_(self) -> str:
        return as_html(self.plot()[0])


@torch.inference_mode(False)
def explain(
    model: HME,
    images: Tensor,
    labels: Tensor,
    subtask: int,
    classes: Sequence[str] | None = None,
    *,
    shown: int = 4,
    image_baseline: float | Tensor = 0.0,
    baseline: Baseline = "zero",
) -> Explanation:
    """For one class: its path, what the path's experts look at, and how much each matters.

    Args:
        model, images, labels, classes, baseline: as for :func:`ablate`.
        subtask: number of the class.
        shown: how many of its images are attributed, the first ones.
        image_baseline: x₀ of :func:`kdx_analysis.probes.integrated_gradients`.

    Raises KdxError as :func:`ablate` does, and for a class without images.
    """
    model = unwrapped(model)[0]  # type: ignore[assignment]
    experts_of(model)
    images, labels = pictures(images), integers(labels)
    names = named(classes, model.num_classes)
    if not 0 <= subtask < len(names):
        raise KdxError(f"subtask = {subtask} should lie in 0 to {len(names) - 1}")
    if shown < 1:
        raise KdxError(f"shown = {shown} images; give 1 or more")
    check_classes(labelled(images, labels, len(names)).cpu(), names)
    ablation = ablate(model, images, labels, classes, baseline=baseline)
    chosen = images[labels.to(images.device) == subtask][:shown]
    path = ablation.tree.path(subtask)
    levels = range(2, len(model.experts) + 1)
    return Explanation(
        names[subtask],
        subtask,
        path[1:],
        tuple(
            integrated_gradients(
                model, chosen, subtask, through=(level, path[level - 1]), baseline=image_baseline
            )
            for level in levels
        ),
        tuple(
            conductance(model, chosen, subtask, level, baseline=image_baseline).values.mean(dim=0)
            for level in levels
        ),
        ablation,
    )
