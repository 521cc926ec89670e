"""The probe of conflict: do the subtasks' gradients oppose each other, under each loss of a run?"""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import Tensor

from kdx_analysis.config import ObjectiveConfig
from kdx_analysis.models import HME
from kdx_analysis.objectives import Objective
from kdx_analysis.probes.conflict.grams import (
    Grams,
    probing_cost,
    residuals,
    subtask_grams,
    with_null,
)
from kdx_analysis.probes.conflict.record import conflict_of
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
    values=(number("value", "of the metric"), _PAIRS, UNDEFINED, DRAWS, IMAGES),
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
    """

    @classmethod
    def cost(cls, setting: Setting, images: Tensor) -> Cost:
        """Of all residuals, those of the null among them."""
        gated = isinstance(setting.model, HME)
        terms = terms_of(setting.objective) if gated else ("hard",)
        return probing_cost(
            setting.model,
            images,
            setting.data.num_classes,
            len(terms) * (1 + setting.config.null_draws),
            margins=setting.margins,
            max_memory=setting.config.max_memory,
        )

    def __call__(self, moment: Moment) -> Frames:
        """Tables of all terms, one below the other."""
        config = self.setting.config
        if not isinstance(moment.model, HME):
            return self._plain(moment)
        terms = self._residuals(moment)
        sets = [with_null(r, config.null_draws, config.seed) for r in terms.values()]
        grams = subtask_grams(
            moment.model,
            moment.images,
            torch.cat(sets),
            margins=self.setting.margins,
            max_memory=config.max_memory,
        )
        frames: dict[str, list[pd.DataFrame]] = {}
        draws = 1 + config.null_draws
        for i, term in enumerate(terms):
            columns = {"term": term, "null_draws": config.null_draws, "n": len(moment.images)}
            tables = self._tables(grams.subset(slice(i * draws, (i + 1) * draws)))
            for name, table in tables.items():
                frames.setdefault(name, []).append(pd.DataFrame({**columns, **dict(table)}))
        return {name: pd.concat(tables, ignore_index=True) for name, tables in frames.items()}

    def _tables(self, grams: Grams) -> dict[str, pd.DataFrame]:
        """Of one term."""
        pairs, summary = conflict_tables(grams, self.setting.data.classes)
        tables = {
            "conflict": pairs,
            "conflict_summary": summary,
            "contention_by_expert": with_undefined(expert_contention_table(grams), ["value"]),
        }
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
        config = self.setting.config
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
        )
        tables = {"conflict": record.pairs, "conflict_summary": record.summary}
        return {
            name: table.drop(columns="probe").assign(term="hard") for name, table in tables.items()
        }
