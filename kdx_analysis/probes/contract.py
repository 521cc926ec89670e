"""What a probe is, and all of them: a class for each, declared by a decorator.

    kind("sureness", "Mean margin of the right class.", home=__name__,
         keys=(EPOCH, SPLIT), values=(number("value", "mean over images"),))

    @probe_of("sureness", title="sureness", roles=("student", "explainer"), kinds=("sureness",))
    class Sureness(Probe):
        '''How sure is a model of the right class?'''

        def __call__(self, moment):
            right = moment.margins.gather(1, moment.labels.unsqueeze(1))
            return {"sureness": pd.DataFrame({"value": [right.mean().item()]})}

Whatever trains a model (:class:`kdx_analysis.probes.TrainingProbe`) runs every probe of its role
that the study does not switch off. It adds the epoch and the split, and holds every table against
its kind.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, ProbeConfig, parsed
from kdx_analysis.data import Dataset, Split
from kdx_analysis.errors import KdxError
from kdx_analysis.models import HME, Trace
from kdx_analysis.models.modes import undisturbed
from kdx_analysis.probes.subtasks import margins_under
from kdx_analysis.records import RECORDS
from kdx_analysis.registry import Registry, unknown

if TYPE_CHECKING:
    from kdx_analysis.probes.conflict.grams import Kept

P = TypeVar("P", bound="type[Probe]")
Frames = Mapping[str, pd.DataFrame]

ROLES = ("teacher", "student", "explainer", "tree")


@dataclass(frozen=True)
class Cost:
    """What a probe will take; costs of one thing after the other add up.

    Attributes:
        forwards, backwards: passes, each over at most ``batch`` images.
        values: numbers in the summed gradients of all residuals, K·D for each set.
        memory: bytes that it takes at most beside model and images.
    """

    forwards: int = 0
    backwards: int = 0
    batch: int = 0
    values: int = 0
    memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            max(self.batch, other.batch),
            self.values + other.values,
            max(self.memory, other.memory),
        )

    def __mul__(self, times: int) -> Cost:
        return dataclasses.replace(
            self,
            forwards=times * self.forwards,
            backwards=times * self.backwards,
            values=times * self.values,
        )

    @property
    def forward_passes(self) -> int:
        """All passes as forward passes over ``batch`` images, of which a backward pass takes two.

        Times the seconds of one this is about how long the passes take; null draws, products and
        tables come on top of them.

        >>> Cost(forwards=4, backwards=10).forward_passes
        24
        """
        return self.forwards + 2 * self.backwards

    def __str__(self) -> str:
        return (
            f"{self.forwards} forward and {self.backwards} backward passes over up to {self.batch} "
            f"images each, {self.memory / 2**20:.0f} MiB of memory"
        )


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """The images of one split that probes look at: as many of every class, un-augmented.

    Attributes:
        split: the images, their classes and their ids.
        data: that they are of.
    """

    split: Split
    data: Dataset

    @property
    def images(self) -> Tensor:
        """Normalised, on the data's device, B×C×H×W; made anew at each call."""
        return self.data.normalise(self.split.images.take(torch.arange(len(self.split))))

    @property
    def labels(self) -> Tensor:
        """True classes, int64, B."""
        return self.split.labels

    @property
    def ids(self) -> list[int]:
        """What tells the images from others of the data set."""
        ids: list[int] = self.split.ids.tolist()
        return ids


@dataclass(frozen=True, eq=False)
class Setting:
    """What a probe is made with: the training that it will look at.

    Attributes:
        role: of the model, one of ROLES.
        model: before training, in full precision.
        data: of the training.
        objective: of the training.
        epochs: of the training.
        config: sizes, seed and draws, as the study has them for this probe.
        options: the probe's own.
        sets: split → the images that are looked at; the first is that of probes which look at one.
        finished: whether a finished model is looked at, once, rather than one in training.
    """

    role: str
    model: nn.Module
    data: Dataset
    objective: ObjectiveConfig
    epochs: int
    config: ProbeConfig
    options: Any
    sets: Mapping[str, ProbeSet]
    finished: bool = False

    @property
    def first(self) -> ProbeSet:
        """The probe set of the first split."""
        return next(iter(self.sets.values()))

    @property
    def margins(self) -> Callable[[Tensor], Tensor] | None:
        """From the model's outputs to the margins of its subtasks.

        It is None where an explainer gives them.
        """
        to_margins = margins_under(self.objective)
        if to_margins is None and not isinstance(self.model, HME):
            return lambda outputs: outputs  # without it a probe would take outputs for logits
        return to_margins

    @property
    def inner(self) -> Setting:
        """The same at the probed epochs before the last, where nulls may have fewer draws."""
        return dataclasses.replace(self, config=self.config.inner)

    def at(self, moment: Moment) -> Setting:
        """The same at a ``moment``."""
        return self if moment.last else self.inner

    @property
    def probed(self) -> tuple[int, ...]:
        """The epochs at which probes look that do not look after every one."""
        return (
            (self.epochs,) if self.finished else checkpoints(self.epochs, self.config.checkpoints)
        )


class Moment:
    """What a probe is called with: a model after an epoch of its training, on one probe set.

    What is computed here is computed when it is first asked for, once for all probes.

    Attributes:
        model: in full precision; a probe leaves it as it was found.
        epoch: from 1.
        probed: whether this is one of the probed epochs.
        last: whether it is the last of them.
        seed: of what the probe draws.
        teacher_logits: B×K, float32; None for trainings without a teacher.
        val_outputs: of the model on all of validation, N×K, where the training has just asked for
            them in full precision; else None.
        gradient_sets: of the hard loss, of which a probe that looks later wants the gradients.
        kept: these, if the probe of conflict had them at hand.

    ``to_margins`` is :attr:`Setting.margins`.
    """

    def __init__(
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        epoch: int,
        *,
        probed: bool = True,
        last: bool = True,
        seed: int = 0,
        teacher_logits: Tensor | None = None,
        to_margins: Callable[[Tensor], Tensor] | None = None,
        val_outputs: Tensor | None = None,
        gradient_sets: int = 0,
    ) -> None:
        self.gradient_sets = gradient_sets
        self.kept: Kept | None = None
        self.model, self.epoch, self.probed, self.last = model, epoch, probed, last
        self.seed, self.teacher_logits, self.val_outputs = seed, teacher_logits, val_outputs
        self._set, self._to_margins = probe_set, to_margins

    @property
    def split(self) -> str:
        """That the images are of."""
        return self._set.split.name

    @property
    def labels(self) -> Tensor:
        """True classes, int64, B."""
        return self._set.labels

    @property
    def ids(self) -> list[int]:
        """Of the images."""
        return self._set.ids

    @property
    def generator(self) -> torch.Generator:
        """A new one, from the seed: a probe draws the same at every moment."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def images(self) -> Tensor:
        """Normalised, on the model's device, B×C×H×W."""
        return self._set.images

    @cached_property
    def trace(self) -> Trace:
        """What lies on the images' way through an explainer: features, attention, margins."""
        if not isinstance(self.model, HME):
            raise KdxError(
                f"{type(self.model).__name__} has no gates to trace; declare the probe for the "
                "roles explainer and tree alone"
            )
        with undisturbed(self.model), torch.no_grad():
            return self.model.trace(self.images)

    @cached_property
    def outputs(self) -> Tensor:
        """The model's logits, B×K."""
        if isinstance(self.model, HME):
            return self.model.outputs(self.trace)
        with undisturbed(self.model), torch.no_grad():
            outputs: Tensor = self.model(self.images)
        return outputs

    @cached_property
    def margins(self) -> Tensor:
        """The margins of the subtasks, B×K: one claims an image where its margin is above 0."""
        if self._to_margins is not None:
            return self._to_margins(self.outputs)
        return self.trace.margins


class NoOptions(BaseModel):
    """Of a probe without options of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Probe(ABC):
    """What looks at a model after epochs of its training, and gives tables of what it sees.

    A subclass is declared by :func:`probe_of`, made once a training with its :class:`Setting`, and
    called with one :class:`Moment` after the other.

    State merges by :meth:`merge`: by default the tables of all epochs and splits are concatenated,
    in the order in which they came.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    afterwards: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]
    each_epoch: ClassVar[bool]
    all_splits: ClassVar[bool]
    options: ClassVar[type[BaseModel]]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @property
    def gradient_sets(self) -> int:
        """Sets of the hard loss's gradients, its null's among them, that it can take from conflict.

        None by default. They are in :attr:`Moment.kept` if that probe looked before.
        """
        return 0

    @classmethod
    def applies(cls, model: nn.Module) -> bool:
        """Whether a model of the probe's roles has what it looks at; by default each has."""
        return True

    @classmethod
    def cost(cls, setting: Setting, images: Tensor) -> Cost:
        """What one call takes, known beforehand; by default nothing worth telling.

        Args:
            setting: of the training.
            images: of one split, B×C×H×W.
        """
        return Cost()

    @abstractmethod
    def __call__(self, moment: Moment) -> Frames:
        """Kind → table, without the columns ``epoch`` and ``split``, which are added."""

    def merge(self, kind: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """One table of a ``kind``, from the ``frames`` of all epochs and splits, in their order."""
        return pd.concat(frames, ignore_index=True)


PROBES: Registry[type[Probe]] = Registry(
    "probe",
    rooms=(
        "kdx_analysis.probes.gates.probe",
        "kdx_analysis.probes.agreement",
        "kdx_analysis.probes.conflict.probe",
        "kdx_analysis.probes.claims",
        "kdx_analysis.probes.affinity",
        "kdx_analysis.probes.vam",
        "kdx_analysis.probes",
    ),
)


@dataclass(frozen=True)
class StudyProbe:
    """What looks at the finished models of a whole study side by side, where it is asked to.

    It comes after all training and decides no run's result: to switch it on later trains nothing
    anew. It is declared by :func:`study_probe`; the study runs it.

    Attributes:
        name: its section's under ``probes:`` in a study, without which it is off.
        title: what it looks at, in a few words.
        kinds: of the records that it gives.
        options: a pydantic model of its own options, each with a default.
        listed: the option that a plain list in place of the section stands for.
        home: where it is declared.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    options: type[BaseModel]
    listed: str
    home: str


STUDY_PROBES: Registry[StudyProbe] = Registry(
    "probe of a study", rooms=("kdx_analysis.probes.fidelity",)
)


def study_probe(
    name: str,
    *,
    title: str,
    kinds: Sequence[str],
    options: type[BaseModel],
    listed: str,
    home: str,
) -> StudyProbe:
    """Declare a probe of whole studies; ``home`` is the ``__name__`` of the module.

    Other arguments are attributes of :class:`StudyProbe`.
    """
    declared = StudyProbe(name, title, tuple(kinds), options, listed, f"{home}.{name}")
    return STUDY_PROBES.register(name)(declared)


def asked_for(config: ProbeConfig, probe: StudyProbe) -> bool:
    """Whether a study switches a probe of whole studies on, which is off by default."""
    return config.sections.get(probe.name, False) is not False


def deciding(config: ProbeConfig) -> dict[str, Any]:
    """The section ``probes`` without what decides nothing about a run: its identity holds this.

    That are the sections of probes of whole studies, which look at finished models, and ``on``
    for a probe that is on without it.
    """
    sections: dict[str, Any] = {}
    for name, section in config.sections.items():
        if name not in STUDY_PROBES and section is not True:
            sections[name] = section
    plain: dict[str, Any] = config.model_copy(update={"sections": sections}).model_dump(mode="json")
    return plain


def probe_of(
    name: str,
    *,
    title: str,
    roles: Sequence[str],
    kinds: Sequence[str],
    afterwards: Sequence[str] = (),
    each_epoch: bool = False,
    all_splits: bool = True,
    options: type[BaseModel] = NoOptions,
) -> Callable[[P], P]:
    """Declare a probe on its class.

    Args:
        name: its section's under ``probes:`` in a study.
        title: what it looks at, in a few words.
        roles: whose trainings it looks at, of ROLES.
        kinds: of the records that it gives, each declared by :func:`kdx_analysis.records.kind`.
        afterwards: further roles, whose models it looks at only when they have finished, as
            ``kdx probe`` does.
        each_epoch: whether it looks after every epoch, rather than at the probed ones.
        all_splits: whether it looks at train and validation, rather than at the first of them.
        options: a pydantic model of its own options, each with a default.

    Raises:
        KdxError: an unknown role, or the name of a key that all probes share.
    """
    if isinstance(kinds, str):
        raise KdxError(f"kinds of probe {name!r} are text; give a tuple, as ({kinds!r},)")
    for role in (*roles, *afterwards):
        if role not in ROLES:
            raise unknown("role", role, ROLES)
    if name in ProbeConfig.shared():
        raise KdxError(
            f"a probe can't be called {name!r}, which is a key that all probes share; choose "
            "another name"
        )

    def declare(probe: P) -> P:
        probe.name, probe.title = name, title
        probe.roles, probe.afterwards = tuple(roles), tuple(afterwards)
        probe.kinds, probe.options = tuple(kinds), options
        probe.each_epoch, probe.all_splits = each_epoch, all_splits
        PROBES.register(name)(probe)
        return probe

    return declare


def switched_on(config: ProbeConfig, role: str, *, finished: bool = False) -> list[type[Probe]]:
    """The probes of a role that a study does not switch off.

    Args:
        config: the study's section.
        role: one of ROLES.
        finished: whether those that look at it only afterwards are among them.
    """
    probes = []
    for name, probe in PROBES.items():
        roles = (*probe.roles, *probe.afterwards) if finished else probe.roles
        if role in roles and config.sections.get(name) is not False:
            probes.append(probe)
    return probes


def configured(config: ProbeConfig, probe: type[Probe] | StudyProbe) -> tuple[ProbeConfig, Any]:
    """What a study says of a probe: the shared keys, as they are for it, and its own options.

    Raises:
        KdxError: a key that is neither a shared one nor an option of the probe, with the nearest
            that are, a value that can't be, or a list for a probe that takes none.
    """
    section = _options_in(config, probe)
    options, shared = probe.options.model_fields, ProbeConfig.shared()
    for key in section:
        if key not in options and key not in shared:
            raise unknown(f"option of probes.{probe.name}", key, [*options, *shared])
    source = f"probes.{probe.name}"
    # An option hides the shared key of its name: affinity counts the draws of its null in its way.
    overrides = {key: value for key, value in section.items() if key not in options}
    chosen = {key: value for key, value in section.items() if key in options}
    every = {**config.model_dump(include=set(shared)), **overrides}
    return parsed(ProbeConfig, every, source), parsed(probe.options, chosen, source)


def _options_in(config: ProbeConfig, probe: type[Probe] | StudyProbe) -> dict[str, Any]:
    """A probe's section as options: a list is the value of the one that it stands for."""
    section = config.sections.get(probe.name, False)
    if not isinstance(section, list):
        return {} if isinstance(section, bool) else section
    if not isinstance(probe, StudyProbe):
        raise KdxError(
            f"probes.{probe.name} = {section} is a list; give options as keys and values, or off"
        )
    return {probe.listed: section}


def check_sections(config: ProbeConfig) -> None:
    """Hold all sections of a study against the probes that there are, and these with one another.

    Raises:
        KdxError: an unknown probe, option or value, with the nearest valid names; a probe whose
            kinds of records are not declared or are given by something else.
    """
    _check_kinds()
    valid: dict[str, type[Probe] | StudyProbe] = {**PROBES, **STUDY_PROBES}
    for name, section in config.sections.items():
        if name not in valid:
            raise unknown("key or probe of probes", name, [*ProbeConfig.shared(), *valid])
        if section is not False:
            configured(config, valid[name])


def _check_kinds() -> None:
    """Raise KdxError for a probe whose kinds nobody declares, or something else gives."""
    givers = {"metrics": "the training", "tree": "the training"}
    if twice := sorted(set(PROBES) & set(STUDY_PROBES)):
        raise KdxError(
            f"{twice[0]!r} is a probe of whole studies already; choose another name for yours"
        )
    probes: dict[str, type[Probe] | StudyProbe] = {**PROBES, **STUDY_PROBES}
    for name, probe in probes.items():
        for kind in probe.kinds:
            if kind not in RECORDS:
                raise KdxError(
                    f"probe {name!r} gives records of a kind that is not declared: "
                    f"{unknown(RECORDS.kind, kind, RECORDS)}"
                )
            if kind in givers:
                raise KdxError(
                    f"probe {name!r} gives records of the kind {kind!r}, which {givers[kind]} "
                    "gives; declare a kind of its own"
                )
            givers[kind] = f"probe {name!r}"


def checkpoints(epochs: int, count: int) -> tuple[int, ...]:
    """``count`` epochs (or fewer, where they coincide) spread evenly from the first to the last.

    >>> checkpoints(12, 4), checkpoints(2, 4), checkpoints(9, 1)
    ((1, 5, 8, 12), (1, 2), (9,))
    """
    if count == 1:
        return (epochs,)
    return tuple(sorted({round(float(epoch)) for epoch in np.linspace(1, epochs, count)}))
