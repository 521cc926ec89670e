"""Objectives of a user's own, as a file that a study loads as an extension."""

import torch

from kdx_analysis.objectives import Batch, Distiller, Options, distiller, target


@target(
    "mine_top2",
    title="control: the two highest targets",
    adds=("ranking",),
    follows="kd_shuffled",
    rung=True,
)
def mine_top2(cut, labels, generator):
    return torch.where(cut >= cut.topk(2, dim=1).values[:, -1:], cut, 0)


class MineOptions(Options):
    weight: float = 0.5


@distiller("mine_margins", title="the teacher's outputs, centred, by subtask")
class MineMargins(Distiller):
    """Differences of centred outputs, kept by subtask, after a phase that finds the mean."""

    takes = MineOptions
    subtask_terms = ("hard", "margins")

    def prepare(self, student, teacher, data, fabric, tell):
        self.mean = teacher(data.normalise(data.val.images.take(torch.arange(8)))).mean(dim=0)
        tell(1, 1)

    def on_outputs(self, batch: Batch):
        terms = super().on_outputs(batch)
        assert batch.teacher_outputs is not None
        mean = getattr(self, "mean", batch.teacher_outputs.mean(dim=0))
        away = batch.outputs - (batch.teacher_outputs - mean)
        return terms | {"margins": self.options.weight * away.square()}
