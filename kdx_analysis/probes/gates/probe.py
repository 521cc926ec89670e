"""The probe of an explainer's gates: what they are after every epoch, and what they began as."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis import null
from kdx_analysis.config import ProbeConfig
from kdx_analysis.models import HME, Trace
from kdx_analysis.models.gates import ParameterGate, spread
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.models.redraw import draw_anew
from kdx_analysis.probes.contract import Frames, Moment, Probe, Setting, probe_of
from kdx_analysis.probes.gates.formulas import (
    Summary,
    averaged,
    check_features,
    class_means,
    effective,
    mean_pathways,
    random_logits,
    summarise,
    summarise_samples,
)
from kdx_analysis.probes.gates.record import child_columns
from kdx_analysis.records import (
    DRAWS,
    EPOCH,
    UNDEFINED,
    count,
    kind,
    number,
    text,
    with_undefined,
)

# At most so many, since each draw of gates that read the input costs a summary of every sample
# after every epoch.
RANDOM_INPUT_GATES = 39

# Shuffles that make the bias of specialisation: of a run's own gates, and of each random draw,
# whose mean over draws needs no more.
_SHUFFLES, _SHUFFLES_OF_A_DRAW = 19, 1

ATTENTION = text("attention", "alpha, or effective: what a gate lets through")
_LEVEL = count("level", "that the gates lead into; the trunk is 1, L + 1 are the heads", low=1)
_SPLIT = text("split", "that the images are of; train where there is no column", optional=True)
_CHILD = (
    text("child", "expert or subtask that the gate is of"),
    count("child_index", "of the child on its level"),
    count("parent", "expert on the level below"),
)
_ALPHA = number("alpha", "attention α", low=0, high=1)
_EFFECTIVE = number(
    "effective", "A; NaN where no parent's features vary over the images", low=0, high=1
)
_TAU = number("tau", "temperature τ of the gates", low=0)

kind(
    "gates",
    "One gate and parent: what the child draws from the parent, a mean over images where gates "
    "read the input.",
    keys=(EPOCH, _SPLIT, _LEVEL, *_CHILD),
    values=(_ALPHA, _EFFECTIVE, UNDEFINED, _TAU),
    home=__name__,
)
kind(
    "pathways",
    "One subtask and expert: gates composed from the heads down to the expert's level.",
    keys=(
        EPOCH,
        _SPLIT,
        count("level", "of the expert", low=1),
        text("subtask", "name of the class"),
        count("subtask_index", "of the class"),
        count("expert", "on its level"),
    ),
    values=(_ALPHA, _EFFECTIVE, UNDEFINED),
    home=__name__,
)
kind(
    "gate_summary",
    "One metric of a level's gates or pathways, beside the same of initial and of random gates.",
    keys=(
        EPOCH,
        _SPLIT,
        text("of", "gates: the rows into a level; pathways: those to it"),
        _LEVEL,
        ATTENTION,
        text("metric", "name of the metric"),
    ),
    values=(
        number("value", "of the metric"),
        number("initial", "of the run's initial gates at the same τ"),
        UNDEFINED,
        DRAWS,
        count("n", "what the metric averages"),
        _TAU,
    ),
    null=True,
    home=__name__,
)
_TRUE_CLASS = (
    text("true_class", "of the images"),
    count("true_class_index", "of the images' class"),
)
kind(
    "gates_by_class",
    "One gate that reads the input: its mean over the images of a true class.",
    keys=(EPOCH, _SPLIT, _LEVEL, *_TRUE_CLASS, *_CHILD),
    values=(_ALPHA, _EFFECTIVE, UNDEFINED),
    home=__name__,
)
kind(
    "gates_by_sample",
    "One gate that reads the input, on one image.",
    keys=(EPOCH, _SPLIT, _LEVEL, count("id", "of the image"), *_TRUE_CLASS, *_CHILD),
    values=(_ALPHA, _EFFECTIVE, UNDEFINED),
    home=__name__,
)


@dataclass(frozen=True, eq=False)
class Initial:
    """An explainer before training, on the first probe set.

    It is what untrained gates are to be seen beside. A of initial or random logits takes these
    spreads, not those of trained experts, in which trained logits would be missing: where experts
    are rescaled at equal outputs and equal A, the null so stays as it is.

    Attributes:
        gates: its own.
        spreads: s of every level's experts, each N_l.
        read: features of every level averaged over positions, which is what gates that read the
            input read.
    """

    gates: nn.ModuleList
    spreads: list[Tensor]
    read: list[Tensor]

    @classmethod
    def of(cls, model: HME, images: Tensor) -> Initial:
        """Of the ``model`` as it is now, on normalised ``images``, B×C×H×W."""
        with undisturbed(model), torch.no_grad():
            features = model.trace(images).features
        return cls(
            gates=copy.deepcopy(model.gates),
            spreads=spreads(features),
            read=[
                level.mean(dim=2 if level.ndim == 4 else (3, 4), keepdim=True) for level in features
            ],
        )


@probe_of(
    "gates",
    title="gates and pathways",
    roles=("explainer",),
    each_epoch=True,
    all_splits=False,
    kinds=("gates", "gate_summary", "pathways", "gates_by_class", "gates_by_sample"),
)
class GateProbe(Probe):
    """Where does every subtask draw its features from, and how sharply?

    Initial and random gates, at the same τ, stand beside every metric; A of their logits is that of
    the initial model's spreads. Of gates that read the input, ``gates`` and ``pathways`` are means
    over the images, ``gates_by_class`` follow at the probed epochs and ``gates_by_sample`` at the
    last of them. A tree's gates are hard, so there is nothing to record.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        model, config = setting.model, setting.config
        assert isinstance(model, HME)
        self.classes = setting.data.classes
        self.random_gates = _untrained(model, config) if model.input_gated else []
        logits = [gate.logits for gate in model.gates if isinstance(gate, ParameterGate)]
        # Drawn once, so that every epoch stands beside the same random gates.
        generator = torch.Generator().manual_seed(config.seed)
        self.random = random_logits(logits, config.null_draws, generator)
        self.initial = Initial.of(model, setting.first.images)

    @classmethod
    def applies(cls, model: nn.Module) -> bool:
        """Whether it is an explainer whose gates are not hard."""
        return isinstance(model, HME) and not model.hard

    def __call__(self, moment: Moment) -> Frames:
        """Gates, pathways and their metrics."""
        model = moment.model
        assert isinstance(model, HME)
        with undisturbed(model), torch.no_grad():
            present = both_attentions(moment.trace)
            tables = {
                "gates": self._gates(model, present),
                "pathways": self._pathways(present),
                "gate_summary": self._summaries(model, present, moment.labels.cpu()),
            }
        if model.input_gated and moment.probed:
            tables["gates_by_class"] = self._by_class(model, present, moment)
            if moment.last:
                tables["gates_by_sample"] = self._by_sample(model, present, moment)
        return tables

    def _gates(self, model: HME, present: Mapping[str, list[Tensor]]) -> pd.DataFrame:
        frames = []
        for level, (alpha, passed) in enumerate(
            zip(*map(averaged, present.values()), strict=True), 2
        ):
            heads = level == len(model.experts) + 1
            columns = {
                "level": level,
                **child_columns(self.classes, *alpha.shape, heads=heads),
                "alpha": alpha.flatten().numpy(),
                "effective": passed.flatten().numpy(),
                "tau": model.temperature,
            }
            frames.append(pd.DataFrame(columns))
        return _counted(frames)

    def _pathways(self, present: Mapping[str, list[Tensor]]) -> pd.DataFrame:
        frames = []
        for level, (alpha, passed) in enumerate(
            zip(*map(mean_pathways, present.values()), strict=True), 1
        ):
            K, N = alpha.shape
            columns = {
                "level": level,
                "subtask": np.repeat(self.classes, N),
                "subtask_index": np.repeat(np.arange(K), N),
                "expert": np.tile(np.arange(N), K),
                "alpha": alpha.flatten().numpy(),
                "effective": passed.flatten().numpy(),
            }
            frames.append(pd.DataFrame(columns))
        return _counted(frames)

    def _summaries(
        self, model: HME, present: Mapping[str, list[Tensor]], labels: Tensor
    ) -> pd.DataFrame:
        initial = _both(model.gated_by(self.initial.gates, self.initial.read), self.initial.spreads)
        drawn = [_both(attention, self.initial.spreads) for attention in self._random(model)]
        draws = len(drawn) if model.input_gated else self.setting.config.null_draws
        summaries = (self._each_shuffled if model.input_gated else _at_once)(
            present, initial, drawn, labels
        )
        keys: list[dict[str, Any]] = []
        for attention, summary in summaries.items():
            for (of_what, level, metric), (_, n) in summary.items():
                names = {"of": of_what, "level": level, "attention": attention, "metric": metric}
                keys.append({**names, "n": n})
        values = [value for summary in summaries.values() for value, _ in summary.values()]
        # Without a level to choose on there are no rows, and nothing to stack.
        table = torch.stack(values, dim=1) if values else torch.empty(2, 0)
        columns = {
            **pd.DataFrame(keys, columns=["of", "level", "attention", "metric", "n"]),
            "value": table[0].double().numpy(),
            "initial": table[1].double().numpy(),
            **null.beside(table[2:]),
            "null_draws": draws,
            "tau": model.temperature,
        }
        order = ["of", "level", "attention", "metric", "value", "initial", *null.COLUMNS]
        ordered = pd.DataFrame(columns)[[*order, "null_draws", "n", "tau"]]
        return with_undefined(ordered, ["value", "initial"])

    def _each_shuffled(
        self,
        present: Mapping[str, list[Tensor]],
        initial: Mapping[str, list[Tensor]],
        drawn: Sequence[Mapping[str, list[Tensor]]],
        labels: Tensor,
    ) -> dict[str, Summary]:
        """:func:`_at_once` for gates that read the input, each summary with shuffles of its own."""
        summaries = {}
        for attention, levels in present.items():
            value = self._shuffled(levels, labels)
            others = [self._shuffled(initial[attention], labels)]
            others += [
                self._shuffled(draw[attention], labels, _SHUFFLES_OF_A_DRAW) for draw in drawn
            ]
            summary: Summary = {}
            for key, (first, n) in value.items():
                summary[key] = torch.stack([first, *(other[key][0] for other in others)]), n
            summaries[attention] = summary
        return summaries

    def _random(self, model: HME) -> list[list[Tensor]]:
        """Attention of untrained gates: one list with all draws in front.

        Of gates that read the input it is one list a draw.
        """
        if model.input_gated:
            return [model.gated_by(drawn, self.initial.read) for drawn in self.random_gates]
        drawn = model.attention(self.random)
        # Gates into level 2 have one parent, so that all draws of them are alike.
        drawn[0] = drawn[0].expand(self.setting.config.null_draws, -1, -1)
        return [drawn]

    def _shuffled(
        self, attention: list[Tensor], labels: Tensor, shuffles: int = _SHUFFLES
    ) -> Summary:
        # Seeded anew, so that all epochs and draws are shuffled alike.
        generator = torch.Generator().manual_seed(self.setting.config.seed)
        return summarise_samples(attention, labels, generator, shuffles)

    def _by_class(
        self, model: HME, present: Mapping[str, list[Tensor]], moment: Moment
    ) -> pd.DataFrame:
        """Gates that read the input: their means over the samples of every true class."""
        labels = moment.labels.cpu()
        seen = labels.unique().numpy()
        true_class = {
            "true_class": np.array(self.classes, dtype=object)[seen],
            "true_class_index": seen,
        }
        frames = []
        for level, (alpha, passed) in _reading(present):
            means = class_means(alpha, labels), class_means(passed, labels)
            frames.append(self._apart(model, level, true_class, *means))
        return _counted(frames)

    def _by_sample(
        self, model: HME, present: Mapping[str, list[Tensor]], moment: Moment
    ) -> pd.DataFrame:
        """Gates that read the input, of every sample."""
        labels = moment.labels.cpu().numpy()
        sample = {
            "id": np.array(moment.ids),
            "true_class": np.array(self.classes, dtype=object)[labels],
            "true_class_index": labels,
        }
        return _counted(
            [self._apart(model, level, sample, *pair) for level, pair in _reading(present)]
        )

    def _apart(
        self,
        model: HME,
        level: int,
        keys: Mapping[str, np.ndarray],
        alpha: Tensor,
        passed: Tensor,
    ) -> pd.DataFrame:
        """Gates into a level, B×N×M, one after the other, with ``keys`` of B values each."""
        rows, parents = alpha.shape[1:]
        heads = level == len(model.experts) + 1
        child = child_columns(self.classes, rows, parents, heads=heads)
        return pd.DataFrame(
            {
                "level": level,
                **{name: np.repeat(values, rows * parents) for name, values in keys.items()},
                **{name: np.tile(values, len(alpha)) for name, values in child.items()},
                "alpha": alpha.flatten().numpy(),
                "effective": passed.flatten().numpy(),
            }
        )


def both_attentions(trace: Trace) -> dict[str, list[Tensor]]:
    """α and A of an explainer's gates, as ``alpha`` and ``effective``, on the images of a trace.

    They are in float64, as what is read from them are differences of entropies. Raises KdxError
    where features are not finite.
    """
    check_features(trace.features)
    return _both(trace.attention, spreads(trace.features))


def spreads(features: Sequence[Tensor]) -> list[Tensor]:
    """s of every level's experts, each N_l, in float64 from float32 features."""
    return [spread(level.float()).double().cpu() for level in features]


def _both(attention: Sequence[Tensor], spreads: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """α, and A of experts with these ``spreads``."""
    alpha = [rows.detach().double().cpu() for rows in attention]
    return {"alpha": alpha, "effective": effective(alpha, spreads)}


def _at_once(
    present: Mapping[str, list[Tensor]],
    initial: Mapping[str, list[Tensor]],
    drawn: Sequence[Mapping[str, list[Tensor]]],
    labels: Tensor,
) -> dict[str, Summary]:
    """Attention → metrics of present, initial and random gates, which is one axis of each value.

    All are summarised in one go, as the tables are small and it is the calls that take time after
    every epoch.
    """
    (random,) = drawn
    levels = []
    for level in range(len(present["alpha"])):
        of_level = []
        for attention, rows in present.items():
            of_level += [rows[level][None], initial[attention][level][None]]
            of_level.append(random[attention][level])
        levels.append(torch.cat(of_level))
    apart: dict[str, Summary] = {attention: {} for attention in present}
    for key, (values, n) in summarise(levels).items():
        for summary, part in zip(apart.values(), values.chunk(len(apart)), strict=True):
            summary[key] = part, n
    return apart


def _reading(present: Mapping[str, list[Tensor]]) -> list[tuple[int, tuple[Tensor, ...]]]:
    """Levels whose gates read the input, with α and A of every sample."""
    levels = enumerate(zip(*present.values(), strict=True), 2)
    return [(level, pair) for level, pair in levels if pair[0].ndim == 3]


def _counted(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return with_undefined(pd.concat(frames, ignore_index=True), ["alpha", "effective"])


def _untrained(model: HME, config: ProbeConfig) -> list[nn.ModuleList]:
    """Copies of the gates with weights drawn anew; torch's random state is left alone."""
    drawn = [copy.deepcopy(model.gates) for _ in range(min(config.null_draws, RANDOM_INPUT_GATES))]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for gates in drawn:
            draw_anew(gates)
    return drawn
