"""The probe of conflict: do the subtasks' gradients oppose each other, under each loss of a run?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.models import HME
from kdx_analysis.objectives import Objective
from kdx_analysis.probes.conflict.grams import (
    Grams,
    Kept,
    probing_cost,
    residuals,
    subtask_grams,
    with_null,
)
from kdx_analysis.probes.conflict.record import conflict_of
from kdx_analysis.probes.conflict.sample import drawn_subtasks, margins_of
from kdx_analysis.probes.conflict.tables import (
    conflict_tables,
    contention_table,
    expert_contention_table,
)
from kdx_analysis.probes.contract import Cost, Frames, Moment, Probe, Setting, probe_of
from kdx_analysis.probes.subtasks import PAIR
from kdx_analysis.records import (
    DRAWS,
    EPOCH,
    IMAGES,
    SPLIT,
    UNDEFINED,
    count,
    kind,
    number,
    text,
    with_undefined,
)

_TERM = text("term", "hard: the same plain loss of every objective; distillation, objective: own")
_LEVEL = text("level", "of the parameters, from the trunk, 1; all: over them together")
_METRIC = text("metric", "name of the metric")
_PAIRS = count("pairs", "pairs of subtasks that went into the value")

kind(
    "conflict",
    "One pair of subtasks: the angle between the gradients of their losses.",
    keys=(EPOCH, SPLIT, _TERM, _LEVEL, *PAIR),
    values=(
        number("cosine", "between the gradients; NaN where one is zero", low=-1, high=1),
        number(
            "magnitude_similarity", "1: gradients are equally long, 0: one is zero", low=0, high=1
        ),
        UNDEFINED,
        DRAWS,
        IMAGES,
    ),
    null=True,
    home=__name__,
)
kind(
    "conflict_summary",
    "One metric over all pairs of subtasks on a level.",
    keys=(EPOCH, SPLIT, _TERM, _LEVEL, _METRIC),
    values=(
        number("value", "of the metric; an estimate where subtasks were drawn"),
        _PAIRS,
        UNDEFINED,
        count("all_pairs", "of which the pairs are those of drawn subtasks", optional=True),
        number("standard_error", "of the estimate of a mean over all pairs", low=0, optional=True),
        number("low", "lower end of what holds that mean with 95 %", optional=True),
        number("high", "upper end of it; NaN where sampled pairs are all alike", optional=True),
        DRAWS,
        IMAGES,
    ),
    null=True,
    home=__name__,
)
kind(
    "contention",
    "One metric of contention on the last level, and of what other gates would make of it.",
    keys=(EPOCH, SPLIT, _TERM, _METRIC),
    values=(
        number("value", "of the metric"),
        number("p", "of modulation, gates permuted over subtasks; else NaN", low=0, high=1),
        _PAIRS,
        UNDEFINED,
        DRAWS,
        IMAGES,
    ),
    null=True,
    home=__name__,
)
kind(
    "contention_by_expert",
    "What one expert adds to the contention of its level, on levels of several experts.",
    keys=(EPOCH, SPLIT, _TERM, count("level", "of the expert", low=1), count("expert", "of it")),
    values=(
        number("value", "contention inside the expert", low=0, high=1),
        UNDEFINED,
        DRAWS,
        IMAGES,
    ),
    null=True,
    home=__name__,
)


def terms_of(objective: ObjectiveConfig) -> tuple[str, ...]:
    """The losses whose conflict is recorded: the plain hard one, and the run's own by subtask.

    Of the multiclass decomposition, whose terms are not subtasks', the plain hard one alone.
    """
    if objective.decomposition == "multiclass":
        return ("hard",)
    others = [term for term in Objective(objective).subtask_terms if term != "hard"]
    return ("hard", *others, "objective")


@probe_of(
    "conflict",
    title="conflict between subtasks",
    roles=("explainer", "tree"),
    afterwards=("teacher", "student"),
    kinds=("conflict", "conflict_summary", "contention", "contention_by_expert"),
)
class ConflictInTraining(Probe):
    """Do the gradients of two subtasks oppose each other, and do gates keep them apart?

    The null of conflict and contention permutes the rows of the residual ∂L/∂m over samples with
    the model fixed. Of the multiclass decomposition conflict is that of the one-vs-rest margins'
    hard loss, and there is no contention, which rests on heads that share nothing; neither is there
    for gates that read the input, since their gradients don't factorise into a gate and the rest.
    Of a finished model without gates conflict is that of its stages.

    Where the study asks for fewer ``pairs`` than there are, those of subtasks drawn at random stand
    for all. Contention is no mean over pairs, but a share that rests on all of them, so it is then
    left out, and separation and modulation with it.
    """

    @classmethod
    def cost(cls, setting: Setting, images: Tensor) -> Cost:
        """Of all residuals, those of the null among them; less where losses are the same."""
        gated = isinstance(setting.model, HME)
        terms = terms_of(setting.objective) if gated else ("hard",)
        subtasks = _subtasks(setting)
        return probing_cost(
            setting.model,
            images,
            len(subtasks),
            len(terms) * (1 + setting.config.null_draws),
            margins=margins_of(subtasks, setting.data.num_classes, setting.margins),
            max_memory=setting.config.max_memory,
        )

    def __call__(self, moment: Moment) -> Frames:
        """Tables of all terms, one below the other; those of the same gradients are made once."""
        config = self.setting.at(moment).config
        if not isinstance(moment.model, HME):
            return self._plain(moment)
        K, subtasks = self.setting.data.num_classes, _subtasks(self.setting)
        residuals = self._residuals(moment)
        same = _first_alike(residuals)
        terms = list(dict.fromkeys(same.values()))
        sets = [
            with_null(residuals[term][:, list(subtasks)], config.null_draws, config.seed)
            for term in terms
        ]
        moment.kept = self._kept(moment, sets[0], subtasks)
        grams = subtask_grams(
            moment.model,
            moment.images,
            torch.cat(sets),
            margins=margins_of(subtasks, K, self.setting.margins),
            max_memory=config.max_memory,
            num_classes=K,
            kept=moment.kept,
        )
        draws = 1 + config.null_draws
        tables = {
            term: self._tables(grams.subset(slice(i * draws, (i + 1) * draws)), subtasks)
            for i, term in enumerate(terms)
        }
        frames: dict[str, list[pd.DataFrame]] = {}
        for term, first in same.items():
            columns = {"term": term, "null_draws": config.null_draws, "n": len(moment.images)}
            for name, table in tables[first].items():
                frames.setdefault(name, []).append(pd.DataFrame({**columns, **dict(table)}))
        return {name: pd.concat(tables, ignore_index=True) for name, tables in frames.items()}

    def _kept(self, moment: Moment, hard: Tensor, subtasks: Sequence[int]) -> Kept | None:
        """Where to keep gradients of the hard loss that another probe wants; None if nowhere.

        That is where nobody does, and where they would take more than a tenth of the memory, so
        that what else is held stays near its bound.
        """
        config = self.setting.config
        weights = sum(p.numel() * p.element_size() for p in moment.model.parameters())
        taken = moment.gradient_sets * len(subtasks) * weights
        some = len(subtasks) < self.setting.data.num_classes
        if not 0 < moment.gradient_sets <= len(hard) or some or 10 * taken > config.max_memory:
            return None
        return Kept(hard[: moment.gradient_sets])

    def _tables(self, grams: Grams, subtasks: Sequence[int]) -> dict[str, pd.DataFrame]:
        """Of one term."""
        pairs, summary = conflict_tables(grams, self.setting.data.classes, subtasks)
        tables = {"conflict": pairs, "conflict_summary": summary}
        if len(subtasks) < self.setting.data.num_classes:
            return tables
        by_expert = with_undefined(expert_contention_table(grams), ["value"])
        tables["contention_by_expert"] = by_expert
        if grams.gates is not None:
            config = self.setting.config
            tables["contention"] = contention_table(
                grams.experts[-1], grams.gates, config.permutations, config.seed
            )
        return tables

    def _residuals(self, moment: Moment) -> dict[str, Tensor]:
        """∂L/∂m (B×K) of every term."""
        plain, unused = Objective(ObjectiveConfig(name="hard")), torch.Generator()
        objective = Objective(self.setting.objective)
        labels, taught = moment.labels, moment.teacher_logits

        def terms(margins: Tensor) -> dict[str, Tensor]:
            return objective.terms(margins, labels, taught, moment.generator)

        def loss(term: str, margins: Tensor) -> Tensor:
            if term == "hard":
                return plain.terms(margins, labels, None, unused)["hard"]
            if term == "objective":
                return torch.stack(list(terms(margins).values())).sum(dim=0)
            return terms(margins)[term]

        names = terms_of(self.setting.objective)
        return {name: residuals(partial(loss, name), moment.margins) for name in names}

    def _plain(self, moment: Moment) -> Frames:
        """Of a model without gates, stage by stage."""
        config = self.setting.at(moment).config
        record = conflict_of(
            moment.model,
            moment.images,
            moment.labels,
            classes=self.setting.data.classes,
            margins=self.setting.margins,
            null_draws=config.null_draws,
            permutations=config.permutations,
            seed=config.seed,
            max_memory=config.max_memory,
            pairs=config.pairs,
        )
        tables = {"conflict": record.pairs, "conflict_summary": record.summary}
        return {
            name: table.drop(columns="probe").assign(term="hard") for name, table in tables.items()
        }


def _subtasks(setting: Setting) -> tuple[int, ...]:
    """The subtasks that are looked at, the same at every epoch and in every run of a study."""
    return drawn_subtasks(setting.data.num_classes, setting.config.pairs, setting.config.seed)


def _first_alike(residuals: Mapping[str, Tensor]) -> dict[str, str]:
    """Term → the first one whose residuals are the same, itself where there is none.

    The hard loss as an objective is the term of that name, for one; what is the same is told under
    every name and computed once.
    """
    same: dict[str, str] = {}
    for term, residual in residuals.items():
        alike = (first for first in same.values() if torch.equal(residuals[first], residual))
        same[term] = next(alike, term)
    return same
