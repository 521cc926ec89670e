"""All probes of one model in training: called after every epoch, they give tidy tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig
from kdx_analysis.data import Dataset
from kdx_analysis.errors import KdxError
from kdx_analysis.models.modes import in_full, undisturbed
from kdx_analysis.probes.contract import (
    Cost,
    Moment,
    Probe,
    ProbeSet,
    Setting,
    check_sections,
    configured,
    switched_on,
)
from kdx_analysis.records import RECORDS, check
from kdx_analysis.training import Epoch

SPLITS = ("train", "val")


class TrainingProbe:
    """Runs every probe of a role that the study does not switch off, and keeps what they give.

    A table is held against its kind as soon as a probe gives it. ``tables()`` has one of each kind,
    keyed by ``epoch`` and, where its kind has that column, by ``split``.

    Args:
        role: of the model: teacher, student, explainer or tree.
        model: before training.
        data: whose splits the probe sets are drawn from, un-augmented and class-balanced.
        objective: of the training.
        config: sizes, checkpoints, null draws, and a section for each probe that has one.
        epochs: of the training.
        teacher: logits are taken from it once; None for trainings without one.
        splits: that probe sets are drawn from, the first of them for probes that look at one.
        finished: whether the model has finished: it is looked at once, and by those probes too
            which look at its role only afterwards.

    Raises KdxError for sections of ``config`` that no probe has.
    """

    def __init__(
        self,
        role: str,
        model: nn.Module,
        data: Dataset,
        objective: ObjectiveConfig,
        config: ProbeConfig,
        epochs: int,
        teacher: nn.Module | None = None,
        *,
        splits: Sequence[str] = SPLITS,
        finished: bool = False,
    ) -> None:
        self.splits, self.config = tuple(splits), config
        self.probes: dict[str, Probe] = {}
        self._frames: defaultdict[str, list[pd.DataFrame]] = defaultdict(list)
        self._giver: dict[str, Probe] = {}
        self._teacher_logits: dict[ProbeSet, Tensor] = {}
        self._val_outputs: Tensor | None = None
        for probe, setting in settings(
            role, in_full(model), data, objective, config, epochs, splits, finished=finished
        ):
            self.probes[probe.name] = probe(setting)
            for probe_set in self._looked_at(self.probes[probe.name]):
                if teacher is not None and probe_set not in self._teacher_logits:
                    self._teacher_logits[probe_set] = _logits(teacher, probe_set)

    @property
    def ids(self) -> dict[str, list[int]]:
        """Ids of the images in each probe set, by split.

        A probe that looks at others of its own has them under its name and the split.
        """
        ids: dict[str, list[int]] = {}
        for name, probe in self.probes.items():
            chosen = probe.setting.config
            shared = (chosen.per_class, chosen.seed) == (self.config.per_class, self.config.seed)
            for probe_set in self._looked_at(probe):
                split = probe_set.split.name
                ids[split if shared else f"{name} {split}"] = probe_set.ids
        return ids

    def __call__(self, epoch: Epoch, model: nn.Module) -> None:
        """Look at the ``model`` after an ``epoch``, split by split."""
        full = in_full(model)
        # Outputs of a model in half precision are not those of its copy.
        self._val_outputs = epoch.val_outputs if full is model else None
        model = full
        for split in self.splits:
            moments: dict[Any, Moment] = {}  # of one split at a time, as each holds its features
            for probe in self.probes.values():
                setting = probe.setting
                probed, last = epoch.epoch in setting.probed, epoch.epoch == setting.probed[-1]
                looks = probe.each_epoch or probed
                if not looks or setting.sets[split] not in self._looked_at(probe):
                    continue
                key = (setting.sets[split], setting.config.seed, probed, last)
                if key not in moments:
                    moments[key] = self._moment(model, setting, split, epoch.epoch, probed, last)
                self._add(probe, moments[key])

    def tables(self) -> dict[str, pd.DataFrame]:
        """Kind → table of all probed epochs so far."""
        return {
            kind: self._giver[kind].merge(kind, frames) for kind, frames in self._frames.items()
        }

    def _looked_at(self, probe: Probe) -> list[ProbeSet]:
        sets = list(probe.setting.sets.values())
        return sets if probe.all_splits else sets[:1]

    def _moment(
        self, model: nn.Module, setting: Setting, split: str, epoch: int, probed: bool, last: bool
    ) -> Moment:
        looking = [
            probe.gradient_sets
            for probe in self.probes.values()
            if probe.setting.config.seed == setting.config.seed
            and setting.sets[split] in self._looked_at(probe)
        ]
        return Moment(
            model,
            setting.sets[split],
            epoch,
            probed=probed,
            last=last,
            seed=setting.config.seed,
            teacher_logits=self._teacher_logits.get(setting.sets[split]),
            to_margins=setting.margins,
            val_outputs=self._val_outputs,
            gradient_sets=max(looking),
        )

    def _add(self, probe: Probe, moment: Moment) -> None:
        """Keep what a probe gives, with epoch and split, if it is what the probe declares."""
        for kind, frame in probe(moment).items():
            if kind not in probe.kinds:
                raise KdxError(
                    f"probe {probe.name!r} gives records of the kind {kind!r}, but declares "
                    f"{', '.join(probe.kinds)}; add it to kinds="
                )
            keys: dict[str, Any] = {"epoch": moment.epoch}
            if any(key.name == "split" and not key.optional for key in RECORDS[kind].keys):
                keys["split"] = moment.split
            table = pd.DataFrame({**keys, **dict(frame)})
            self._frames[kind].append(check(kind, table, f"probe {probe.name!r}"))
            self._giver[kind] = probe


def settings(
    role: str,
    model: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    config: ProbeConfig,
    epochs: int,
    splits: Sequence[str] = SPLITS,
    *,
    finished: bool = False,
) -> Iterator[tuple[type[Probe], Setting]]:
    """The probes that will look at a model, each with its setting.

    Arguments are as of :class:`TrainingProbe`.
    """
    check_sections(config)

    @cache
    def sets(per_class: int, seed: int) -> dict[str, ProbeSet]:
        return {split: ProbeSet(data.probe_set(split, per_class, seed), data) for split in splits}

    for probe in switched_on(config, role, finished=finished):
        if probe.applies(model):
            shared, options = configured(config, probe)
            looked_at = sets(shared.per_class, shared.seed)
            yield (
                probe,
                Setting(role, model, data, objective, epochs, shared, options, looked_at, finished),
            )


def training_cost(
    role: str,
    model: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    config: ProbeConfig,
    epochs: int,
    splits: Sequence[str] = SPLITS,
    *,
    finished: bool = False,
) -> Cost:
    """What all probes of a model take through its training, nulls included.

    Arguments are as of :class:`TrainingProbe`.
    """
    total = Cost()
    for probe, setting in settings(
        role, model, data, objective, config, epochs, splits, finished=finished
    ):
        looks = epochs if probe.each_epoch and not finished else len(setting.probed)
        for split in splits if probe.all_splits else splits[:1]:
            images = setting.sets[split].images
            total += probe.cost(setting.inner, images) * (looks - 1) + probe.cost(setting, images)
    return total


def _logits(teacher: nn.Module, probe_set: ProbeSet) -> Tensor:
    """The teacher's, B×K, in float32 whatever it computes in, as margins are."""
    with undisturbed(teacher), torch.no_grad():
        logits: Tensor = teacher(probe_set.images)
    return logits.float()
