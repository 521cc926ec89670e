"""What an objective is, and all of them: a row for each, declared on its target or its class.

A rung of the ladder is a function that says what the distillation term asks of every subtask:

    @target("kd_top3", title="control: only the three highest targets", adds=("ranking",),
            rung=True, follows="kd_shuffled")
    def kd_top3(cut, labels, generator):
        return torch.where(cut >= cut.topk(3).values[:, -1:], cut, 0)

Whatever else compares student and teacher, as their features, is a class, in a file of its own:

    @distiller("fitnet", title="the teacher's features, regressed")
    class FitNet(Distiller): ...

Study, command line, figures, report and methods read the rows. A rung that is declared in a user's
own file stands on the ladder right behind the one that it ``follows``.

Both decorators file a :class:`Row` under its name in ``OBJECTIVES`` and give back what they
declare. So may whoever is handed an objective as an object, as a study in Python: a row by
``OBJECTIVES.register(row.name)(row)``, a class or function by its decorator, called like any other
function. The name is then what configurations, runs and records hold. A training in another process
has to register the same, as an extension file does when it is imported there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from kdx_analysis.config import ObjectiveConfig, parsed
from kdx_analysis.errors import KdxError
from kdx_analysis.objectives.losses import cross_entropy, cuts, divergence
from kdx_analysis.registry import Registry, home

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from kdx_analysis.data import Dataset

D = TypeVar("D", bound="type[Distiller]")
Target = Callable[..., Tensor]
Features = Mapping[str, Tensor]
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """What the loss of a batch is made of.

    Attributes:
        outputs: the student's margins (binary) or logits (multiclass), B×K, at least float32.
        labels: classes, int64, B.
        teacher_outputs: the teacher's logits, B×K; None without a teacher.
        features: by module path, what the student's modules gave, float32.
        teacher_features: the same of the teacher, without gradients.
        generator: for whatever is drawn; on the CPU.
    """

    outputs: Tensor
    labels: Tensor
    teacher_outputs: Tensor | None
    generator: torch.Generator
    features: Features = field(default_factory=dict)
    teacher_features: Features = field(default_factory=dict)


class Options(BaseModel):
    """Options of a distiller: a class of its own derives from this one and names them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Distiller(nn.Module):
    """The loss of one run, by named terms; derived classes say what enters it.

    The loss is the sum of the terms: of one by subtask (B×K) the mean over the batch of its sum
    over subtasks, of one by sample (B) the mean over the batch, each times its weight. Modules that
    a class makes in :meth:`build` are trained with the student and are no part of it.

    Attributes:
        takes: the options that a study may give under the objective, checked before training.
        subtask_terms: the terms that come from outputs alone and are kept by subtask. Conflict is
            recorded between the subtasks' gradients of these; a term on features has none.
        weights: by which terms enter the objective; 1 for those that are not named.
    """

    takes: ClassVar[type[Options]] = Options
    subtask_terms: ClassVar[tuple[str, ...]] = ("hard",)

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.options = options_of(config, type(self).takes)
        self.weights: Mapping[str, float] = {}

    def layers(self, student: nn.Module, teacher: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
        """Module paths whose outputs are compared, of student and of teacher: none by default."""
        return (), ()

    def build(self, features: Features, teacher_features: Features) -> None:
        """Make what the distiller trains itself, as adapters between the features of two models.

        It is called once, before training, with torch's random state seeded by the run.
        ``features`` and ``teacher_features`` are those of two samples, by module path.
        """

    def prepare(
        self, student: nn.Module, teacher: nn.Module, data: Dataset, fabric: Fabric, tell: Tell
    ) -> None:
        """A phase before training, for distillers that need one.

        ``tell`` is called with the steps that are done and all there are. Both models, ``student``
        and ``teacher``, are on the fabric's device and unwrapped, the teacher in eval mode and
        without gradients; where there are several processes, all of them run it.
        """

    def on_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """Terms from outputs, by subtask, B×K each; by default the hard loss alone."""
        one_hot = F.one_hot(batch.labels, batch.outputs.shape[1]).to(batch.outputs.dtype)
        return {"hard": cross_entropy(batch.outputs, one_hot, self.config)}

    def on_features(self, batch: Batch) -> dict[str, Tensor]:
        """Terms from features, by sample (B) or by sample and subtask (B×K); none by default."""
        return {}


class OnLabels(Distiller):
    """The hard loss alone, on a target made of the labels."""

    def __init__(self, config: ObjectiveConfig, target: Target) -> None:
        super().__init__(config)
        self.target = target

    def on_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """``hard``, B×K."""
        one_hot = F.one_hot(batch.labels, batch.outputs.shape[1]).to(batch.outputs.dtype)
        asked = _called(self.target, one_hot, batch, self.config)
        return {"hard": cross_entropy(batch.outputs, asked, self.config)}


class OnTargets(Distiller):
    """(1 − λ)·hard + λ·T²·KL to a target made of the teacher's cut, or of what takes its place."""

    subtask_terms = ("hard", "distillation")

    def __init__(self, config: ObjectiveConfig, target: Target) -> None:
        super().__init__(config)
        self.target = target
        self.weights = {"hard": 1 - config.lam, "distillation": config.lam}

    def on_outputs(self, batch: Batch) -> dict[str, Tensor]:
        """``hard`` and ``distillation``, B×K each."""
        cut, rest = cuts(batch.outputs, batch.labels, batch.teacher_outputs, self.config)
        asked = _called(self.target, cut, batch, self.config)
        away = divergence(batch.outputs, asked, cut, rest, self.config)
        return super().on_outputs(batch) | {"distillation": away}


@dataclass(frozen=True)
class Row:
    """One objective, as everything that shows or offers it reads it.

    Attributes:
        name: by which a study asks for it.
        title: what the student is asked to match, in a few words.
        make: from a configuration to its distiller.
        target: its target function; None for one that is a class.
        home: where it is declared, as ``module.name``.
        adds: what it has that the rung below it has not, thing by thing.
        follows: the objective that it comes right after, '' for none.
        rung: whether it is a rung of the ladder.
        distils: whether there is a distillation term.
        needs_teacher: whether the teacher's outputs or features enter it.
        options: what it takes beside the keys of every objective.
        subtask_terms: its terms that are kept by subtask.
        colour, marker, line: how it is drawn; '' for a look that depends on its name.
        definition: its formula, or what stands in place of KD's targets, as it is printed.
        source: the paper that it is from, or '' for one of our own.
    """

    name: str
    title: str
    make: Callable[[ObjectiveConfig], Distiller]
    home: str
    target: Target | None = None
    adds: tuple[str, ...] = ()
    follows: str = ""
    rung: bool = False
    distils: bool = True
    needs_teacher: bool = True
    options: type[Options] = Options
    subtask_terms: tuple[str, ...] = ("hard",)
    colour: str = ""
    marker: str = ""
    line: Any = "-"
    definition: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.adds, str):
            raise KdxError(
                f"objective {self.name!r} adds {self.adds!r}, which is text; give a tuple, as "
                f"adds=({self.adds!r},)"
            )

    @property
    def summary(self) -> str:
        """What it matches and, of a rung, what it adds, in a line."""
        return "; ".join(filter(None, (self.title, ", ".join(self.adds))))


OBJECTIVES: Registry[Row] = Registry(
    "objective",
    rooms=("kdx_analysis.objectives.ladder", "kdx_analysis.objectives.distillers"),
    follows=lambda row: row.follows or None,
)


def target(name: str, *, distils: bool = True, **declared: Any) -> Callable[[Target], Target]:
    """Declare an objective ``name`` on its target function.

    ``declared`` are fields of :class:`Row`.

    The function is called with what it may replace, B×K, the labels, B, and a generator on the CPU,
    and gives targets in [0, 1], B×K. Of an objective that ``distils`` it is given the teacher's
    cut, what ``kd`` itself matches, and stands in the distillation term; otherwise it is given
    one-hot labels and stands in the hard term. Keyword arguments take their values from the keys of
    the objective's configuration, as ``epsilon``.
    """

    def declare(function: Target) -> Target:
        kind = OnTargets if distils else OnLabels
        row = Row(
            name,
            make=lambda config: kind(config, function),
            home=home(function),
            target=function,
            distils=distils,
            subtask_terms=kind.subtask_terms,
            **{"needs_teacher": distils, **declared},
        )
        OBJECTIVES.register(name)(row)
        return function

    return declare


def distiller(name: str, **declared: Any) -> Callable[[D], D]:
    """Declare an objective ``name`` on its class, a :class:`Distiller`.

    ``declared`` are fields of :class:`Row`; its options and terms are taken from the class.
    """

    def declare(made: D) -> D:
        row = Row(
            name,
            make=made,
            home=home(made),
            options=made.takes,
            subtask_terms=made.subtask_terms,
            **declared,
        )
        OBJECTIVES.register(name)(row)
        return made

    return declare


def rungs() -> tuple[Row, ...]:
    """The rungs of the ladder of controls, from the lowest, hard labels, to the highest, KD."""
    return tuple(row for row in OBJECTIVES.values() if row.rung)


def ladder_names() -> tuple[str, ...]:
    """The names of the ladder's rungs, from the lowest."""
    return tuple(row.name for row in rungs())


def check_objectives(configs: Sequence[ObjectiveConfig], source: str = "objectives") -> None:
    """Raise KdxError for a name that is not registered, or options that its objective has not.

    ``configs`` are the objectives of a study, in its order; ``source`` names what they were read
    from.
    """
    for number, config in enumerate(configs):
        try:
            row = OBJECTIVES[config.name]
        except KdxError as error:
            raise KdxError(f"{source}: {error} (at 'objectives.{number}')") from None
        options_of(config, row.options)


def options_of(config: ObjectiveConfig, options: type[Options]) -> Options:
    """The options of an objective as its distiller reads them; KdxError for what they can't be."""
    if config.options and not options.model_fields:
        given = ", ".join(map(repr, config.options))
        raise KdxError(f"objective {config.name!r} has no options; take {given} out of its options")
    return parsed(options, config.options, f"options of objective {config.name!r}")


def _called(function: Target, replaced: Tensor, batch: Batch, config: ObjectiveConfig) -> Tensor:
    """The targets, with the keys of the configuration that the function takes by keyword."""
    takes = inspect.signature(function).parameters.values()
    keys = [each.name for each in takes if each.kind is inspect.Parameter.KEYWORD_ONLY]
    options = {key: getattr(config, key) for key in keys}
    return function(replaced, batch.labels, batch.generator, **options)
